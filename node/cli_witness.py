"""`aitbc witness`: co-sign a log's checkpoints against a chain that was verified here."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from ledger.checkpoint import witness_key
from ledger.store.chain import ChainStore
from node.assembly import read_clock_ms
from node.datadir import DataDirectory
from node.options import data_option, option
from node.treeclient import TreeClient
from node.witness import Witness, open_identity, run_witness

DEFAULT_INTERVAL_S = 10.0


@contextlib.contextmanager
def open_witness(
    data: DataDirectory, chain: ChainStore, *, url: str, clock_ms: Callable[[], int] = read_clock_ms
) -> Iterator[Witness]:
    """Put a witness of the log at `url` over an open chain, with the key of the data directory.

    Raises:
        StoreError: its key or its memory is missing or foreign.
    """
    with contextlib.ExitStack() as stack:
        key, store = open_identity(data)
        stack.callback(store.close)
        log = stack.enter_context(TreeClient(url))
        yield Witness(chain=chain, store=store, key=key, log=log, clock_ms=clock_ms)


@click.command()
@data_option
@option("--follow", required=True, help="Address of the node whose checkpoints are co-signed.")
@option(
    "--interval",
    type=click.FloatRange(0.1, 3600.0),
    default=DEFAULT_INTERVAL_S,
    help="Seconds between two rounds.",
)
@click.option("--once", is_flag=True, help="Do one round and print the co-signed checkpoint.")
def witness(data: Path, follow: str, interval: float, *, once: bool) -> None:
    """Co-sign the checkpoints of a node as far as this directory's own chain has verified them.

    The key and its memory, keys/witness.json and witness.db, are made at the first start; the
    memory is never copied, backed up or restored.
    """
    directory = DataDirectory(data)
    with contextlib.ExitStack() as stack:
        chain = ChainStore(directory.ledger, directory.load_genesis())
        stack.callback(chain.close)
        found = stack.enter_context(open_witness(directory, chain, url=follow))
        if once:
            click.echo(found.observe(), nl=False)
            return
        stop = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda _number, _frame: stop.set())
        click.echo(f"witness key {witness_key(found.account)}", err=True)
        run_witness(
            found,
            interval_s=interval,
            stop=stop,
            report=lambda sentence: click.echo(sentence, err=True),
        )
