"""Measure a node beside peers that do the same work, and print one table.

    make bench-peers                           everything, some minutes
    make bench-peers ARGS="--quick"            one short round
    make bench-peers ARGS="--only arq"         the node beside one peer
    make bench-peers ARGS="--json FILE --markdown FILE --plots FOLDER"

All take turns, round after round. docs/peers.md says what each does, and what is not equal.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Final

import msgspec

from scripts.bench_figures.measure import describe_machine
from scripts.bench_figures.node_process import ROOT
from scripts.bench_peers.peers import (
    Take,
    Turn,
    open_anvil,
    open_arq,
    open_celery,
    open_node,
    open_procrastinate,
    open_web,
)
from scripts.bench_peers.plots import draw_all
from scripts.bench_peers.servers import PeerError
from scripts.bench_peers.table import build_rows, format_markdown, format_text

PEERS: Final = ("arq", "celery", "procrastinate", "web", "anvil")
FSYNC: Final = ("always", "everysec")
CONNECTIONS: Final = 32
ROUNDS: Final = 3
SECONDS: Final = 4.0
QUICK_SECONDS: Final = 1.0
TERMINATED: Final = 143
FAILURES: Final = (PeerError, OSError, subprocess.SubprocessError)
"""Of one peer, which do not keep the others from being measured."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command. Returns the exit status."""
    options = _build_parser().parse_args(arguments)
    # As Ctrl-C does: whatever was started ends with us.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    rounds, seconds = (1, QUICK_SECONDS) if options.quick else (options.rounds, SECONDS)
    machine = describe_machine()
    print(machine)
    with open_folder() as folder:
        turns = take_turns(folder, options.only or PEERS, rounds, seconds)
    rows = build_rows(turns)
    print(format_text(rows))
    if options.json is not None:
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(rows)) + b"\n")
    if options.markdown is not None:
        options.markdown.write_text(f"{machine}.\n\n{format_markdown(rows)}\n", encoding="utf-8")
    if options.plots is not None:
        for name, text in draw_all(rows).items():
            (options.plots / name).write_text(text, encoding="utf-8")
    return 0 if rows and all(turns.values()) else 1


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument(
        "--only", action="append", choices=PEERS, help="this peer alone; repeatable"
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="turns of each")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there, too")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="the table for a document")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="draw plots there")
    return parser


@contextmanager
def open_folder() -> Iterator[Path]:
    """A folder for everybody's data, which is removed at the end."""
    build = ROOT / "build"
    build.mkdir(exist_ok=True)
    # On the disk whose speed counts, not in memory.
    with tempfile.TemporaryDirectory(prefix="bench-peers-", dir=build) as folder:
        yield Path(folder)


def take_turns(
    folder: Path, peers: Sequence[str], rounds: int, seconds: float
) -> dict[str, list[Turn]]:
    """Turns of the node and of these peers, one after another, round after round.

    A peer that is missing, or fails twice in a turn, is named and has no turns.
    """
    with ExitStack() as stack:
        takes = open_takes(folder, peers, stack)
        turns: dict[str, list[Turn]] = {name: [] for name in takes}
        for number in range(rounds):
            print(f"round {number + 1}", file=sys.stderr)
            for name, take in list(takes.items()):
                try:
                    turns[name].append(_take_turn(name, take, seconds))
                except FAILURES as error:
                    print(f"{name} is not measured: {error}", file=sys.stderr)
                    del takes[name]
                    turns[name] = []
    return turns


def _take_turn(name: str, take: Take, seconds: float) -> Turn:
    try:
        return take(CONNECTIONS, seconds)
    except FAILURES as error:
        print(f"{name} failed, and has another turn: {error}", file=sys.stderr)
        return take(CONNECTIONS, seconds)


def open_takes(folder: Path, peers: Sequence[str], stack: ExitStack) -> dict[str, Take]:
    """Everybody's turns by name; what runs for them ends with the stack."""
    takes: dict[str, Take] = {}

    def add(name: str, opened: AbstractContextManager[Take]) -> None:
        try:
            takes[name] = stack.enter_context(opened)
        except FAILURES as error:
            print(f"{name} is not measured: {error}", file=sys.stderr)

    cycles, records = stack.enter_context(open_node(folder))
    if set(peers) - {"anvil"}:
        takes["node"] = cycles
    for fsync in FSYNC:
        if "arq" in peers:
            add(f"arq-{fsync}", open_arq(folder / "arq", fsync))
        if "celery" in peers:
            add(f"celery-{fsync}", open_celery(folder / "celery", fsync))
    if "procrastinate" in peers:
        add("procrastinate", open_procrastinate(folder))
    if "web" in peers:
        add("web", open_web(folder))
    if "anvil" in peers:
        takes["records"] = records
        add("anvil", open_anvil(folder))
    return takes


if __name__ == "__main__":
    raise SystemExit(main())
