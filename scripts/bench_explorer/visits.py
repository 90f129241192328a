"""Times to the first byte: one request after another on one connection, as from a browser.

All figures take turns, so what the machine's neighbours do meets all of them alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from scripts.bench_explorer.places import Choose
from scripts.bench_explorer.table import Figure, summarize_times
from scripts.bench_figures.connection import Connection
from scripts.bench_figures.measure import MICROS
from scripts.bench_figures.node_process import RunningNode

WARM_VISITS = 3
GOOD = frozenset({200, 303})
"""An exact hit of a search redirects."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How long a visit may take."""

    p50_ms: float | None
    p99_ms: float | None


@dataclass(slots=True, kw_only=True)
class _Seen:
    times_ms: list[float] = field(default_factory=list)
    cpu_s: float = 0.0


class Visitor:
    """Visits pages of a node."""

    def __init__(
        self,
        node: RunningNode,
        connection: Connection,
        *,
        expected: frozenset[int] = GOOD,
        twice: bool = False,
    ) -> None:
        """With `twice` each address is read once before it counts: a long ledger is on the disk."""
        self._node = node
        self._connection = connection
        self._expected = expected
        self._twice = twice
        self.first_ms: list[float] = []
        """What first readings took, where there are two."""

    async def measure(
        self, places: Mapping[str, Choose], visits: int, budget: Budget
    ) -> list[Figure]:
        """Visit each of the places so many times."""
        seen = {name: _Seen() for name in places}
        for number in range(-WARM_VISITS, visits):
            for name, choose in places.items():
                address, counts = choose(max(number, 0)), number >= 0
                if self._twice:
                    first = _Seen()
                    await self._visit(address, first, counts=counts)
                    self.first_ms += first.times_ms
                await self._visit(address, seen[name], counts=counts)
        return list(_summarize(seen, budget))

    async def _visit(self, address: str, seen: _Seen, *, counts: bool) -> None:
        before_s = self._node.cpu_s
        answer = await self._connection.request("GET", address)
        if answer.status not in self._expected:
            raise RuntimeError(f"{address}: {answer.status} {answer.body[:300]!r}")
        if counts:
            seen.cpu_s += self._node.cpu_s - before_s
            seen.times_ms.append(answer.first_byte_ms)


def _summarize(seen: Mapping[str, _Seen], budget: Budget) -> Iterator[Figure]:
    for name, one in seen.items():
        yield summarize_times(
            name,
            one.times_ms,
            most=budget.p50_ms,
            most_p99=budget.p99_ms,
            cpu_micros=one.cpu_s * MICROS / len(one.times_ms),
        )
