"""`aitbc checkpoint`: is the ledger that a node shows today the one that it showed before?"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import click

from ledger import merkle
from ledger.authorities import AuthoritySet
from ledger.block import Genesis, parse_genesis
from ledger.checkpoint import (
    Checkpoint,
    SignedCheckpoint,
    build_origin,
    log_key,
    log_keys,
    read_checkpoint,
    verify_checkpoint,
    witness_key,
)
from ledger.consistency import parse_consistency, verify_extension, verify_head
from ledger.errors import InvalidNoteError, InvalidProofError, LedgerError
from ledger.note import NoteKey
from node.cli.options import default_url_option, file_type, option
from node.files import load_document, write_public
from node.restclient import RestClient

_REFUSED, _OWN_FILE = 1, 2


@click.command()
@default_url_option
@option(
    "--genesis",
    type=file_type,
    default=None,
    show_default=False,
    help="Your own copy of the network's genesis file; without it the node's own is believed.",
)
@click.option("--since", type=file_type, help="A checkpoint that you kept; it must be extended.")
@click.option("--save", type=file_type, help="Keep the checkpoint there, for --since.")
@click.option(
    "--key",
    "accounts",
    multiple=True,
    help="Account that must have signed, instead of any authority; repeatable.",
)
@click.option(
    "--witness", "witnesses", multiple=True, help="Witness that must have co-signed; repeatable."
)
def checkpoint(
    *,
    url: str,
    genesis: Path | None,
    since: Path | None,
    save: Path | None,
    accounts: tuple[str, ...],
    witnesses: tuple[str, ...],
) -> None:
    """Fetch a node's checkpoint and verify who signed it, that it is final, and what it extends.

    Exit status 0 if all of that holds, 1 if the node shows something else or nothing, 2 if one of
    your own files is missing or malformed.
    """
    with _ends_with(_OWN_FILE):
        trusted = load_document(genesis, parse_genesis) if genesis else None
        kept = load_document(since, read_checkpoint) if since else None
        required = [witness_key(account) for account in witnesses]
        for key in required:
            str(key)  # refuses what is no account before anybody is asked
    with _ends_with(_REFUSED), RestClient(url) as node:
        network = trusted or parse_genesis(node.genesis())
        data = node.checkpoint()
        old = kept or _empty_tree(network)
        signed = _verify(node, network, data, old=old, accounts=accounts, required=required)
    _tell(signed, network, kept, is_trusted=trusted is not None)
    if save:
        with _ends_with(_OWN_FILE):
            write_public(save, signed.encode())


def _verify(
    node: RestClient,
    genesis: Genesis,
    data: bytes,
    *,
    old: Checkpoint,
    accounts: tuple[str, ...],
    required: list[NoteKey],
) -> SignedCheckpoint:
    """Check everything that the node shows. Raises LedgerError with the reason."""
    new, origin = read_checkpoint(data), build_origin(genesis)
    if old.origin != origin:
        raise InvalidProofError(f"the kept checkpoint is of {old.origin}, the node of {origin}")
    if new.size < old.size:
        raise InvalidProofError(
            f"the node shows {new.size} leaves, the kept checkpoint has {old.size}: "
            "it lags behind, or it has lost history"
        )
    proof = parse_consistency(node.consistency(old.size, new.size))
    verify_extension(proof, old=(old.size, old.root), new=(new.size, new.root))
    signers: tuple[AuthoritySet, ...] = (genesis.authority_set,)
    if new.size:
        if not proof.head:
            raise InvalidProofError(f"the node shows no final block that ends at {new.size} leaves")
        signers = verify_head(proof.head, genesis=genesis, size=new.size, root=new.root)
    known = [log_key(origin, account) for account in accounts] or [
        key for members in signers for key in log_keys(origin, members)
    ]
    verify_checkpoint(data, origin=origin, keys=known)
    signed = verify_checkpoint(data, origin=origin, keys=[*known, *required])
    found = {signature.key for signature in signed.signatures}
    for key in required + (known if accounts else []):
        if key not in found:
            raise InvalidNoteError(f"checkpoint: {key.account} has not signed it")
    return signed


def _empty_tree(genesis: Genesis) -> Checkpoint:
    return Checkpoint(origin=build_origin(genesis), size=0, root=merkle.EMPTY_ROOT)


def _tell(
    signed: SignedCheckpoint, genesis: Genesis, kept: Checkpoint | None, *, is_trusted: bool
) -> None:
    new = signed.checkpoint
    click.echo(f"{new.origin}: {new.size} transactions under root {new.root.hex()}")
    names = {member.account: member.name for member in genesis.authority_set.members}
    for signature in signed.signatures:
        account = signature.key.account
        if signature.time_s is None:
            click.echo(f"  signed by        {account} {names.get(account, '')}".rstrip())
        else:
            click.echo(f"  co-signed by     {account} at {_format_time(signature.time_s)}")
    click.echo("  final            a quorum of the authorities certified the block that ends there")
    if kept:
        added = new.size - kept.size
        click.echo(f"  extends          your checkpoint of {kept.size} leaves, by {added}")
    if not is_trusted:
        click.echo(
            "  Not proved: that this is your network. The node named its own genesis; bring yours "
            "with --genesis."
        )


def _format_time(time_s: int) -> str:
    try:
        return datetime.fromtimestamp(time_s, tz=UTC).isoformat()
    except (ValueError, OverflowError, OSError):
        return f"second {time_s}"


@contextmanager
def _ends_with(status: int) -> Iterator[None]:
    try:
        yield
    except LedgerError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(status)
