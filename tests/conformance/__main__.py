"""`make conformance`: schemathesis on a node of its own, for as long as one likes."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import get_args

from ledger.jobs import KeyRole
from tests.conformance.runner import REFERENCE, UNDECLARED_STATUS, Outcome, run_schemathesis
from tests.conformance.stage import Mode, open_stage

DEFAULTS = ("--max-examples", "100")


def main() -> int:
    """Return 0 if nothing was found."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.conformance",
        description=__doc__,
        epilog="Further arguments go to schemathesis run, such as --max-examples 500, --seed 7, "
        "--include-path /v1/jobs or --phases stateful; by default --max-examples 100.",
    )
    parser.add_argument("--mode", choices=get_args(Mode), action="append", help="default: both")
    parser.add_argument(
        "--role", choices=("none", *get_args(KeyRole)), action="append", help="default: all"
    )
    arguments, others = parser.parse_known_args()
    failed = [
        name
        for mode in arguments.mode or get_args(Mode)
        for name in run_mode(
            mode, arguments.role or ("none", *get_args(KeyRole)), others or list(DEFAULTS)
        )
    ]
    print(f"failed: {', '.join(failed)}" if failed else "nothing was found")
    return 1 if failed else 0


def run_mode(mode: Mode, roles: list[str], arguments: list[str]) -> list[str]:
    """Run both documents for each role on one node; returns the names of runs that failed."""
    failed = []
    with tempfile.TemporaryDirectory() as folder, open_stage(Path(folder), mode) as stage:
        for role in roles:
            for document in (None, REFERENCE):
                outcome = run_schemathesis(
                    stage,
                    Path(folder),
                    *arguments,
                    document=document,
                    role="" if role == "none" else role,
                )
                name = f"{mode}/{role}/{'reference' if document else 'served'}"
                if not report(name, outcome, {UNDECLARED_STATUS} if document else set()):
                    failed.append(name)
    return failed


def report(name: str, outcome: Outcome, expected: set[str]) -> bool:
    """Print what a run came to; tells whether it is as expected."""
    fine = outcome.codes <= expected and (bool(outcome.codes) or not outcome.failed)
    if not fine:
        print(outcome.text)
    counted = f"{outcome.tested} operations, {outcome.requests} requests"
    print(
        f"{name:<26} {counted}: {', '.join(sorted(outcome.codes)) or 'nothing found'}", flush=True
    )
    return fine


if __name__ == "__main__":
    sys.exit(main())
