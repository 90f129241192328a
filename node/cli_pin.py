"""`aitbc pin`: where the chain stands, as a file that a new follower can begin at."""

from __future__ import annotations

import contextlib
from pathlib import Path

import click

from ledger.encoding import encode
from ledger.errors import StoreError
from ledger.pin import parse_pin
from ledger.store.database import open_reader
from ledger.store.reading import build_pin
from node.datadir import DataDirectory
from node.options import data_option


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
