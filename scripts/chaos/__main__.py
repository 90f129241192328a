"""Kill, pause, cut off and fill a real network under load; hold it to what it told its clients.

    make chaos MINUTES=10
    make chaos MINUTES=1 ARGS="--seed 7"     the faults of seed 7 once more
    make chaos ARGS=--postgresql             front-ends that share a PostgreSQL, and that server

Times are printed, never judged; a broken promise is, and ends with status 1.
"""

from __future__ import annotations

import argparse
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from scripts.bench_figures.measure import describe_machine, percentile
from scripts.bench_figures.node_process import ROOT
from scripts.bench_peers.servers import PeerError
from scripts.chaos.database import Database
from scripts.chaos.disk import mounted
from scripts.chaos.network import NetworkRun
from scripts.chaos.nodes import ChaosError
from scripts.chaos.rounds import Outcome
from scripts.chaos.shared import SharedRun

MAX_SHOWN = 20


def run_chaos(folder: Path, *, seconds: float, seed: int) -> Outcome:
    """Run it in an empty directory.

    Raises:
        ChaosError: the network did not heal, or a node ended by itself.
    """
    with mounted(folder / "disk") as disk:
        if disk is None:
            print("no disk is filled: mounting one needs root", file=sys.stderr)
        return NetworkRun(folder / "network", disk, seed=seed).run(seconds)


def run_shared_chaos(folder: Path, *, seconds: float, seed: int) -> Outcome:
    """The same with front-ends on one PostgreSQL, which is started here.

    Raises:
        ChaosError: the nodes did not heal, or one ended by itself.
        PeerError: PostgreSQL is not installed.
    """
    database = Database(folder)
    with database.running():
        return SharedRun(folder / "nodes", database, seed=seed).run(seconds)


def list_lines(outcome: Outcome) -> Iterator[str]:
    """Yield the figures, one a line."""
    verdict, history = outcome.verdict, outcome.history
    counts = ", ".join(f"{count} {name}" for name, count in sorted(outcome.counts.items()))
    yield f"{outcome.rounds} rounds of faults: {counts}"
    yield f"heal: {describe_times([s * 1000 for s in outcome.heal_s])}"
    yield f"complete to final: {describe_times(verdict.commit_ms)}"
    ends = ", ".join(
        f"{sum(end == state for end in history.ended.values()):,} {state}"
        for state in ("completed", "failed", "cancelled")
    )
    yield f"{len(history.submitted):,} jobs accepted: {ends}"
    yield (
        f"{verdict.receipts:,} receipts in {verdict.height:,} blocks, "
        f"{len(history.completed):,} acknowledged; {history.looks:,} looks at final ones"
    )
    refused = ", ".join(f"{count} {name}" for name, count in sorted(history.refused.items()))
    yield f"requests without a good answer: {refused or 'none'}"
    yield (
        f"logs: {outcome.complaints} warnings and errors, "
        f"{outcome.tracebacks} exceptions where no disk was full"
    )
    yield (
        f"{len(verdict.lost_writes)} lost acknowledged writes, "
        f"{len(verdict.lost_finals)} lost finals, {len(verdict.forks)} forks, "
        f"{len(verdict.double_receipts)} double receipts, "
        f"{len(verdict.stuck_jobs)} jobs without an end"
    )
    for fault in verdict.faults[:MAX_SHOWN]:
        yield f"BROKEN: {fault}"


def describe_times(times_ms: Sequence[float]) -> str:
    """Return median and tail."""
    if not times_ms:
        return "none"
    p50, p99 = (percentile(times_ms, share) for share in (0.5, 0.99))
    return f"p50 {p50:,.0f} ms, p99 {p99:,.0f} ms, most {max(times_ms):,.0f} ms ({len(times_ms):,})"


def main(arguments: list[str] | None = None) -> int:
    """Run the command. Returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=None, help="drawn and printed if not given")
    parser.add_argument(
        "--postgresql", action="store_true", help="front-ends on one PostgreSQL instead"
    )
    options = parser.parse_args(arguments)
    run = run_shared_chaos if options.postgresql else run_chaos
    seed = secrets.randbelow(1 << 32) if options.seed is None else options.seed
    print(describe_machine())
    print(f"seed {seed}", flush=True)
    build = ROOT / "build"
    build.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="chaos-", dir=build))
    try:
        outcome = run(folder, seconds=options.minutes * 60, seed=seed)
        faults, lines = outcome.verdict.faults, list(list_lines(outcome))
    except (ChaosError, PeerError) as error:
        faults, lines = [str(error)], [f"BROKEN: {error}"]
    except KeyboardInterrupt:
        faults, lines = [], ["Stopped."]
    print("\n".join(lines))
    if faults:
        print(f"ledgers and logs are kept in {folder}", file=sys.stderr)
    else:
        shutil.rmtree(folder)
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
