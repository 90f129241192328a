"""How fast a new node gets a whole chain from a running one: fetched, verified, stored."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from statistics import median

from ledger.errors import StoreError
from ledger.keys import forget_signatures
from ledger.store.chain import ChainStore
from ledger.views import SyncProgress
from node.clock import read_clock_ms
from node.datadir import DataDirectory
from node.sync import Syncer
from node.sync.progress import describe_progress
from scripts.bench_figures.measure import MICROS, Plan, Row
from scripts.bench_figures.node_process import make_data_directory, run_node
from scripts.bench_figures.references import Signatures
from scripts.generate import INTERVAL_MS, generate

SIGNATURES_PER_RECEIPT = 2
TIMEOUT_S = 600
CORES = os.cpu_count() or 1


def measure_sync(plan: Plan) -> Iterator[Row]:
    """Sync from a node process over the loopback, and in turns with it verify alone on all cores.

    The node that serves the blocks runs on the same cores.
    """
    created_ms = read_clock_ms() - plan.synced * INTERVAL_MS
    data = make_data_directory(plan.folder / "synced", created_ms=created_ms)
    generate(data, receipts=plan.synced, processes=CORES)
    numbers = count()
    limits, rates, costs, served = [], [], [], []
    with run_node(data) as node:
        for _ in range(plan.rounds):
            limits.append(_verify_on_all_cores(plan.slice_s) / SIGNATURES_PER_RECEIPT)
            path = plan.folder / f"synced-{next(numbers)}.db"
            forget_signatures()
            served_s, spent_s, began = node.cpu_s, time.process_time(), time.perf_counter()
            _sync(data, path, f"http://127.0.0.1:{node.port}")
            rates.append(plan.synced / (time.perf_counter() - began))
            costs.append((time.process_time() - spent_s) * MICROS / plan.synced)
            served.append((node.cpu_s - served_s) * MICROS / plan.synced)
    yield Row(
        figure=f"receipts synced from a node, {CORES} cores",
        value=median(rates),
        unit="/s",
        reference=f"{SIGNATURES_PER_RECEIPT} libsodium verifications, {CORES} cores",
        reference_value=median(limits),
        goal="ratio >= 0.75",
        cpu_micros=median(costs),
    )
    yield Row(
        figure="receipts served to a syncing node, per core",
        value=MICROS / median(served),
        unit="/s",
        cpu_micros=median(served),
    )


def _verify_on_all_cores(slice_s: float) -> float:
    """Return libsodium verifications per second, all cores together."""
    ends_at = time.perf_counter() + slice_s

    def verify() -> int:
        signatures, done = Signatures(), 0
        while time.perf_counter() < ends_at:
            done += signatures.verify()
        return done

    with ThreadPoolExecutor(CORES) as pool:
        turns = [pool.submit(verify) for _ in range(CORES)]
        return sum(turn.result() for turn in turns) / slice_s


def _sync(data: DataDirectory, path: Path, url: str) -> None:
    """Get the whole chain into a new file.

    Raises:
        StoreError: it did not end well.
    """
    with contextlib.closing(ChainStore(path, data.load_genesis())) as chain:
        ended = threading.Event()

        def show(progress: SyncProgress) -> None:
            if progress.state == "idle" and progress.height:
                ended.set()

        syncer = Syncer(
            tip=chain.tip,
            apply=chain.append_verified,
            sources=lambda: [url],
            follow=lambda: True,
            failed=lambda _error: ended.set(),
            shown=show,
        )
        syncer.start()
        ended.wait(TIMEOUT_S)
        syncer.stop()
        if syncer.progress.height != syncer.progress.target_height or not chain.tip().height:
            raise StoreError(f"sync ended at {describe_progress(syncer.progress)}")
