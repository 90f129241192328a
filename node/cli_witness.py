"""`aitbc witness`: what a follower needs besides, to co-sign what it follows."""

from __future__ import annotations

from collections.abc import Sequence

import click

from ledger.checkpoint import witness_key
from ledger.errors import StoreError
from node.datadir import DataDirectory
from node.witness import open_identity


def prepare_witness(data: DataDirectory, *, sources: Sequence[str]) -> None:
    """Make the witness' key and memory, or check those that are there, and say whose they are.

    Raises:
        StoreError: there is nothing to follow, or key and memory do not belong together.
    """
    if not sources:
        raise StoreError(
            "a witness follows a network: give --follow URL, and --genesis FILE at its first start"
        )
    key, store = open_identity(data)
    store.close()
    click.echo(f"witness {key.account}", err=True)
    click.echo(f"its key for other tools: {witness_key(key.account)}", err=True)
