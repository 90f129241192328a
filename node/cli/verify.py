"""`aitbc verify`: what a proof bundle proves, judged with the reader's own genesis file alone."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import msgspec

from ledger.block import parse_genesis
from ledger.errors import LedgerError
from ledger.proof import parse_disclosure, verify_bundle
from ledger.statement import MAX_STATEMENT_BYTES, StatementVerdict, is_statement, verify_statement
from node.cli.options import file_type, option
from node.files import load_document, read_bounded
from node.report import print_statement, print_verdict

MAX_FILE_BYTES = MAX_STATEMENT_BYTES + 1
"""Largest bundle or disclosure that is read: a statement and its line feed."""


@click.command()
@click.argument("bundle", type=file_type)
@option(
    "--genesis",
    type=file_type,
    required=True,
    help="Your own copy of the network's genesis file: what you trust.",
)
@click.option(
    "--disclosure",
    type=file_type,
    help="JSON with prompt, result and salts, to check the texts too.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as JSON.")
def verify(bundle: Path, genesis: Path, disclosure: Path | None, *, as_json: bool) -> None:
    """Verify a proof bundle or a statement bundle, claim by claim.

    Exit status 0 if all claims hold, 1 if one fails or the bundle is none, 2 if one of your own
    files is missing or malformed.
    """
    status = 2
    try:
        trusted = load_document(genesis, parse_genesis)
        shown = None
        if disclosure is not None:
            shown = load_document(disclosure, parse_disclosure, MAX_FILE_BYTES)
        data = read_bounded(bundle, MAX_FILE_BYTES)
        if is_statement(data) and shown is not None:
            raise click.UsageError("a disclosure is of one receipt, this is a statement of many")
        status = 1
        verdict = (
            verify_statement(data, genesis=trusted)
            if is_statement(data)
            else verify_bundle(data, genesis=trusted, disclosure=shown)
        )
    except LedgerError as error:
        click.echo(f"Error: {error}", err=True)
        if as_json:
            click.echo(msgspec.json.encode({"verified": False, "error": str(error)}))
        sys.exit(status)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(verdict)).decode())
    elif isinstance(verdict, StatementVerdict):
        print_statement(verdict)
    else:
        print_verdict(verdict)
    sys.exit(0 if verdict.verified else 1)
