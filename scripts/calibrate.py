"""Calibrate audits: what honest answers and cheats measure, and what the thresholds make of it.

    python -m scripts.calibrate FOLDER                    everything: half an hour of one core
    python -m scripts.calibrate FOLDER --only draw        answers alone; also: audit, tables
    python -m scripts.calibrate FOLDER --gpu              instead what a GPU answers and audits

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

from miner.runtime import ProviderChoice
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
from scripts.calibration.providers import CHEATS, HONEST, ON_A_GPU, Provider
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
    audits_on: ProviderChoice = "cpu"

    @property
    def auditor(self) -> str:
        """The model, and where it runs if that is a GPU."""
        return self.model if self.audits_on == "cpu" else f"{self.model} on a GPU"

    @property
    def name(self) -> str:
        """As a row is called."""
        auditor = "" if self.auditor == "base" else f", audited by {self.auditor}"
        return f"{self.provider.name}{auditor}"


HONEST_PAIRS = [
    *(Pair(provider) for provider in HONEST),
    Pair(HONEST[0], "fp32-head", 40),
    Pair(HONEST[0], "half", 40),
    Pair(HONEST[0], "float16", 20),
]
GPU_PAIRS = [
    Pair(ON_A_GPU),
    Pair(ON_A_GPU, ON_A_GPU.model, audits_on="cuda"),
    Pair(HONEST[0], ON_A_GPU.model, audits_on="cuda"),
]
CHEAT_PAIRS = [Pair(cheat) for cheat in CHEATS]
INTEGER_PAIRS = [Pair(cheat, cheat.model, 20) for cheat in CHEATS if cheat.model == "int8-layers"]
"""Honest among themselves: what an export with accuracy level 4 makes of its own answers."""


class Calibration:
    """Everything in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._shop = Workshop(folder)
        self._auditors: dict[tuple[str, ProviderChoice], Auditor] = {}

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
        self._audit_altered(CHEAT_PAIRS[0], HONEST[0])

    def try_gpu(self) -> None:
        """Let a GPU answer, and audit its answers and those of a processor; print what comes out.

        What a GPU says of altered answers is of its own answers.
        """
        for provider in (ON_A_GPU, HONEST[0]):
            drawn = draw_all("report", provider, self._shop, self._answers("report", provider))
            print(f"report, {provider.name}: {len(drawn)} answers", flush=True)
        for pair in GPU_PAIRS:
            self._audit("report", pair, pair.most)
        self._audit_altered(GPU_PAIRS[1], ON_A_GPU)
        print("\nreport, honest\n")
        print_honest(self._rows("report", GPU_PAIRS), sums_up=True)
        print("\nreport, cheats, audited on a GPU\n")
        altered = [GPU_PAIRS[1]._replace(provider=Provider(name=name)) for name in ALTERATIONS]
        print_cheats(self._rows("report", altered))

    def _audit_altered(self, pair: Pair, provider: Provider) -> None:
        """Audit a provider's answers, altered, as a pair's auditor does."""
        drawn = read_lines(self._answers("report", provider), Drawn)
        for alteration in ALTERATIONS:
            path = self._measures("report", pair._replace(provider=Provider(name=alteration)))
            audit_altered("report", alteration, self._auditor(pair), drawn, path)

    def _audit(self, name: str, pair: Pair, most: int) -> None:
        drawn = read_lines(self._answers(name, pair.provider), Drawn)[: min(most, pair.most)]
        path = self._measures(name, pair)
        audited = audit_all(name, self._auditor(pair), drawn, path)
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
            path = self._measures(name, pair)
            if audited := read_lines(path, Audited):
                yield pair.name, audited

    def _auditor(self, pair: Pair) -> Auditor:
        key = (pair.model, pair.audits_on)
        if key not in self._auditors:
            self._auditors[key] = Auditor(self._shop, *key)
        return self._auditors[key]

    def _answers(self, name: str, provider: Provider) -> Path:
        return self._folder / f"{name} {provider.name}.jsonl"

    def _measures(self, name: str, pair: Pair) -> Path:
        return self._folder / f"{name} {pair.provider.name} by {pair.auditor}.audits.jsonl"


def main() -> None:
    """Draw, audit, and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where models, answers and measures are kept")
    parser.add_argument("--only", choices=PARTS, help="one part alone")
    parser.add_argument("--gpu", action="store_true", help="try a GPU instead, on one set")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    calibration = Calibration(arguments.folder)
    if arguments.gpu:
        calibration.try_gpu()
        return
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
