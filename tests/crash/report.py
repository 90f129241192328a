"""Histories, the disks made of them, and the figures."""

from __future__ import annotations

import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.crash.images import Disk, name_database
from tests.crash.judge import DATABASES, judge
from tests.crash.recording import Note, Sync, recorded
from tests.crash.workload import Facts, NotedNode, Workload

STEPS = 60
"""Of one history."""
IMAGES = 50
"""Disks made of one history."""
ONLY_SYNCED = 0.2
"""Share of the disks that hold nothing but what was synced."""
MEMORY = Path("/dev/shm")
"""Images need no disk of their own that is slow; where there is none, any folder does."""


@dataclass
class Report:
    """What was done, and what came of it."""

    histories: int = 0
    writes: int = 0
    syncs: int = 0
    acknowledged: int = 0
    images: int = 0
    unsynced: Counter[str] = field(default_factory=Counter)
    """Images in which a database had something that was not synced."""
    broken: int = 0
    """Images with a fault."""
    faults: list[str] = field(default_factory=list)
    """Each with the seed of its history."""

    def list_lines(self) -> Iterator[str]:
        yield (
            f"{self.histories} histories: {self.writes} writes, {self.syncs} syncs, "
            f"{self.acknowledged} acknowledgements"
        )
        yield f"{self.images} disks after power cuts, each opened, checked and carried on"
        for name in DATABASES:
            yield f"  {name}: {self.unsynced[name]} with writes lost, kept or torn"
        yield f"{self.broken} of them had lost something that was acknowledged, or were damaged"
        yield from self.faults[:20]


def run_many(
    images: int, *, seed: int = 1, careless: bool = False, progress: Callable[[int], None] = int
) -> Report:
    """Make and judge so many disks or some more, from histories of consecutive seeds."""
    report = Report()
    while report.images < images:
        run_history(report, seed + report.histories, careless=careless)
        progress(report.images)
    return report


def run_history(report: Report, seed: int, *, careless: bool = False) -> None:
    """Add one history and its disks to a report."""
    folder = MEMORY if MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="aitbc-crash-", dir=folder) as name:
        root = Path(name)
        work = root / "work"
        work.mkdir()
        with recorded(careless=careless) as notes:
            facts = Facts(lambda: len(notes))
            node = NotedNode(work, facts)
            # Making the files is not what is acknowledged: what they hold here is on the disk.
            disk = Disk(work)
            start = len(notes)
            Workload(node, facts, seed).run(STEPS)
            taken, now_ms = list(notes), node.now_ms
            node.close()
        rng = random.Random(seed)
        cuts = _draw_cuts(taken, start, rng)
        for at in range(start, len(taken) + 1):
            for number in range(cuts[at]):
                image = root / f"{at}-{number}"
                image.mkdir()
                disk.cut(image, None if rng.random() < ONLY_SYNCED else rng)
                report.images += 1
                report.unsynced.update(disk.list_unsynced())
                faults = judge(image, facts.all, cut=at, now_ms=now_ms)
                report.broken += bool(faults)
                report.faults += [f"seed {seed}, after write or sync {at}: {f}" for f in faults]
            if at < len(taken):
                disk.follow(taken[at])
    report.histories += 1
    report.writes += len(taken)
    report.syncs += sum(isinstance(note, Sync) for note in taken)
    report.acknowledged += len(facts.all)


def _draw_cuts(notes: Sequence[Note], start: int, rng: random.Random) -> Counter[int]:
    """Draw after which notes the power is cut: as often in the work of each database."""
    places: dict[str, list[int]] = {name: [] for name in DATABASES}
    for place in range(start, len(notes)):
        places[name_database(notes[place].name)].append(place)
    return Counter(
        rng.choice(places[name]) + 1 for name in rng.choices(DATABASES, k=IMAGES) if places[name]
    )
