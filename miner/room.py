"""How many more jobs each model takes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from miner.engine import Engine


class Room:
    """Counts the jobs that the engines have; used in one event loop."""

    def __init__(self, engines: Mapping[str, Engine]) -> None:
        """Engines by the names under which they are offered."""
        self._engines = engines
        self._taken: dict[int, int] = {}
        """Jobs by the identity of their engine, which may have several names."""
        self._some = asyncio.Event()
        self._some.set()
        slots = {id(engine): engine.slots for engine in engines.values()}
        self.most_runs = 2 * sum(slots.values())
        """Claimed jobs at once: as many again may have their answer and wait for the node."""

    def names(self) -> tuple[str, ...]:
        """Models that take at least one more job."""
        return tuple(name for name, engine in self._engines.items() if self.has(engine))

    def has(self, engine: Engine) -> bool:
        """Whether an engine takes one more job."""
        return self._taken.get(id(engine), 0) < engine.slots

    def take(self, engine: Engine) -> None:
        """Count a job of an engine."""
        self._taken[id(engine)] = self._taken.get(id(engine), 0) + 1
        if not self.names():
            self._some.clear()

    def give(self, engine: Engine) -> None:
        """Count one less."""
        self._taken[id(engine)] -= 1
        self._some.set()

    async def wait(self) -> None:
        """Return as soon as any model takes a job."""
        await self._some.wait()
