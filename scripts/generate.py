"""Make a data directory with a long chain: really signed receipts in certified blocks.

    make generate RECEIPTS=1000000
    .venv/bin/python -m scripts.generate DIRECTORY --receipts 1000000

It tells months of a market: models, miners and clients come and go, prices fall, answers are
audited, jobs fail. Everything is as a node would have made it: fsck finds no fault, and
`./aitbc run --data DIRECTORY` goes on from there. Jobs have no texts; they were removed.

A second call finds what is there and adds only what is missing, so it may be interrupted. The same
seed, length and end make the same chain, down to the keys: never use such a directory for anything
that counts.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

import msgspec

from ledger.block import Tip
from ledger.errors import LedgerError, StoreError
from ledger.store.chain import ChainStore
from node.clock import read_clock_ms
from node.datadir import DataDirectory, create_data_directory
from node.files import write_public
from scripts.generating.market import fill_market
from scripts.generating.months import BATCH_BLOCKS, DAY_MS, Months
from scripts.generating.people import draw_bytes
from scripts.generating.sealing import Progress, store_story
from scripts.generating.story import INTERVAL_MS, Even

__all__ = ["INTERVAL_MS", "Order", "generate", "generate_months", "main"]

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_BLOCK_RECEIPTS = 500
DEFAULT_DAYS = 180
REPORT_S = 1.0
"""How often a person is told how far it is."""
REPORT_LOG_S = 20.0
"""The same in a log."""


class Order(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a directory was made of; `generated.json` in it says so."""

    story: int = 1
    """Grows when the same numbers would make another chain."""
    seed: int
    receipts: int
    days: int
    end_ms: int
    """When the last block is sealed, about."""


def generate(
    data: DataDirectory,
    *,
    receipts: int,
    block_receipts: int = DEFAULT_BLOCK_RECEIPTS,
    processes: int = 1,
) -> Tip:
    """Append receipts at even intervals to the chain of a directory; return its new tip.

    Raises:
        StoreError: the directory is missing, damaged or in use.
    """
    with data.lock():
        first = _read_tip(data).tree_size
        recipe = Even(root=data.root, first=first, receipts=receipts, block_receipts=block_receipts)
        return store_story(data, recipe, processes=processes)


def generate_months(
    data: DataDirectory,
    order: Order,
    *,
    processes: int = 1,
    batch_blocks: int = BATCH_BLOCKS,
    progress: Progress = lambda _stored: None,
    progress_of_jobs: Progress = lambda _stored: None,
) -> Tip:
    """Make the directory of an order, or what is missing of it; return the tip of its chain.

    Raises:
        StoreError: the directory is of another order, damaged or in use.
    """
    if not data.root.exists():
        _found(data, order)
    if (found := read_order(data)) != order:
        raise StoreError(
            f"{data.root}: was made of {found and msgspec.json.encode(found).decode()}, expected "
            f"{msgspec.json.encode(order).decode()}; remove it or choose another directory"
        )
    recipe = Months(
        root=data.root,
        seed=order.seed,
        receipts=order.receipts,
        days=order.days,
        batch_blocks=batch_blocks,
    )
    with data.lock():
        tip = store_story(
            data,
            recipe,
            done=_read_tip(data).height,
            processes=processes,
            progress=progress,
        )
        fill_market(data, recipe, recipe.build(), progress_of_jobs)
    return tip


def read_order(data: DataDirectory) -> Order | None:
    """Return what a directory was made of, None if it says nothing of it."""
    try:
        return msgspec.json.decode((data.root / "generated.json").read_bytes(), type=Order)
    except (OSError, msgspec.MsgspecError):
        return None


def _found(data: DataDirectory, order: Order) -> None:
    numbers = count()
    create_data_directory(
        data.root,
        network="aitbc-generated",
        name="authority-1",
        now_ms=order.end_ms - order.days * DAY_MS,
        draw=lambda size: draw_bytes(f"directory {order.seed} {next(numbers)}", size),
    )
    write_public(data.root / "generated.json", msgspec.json.encode(order) + b"\n")


def _read_tip(data: DataDirectory) -> Tip:
    chain = ChainStore(data.ledger, data.load_genesis())
    try:
        return chain.tip()
    finally:
        chain.close()


class _Report:
    """Tells how far it is, now and then."""

    def __init__(self, what: str, total: int) -> None:
        self._what = what
        self._total = total
        self._began: tuple[float, int] | None = None
        self._told = 0.0
        self._every_s = REPORT_S if sys.stderr.isatty() else REPORT_LOG_S

    def __call__(self, done: int) -> None:
        now = time.monotonic()
        if self._began is None:
            self._began = now, done
        if now - self._told < self._every_s and done < self._total:
            return
        self._told = now
        began, before = self._began
        rate = (done - before) / max(now - began, 0.001)
        print(f"{self._what}: {done:,} of {self._total:,}, {rate:,.0f}/s", file=sys.stderr)


def main(arguments: list[str] | None = None) -> int:
    """Run the command. Returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "directory", type=Path, nargs="?", help="data directory; build/generated-RECEIPTS if none"
    )
    parser.add_argument("--receipts", type=int, default=10_000)
    parser.add_argument("--days", type=int, default=DEFAULT_DAYS, help="how long it took")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--end", metavar="DATE", help="when it ends: today's midnight in UTC, or as it was made"
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args(arguments)
    data = DataDirectory(options.directory or ROOT / "build" / f"generated-{options.receipts}")
    order = Order(
        seed=options.seed,
        receipts=options.receipts,
        days=options.days,
        end_ms=_choose_end(data, options.end),
    )
    try:
        tip = generate_months(
            data,
            order,
            processes=options.processes,
            progress=_Report("transactions", options.receipts),
            progress_of_jobs=_Report("jobs", options.receipts),
        )
    except LedgerError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("broken off; the same command goes on from here", file=sys.stderr)
        return 130
    print(
        f"{data.root}: {options.receipts:,} receipts and {tip.tree_size - options.receipts:,} "
        f"audits in {tip.height:,} blocks"
    )
    return 0


def _choose_end(data: DataDirectory, given: str | None) -> int:
    if given is not None:
        return int(datetime.fromisoformat(given).replace(tzinfo=UTC).timestamp()) * 1000
    made = read_order(data)
    return made.end_ms if made is not None else read_clock_ms() // DAY_MS * DAY_MS


if __name__ == "__main__":
    raise SystemExit(main())
