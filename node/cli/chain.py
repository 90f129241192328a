"""`aitbc fsck` and `aitbc pin`: the chain in a data directory, whether its node runs or not."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import click

from ledger.encoding import encode
from ledger.errors import StoreError
from ledger.pin import parse_pin
from ledger.store.database import open_reader
from ledger.store.fsck import verify_chain
from ledger.store.reading import build_pin
from node.cli.options import data_option
from node.datadir import DataDirectory


@click.command()
@data_option
def fsck(data: Path) -> None:
    """Verify the whole ledger.db from genesis: every hash, signature, tree node and counter."""
    directory = DataDirectory(data)
    genesis = directory.load_genesis()
    shown = sys.stderr.isatty()

    def progress(height: int, last: int) -> None:
        if shown and (height % 100 == 0 or height == last):
            click.echo(f"\rblock {height} of {last}", nl=height == last, err=True)

    tip = verify_chain(directory.ledger, genesis, progress)
    click.echo(f"ok: {tip.height} blocks, {tip.tree_size} transactions, head {tip.hash.hex()}")


@click.command()
@data_option
def pin(data: Path) -> None:
    """Print the newest block as a checkpoint file for ./aitbc run --follow URL --checkpoint FILE.

    Who begins there trusts this file until all history below it is fetched and verified.
    """
    directory = DataDirectory(data)
    genesis = directory.load_genesis()
    if not directory.ledger.exists():
        raise StoreError(f"{directory.ledger}: there is no chain yet")
    with contextlib.closing(open_reader(directory.ledger)) as connection:
        connection.execute("BEGIN")
        document = encode(build_pin(connection))
    parse_pin(document, genesis)  # a damaged file must not become somebody's root of trust
    click.echo(document)
