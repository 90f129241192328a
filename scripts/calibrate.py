"""Calibrate audits: what honest answers and cheats measure, and what the thresholds make of it.

    python -m scripts.calibrate FOLDER                    everything: half an hour of one core
    python -m scripts.calibrate FOLDER --only draw        answers alone; also: audit, tables

Thresholds of `ledger/replay.py` are chosen on the prompts "tuning", and the tables of
docs/audits.md are of the prompts "report". Answers and measures are kept in the folder: a run that
was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path

from scripts.calibration.auditing import (
    ALTERATIONS,
    Audited,
    Auditor,
    audit_all,
    audit_altered,
    measure_costs,
)
from scripts.calibration.drawing import SETS, Drawn, draw_all, read_lines
from scripts.calibration.models import Workshop
from scripts.calibration.providers import CHEATS, HONEST, Provider
from scripts.calibration.tables import print_cheats, print_costs, print_honest

PARTS = ("draw", "audit", "tables")
PAIRS = [
    *((provider, "base") for provider in HONEST),
    (HONEST[0], "fp32-head"),
    (HONEST[0], "half"),
    (HONEST[0], "float16"),
]
"""Honest providers, and who audits them."""
OTHERS = 40
"""Answers at most that an auditor with another model looks at, and of the tuning set."""


class Calibration:
    """Everything in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._shop = Workshop(folder)
        self._auditors: dict[str, Auditor] = {}

    def draw(self) -> None:
        """Let everybody answer."""
        for providers in (HONEST, CHEATS):
            for name, provider in itertools.product(SETS, providers):
                drawn = draw_all(name, provider, self._shop, self._answers(name, provider))
                print(f"{name}, {provider.name}: {len(drawn)} answers", flush=True)

    def audit(self) -> None:
        """Audit what there is."""
        for name in SETS:
            for provider, model in [*PAIRS, *((cheat, "base") for cheat in CHEATS)]:
                drawn = read_lines(self._answers(name, provider), Drawn)
                drawn = drawn if name == "report" and model == "base" else drawn[:OTHERS]
                path = self._measures(name, provider.name, model)
                audited = audit_all(name, provider, self._auditor(model), drawn, path)
                print(f"{name}, {provider.name} by {model}: {len(audited)} audits", flush=True)
        drawn = read_lines(self._answers("report", HONEST[0]), Drawn)
        for alteration in ALTERATIONS:
            path = self._measures("report", alteration, "base")
            audit_altered("report", alteration, self._auditor("base"), drawn, path)

    def print_tables(self) -> None:
        """Print what was found."""
        for name in SETS:
            print(f"\n{name}, honest\n")
            print_honest(self._rows(name, [(one.name, model) for one, model in PAIRS]))
            print(f"\n{name}, cheats\n")
            cheats = [*(cheat.name for cheat in CHEATS), *ALTERATIONS]
            print_cheats(self._rows(name, [(cheat, "base") for cheat in cheats]))

    def print_costs(self) -> None:
        """Measure and print costs."""
        print_costs(measure_costs(self._shop))

    def _rows(self, name: str, pairs: list[tuple[str, str]]) -> Iterator[tuple[str, list[Audited]]]:
        for provider, model in pairs:
            audited = read_lines(self._measures(name, provider, model), Audited)
            if audited:
                yield (provider if model == "base" else f"{provider}, by {model}"), audited

    def _auditor(self, model: str) -> Auditor:
        if model not in self._auditors:
            self._auditors[model] = Auditor(self._shop, model)
        return self._auditors[model]

    def _answers(self, name: str, provider: Provider) -> Path:
        return self._folder / f"{name} {provider.name}.jsonl"

    def _measures(self, name: str, provider: str, model: str) -> Path:
        return self._folder / f"{name} {provider} by {model}.audits.jsonl"


def main() -> None:
    """Draw, audit, and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where models, answers and measures are kept")
    parser.add_argument("--only", choices=PARTS, help="one part alone")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    calibration = Calibration(arguments.folder)
    parts = [arguments.only] if arguments.only else PARTS
    if "draw" in parts:
        calibration.draw()
    if "audit" in parts:
        calibration.audit()
    if "tables" in parts:
        calibration.print_tables()
        calibration.print_costs()


if __name__ == "__main__":
    main()
