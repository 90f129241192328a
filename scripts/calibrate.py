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
from typing import NamedTuple

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
TUNED = 40
"""Answers of the tuning set that each auditor looks at."""


class Pair(NamedTuple):
    """Who answers, and which model audits."""

    provider: Provider
    model: str = "base"
    most: int = 1_000
    """Answers that are looked at."""

    @property
    def name(self) -> str:
        """As a row is called."""
        auditor = "" if self.model == "base" else f", audited by {self.model}"
        return f"{self.provider.name}{auditor}"


HONEST_PAIRS = [
    *(Pair(provider) for provider in HONEST),
    Pair(HONEST[0], "fp32-head", 40),
    Pair(HONEST[0], "half", 40),
    Pair(HONEST[0], "float16", 20),
]
CHEAT_PAIRS = [Pair(cheat) for cheat in CHEATS]
INTEGER_PAIRS = [Pair(cheat, cheat.model, 20) for cheat in CHEATS if cheat.model == "int8-layers"]
"""Honest among themselves: what an export with accuracy level 4 makes of its own answers."""


class Calibration:
    """Everything in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._shop = Workshop(folder)
        self._auditors: dict[str, Auditor] = {}

    def draw(self) -> None:
        """Let everybody answer; no cheat has a part in the choice of thresholds."""
        for name, provider in [*itertools.product(SETS, HONEST), *(("report", c) for c in CHEATS)]:
            drawn = draw_all(name, provider, self._shop, self._answers(name, provider))
            print(f"{name}, {provider.name}: {len(drawn)} answers", flush=True)

    def audit(self) -> None:
        """Audit what there is."""
        for pair in HONEST_PAIRS:
            self._audit("tuning", pair, TUNED)
        for pair in [*HONEST_PAIRS, *CHEAT_PAIRS, *INTEGER_PAIRS]:
            self._audit("report", pair, pair.most)
        drawn = read_lines(self._answers("report", HONEST[0]), Drawn)
        for alteration in ALTERATIONS:
            path = self._measures("report", alteration, "base")
            audit_altered("report", alteration, self._auditor("base"), drawn, path)

    def _audit(self, name: str, pair: Pair, most: int) -> None:
        drawn = read_lines(self._answers(name, pair.provider), Drawn)[: min(most, pair.most)]
        path = self._measures(name, pair.provider.name, pair.model)
        audited = audit_all(name, self._auditor(pair.model), drawn, path)
        print(f"{name}, {pair.name}: {len(audited)} audits", flush=True)

    def print_tables(self) -> None:
        """Print what was found."""
        for name in SETS:
            print(f"\n{name}, honest\n")
            print_honest(self._rows(name, HONEST_PAIRS), sums_up=True)
        print("\nreport, integer products on both sides\n")
        print_honest(self._rows("report", INTEGER_PAIRS), sums_up=False)
        print("\nreport, cheats\n")
        altered = [Pair(Provider(name=alteration)) for alteration in ALTERATIONS]
        print_cheats(self._rows("report", [*CHEAT_PAIRS, *altered]))

    def print_costs(self) -> None:
        """Measure and print costs."""
        print_costs(measure_costs(self._shop))

    def _rows(self, name: str, pairs: list[Pair]) -> Iterator[tuple[str, list[Audited]]]:
        for pair in pairs:
            path = self._measures(name, pair.provider.name, pair.model)
            if audited := read_lines(path, Audited):
                yield pair.name, audited

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
