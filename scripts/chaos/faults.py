"""What is done to the network: each fault begins, lasts, and is healed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from scripts.chaos.disk import SmallDisk
from scripts.chaos.links import Links, State
from scripts.chaos.nodes import Node, Nodes, Processes

MAX_JUMP_MS = 60_000
FULL_TIMEOUT_S = 5.0
"""How long a node may go on with a full disk before it is taken for one that needs no disk now."""


class Fault(Protocol):
    """Something that goes wrong."""

    name: str
    """As it is counted."""

    @property
    def targets(self) -> frozenset[str]:
        """What two faults at once must not share."""

    async def begin(self) -> None:
        """Let it happen."""

    async def heal(self) -> None:
        """Undo it."""


@dataclass
class Kill:
    """SIGKILL, and a new start."""

    nodes: Processes
    node: Node
    name: str = "kills"

    @property
    def targets(self) -> frozenset[str]:
        """That node."""
        return frozenset({self.node.name})

    async def begin(self) -> None:
        """Kill it."""
        await self.nodes.kill(self.node)

    async def heal(self) -> None:
        """Start it."""
        await self.nodes.start(self.node)


@dataclass
class Restart(Kill):
    """SIGTERM, and a new start."""

    name: str = "restarts"

    async def begin(self) -> None:
        """Stop it."""
        await self.nodes.stop(self.node)


@dataclass
class Pause(Kill):
    """SIGSTOP, and SIGCONT: a machine that hangs."""

    name: str = "pauses"

    async def begin(self) -> None:
        """Let it hang."""
        self.nodes.pause(self.node)

    async def heal(self) -> None:
        """Let it go on."""
        self.nodes.resume(self.node)


@dataclass
class ClockJump(Kill):
    """A wall clock that is ahead or behind for a while."""

    name: str = "clock jumps"
    offset_ms: int = 0

    async def begin(self) -> None:
        """Move it."""
        self.nodes.move_clock(self.node, self.offset_ms)

    async def heal(self) -> None:
        """Set it right, which is a jump as well."""
        self.nodes.move_clock(self.node, 0)


@dataclass
class FullDisk(Kill):
    """No byte of room: a node that cannot store its vote stops by itself."""

    name: str = "full disks"
    disk: SmallDisk = field(kw_only=True)

    async def begin(self) -> None:
        """Fill it, and wait a while for the node to notice."""
        self.node.may_end = True
        await asyncio.to_thread(self.disk.fill)
        for _ in range(int(FULL_TIMEOUT_S * 10)):
            if self.node.process is None:
                break
            await asyncio.sleep(0.1)

    async def heal(self) -> None:
        """Free it; start the node if it has ended."""
        self.disk.free()
        if self.node.process is None:
            await self.nodes.start(self.node)
        self.node.may_end = False


@dataclass
class Cut:
    """Some links are silent, refused or slow."""

    links: Links
    pairs: Sequence[tuple[str, str]]
    state: State
    name: str

    @property
    def targets(self) -> frozenset[str]:
        """The links, all of them."""
        return frozenset({"links"})

    async def begin(self) -> None:
        """Cut them."""
        for pair in self.pairs:
            self.links.between(*pair).put(self.state)

    async def heal(self) -> None:
        """Mend them."""
        for pair in self.pairs:
            self.links.between(*pair).put(State.OPEN)


class Drawer:
    """Draws faults of the kinds that it is given, each as often as its number says."""

    def __init__(self, rng: random.Random, kinds: Mapping[Callable[[], Fault], int]) -> None:
        self._rng = rng
        self._kinds = kinds

    def draw(self, count: int) -> list[Fault]:
        """Draw faults that may happen at once."""
        chosen: list[Fault] = []
        for _ in range(count):
            fault = self._rng.choices(list(self._kinds), list(self._kinds.values()))[0]()
            if all(fault.targets.isdisjoint(other.targets) for other in chosen):
                chosen.append(fault)
        return chosen


class NetworkDrawer(Drawer):
    """Draws what may happen to a network."""

    def __init__(
        self, nodes: Nodes, links: Links, disk: SmallDisk | None, rng: random.Random
    ) -> None:
        self._nodes = nodes
        self._links = links
        kinds: dict[Callable[[], Fault], int] = {
            lambda: Kill(nodes, self._draw_node()): 30,
            lambda: Pause(nodes, self._draw_node()): 20,
            lambda: Restart(nodes, self._draw_node()): 10,
            self._isolate: 12,
            self._split: 10,
            self._cut_one: 6,
            self._slow: 6,
            self._jump: 14,
        }
        if disk is not None:
            kinds[lambda: FullDisk(nodes, nodes.authorities[-1], disk=disk)] = 8
        super().__init__(rng, kinds)

    def _draw_node(self) -> Node:
        authorities = self._nodes.authorities
        return self._rng.choice([*authorities, *authorities, *self._nodes.all.values()])

    def _jump(self) -> Fault:
        offset_ms = self._rng.choice([-1, 1]) * self._rng.randrange(1_000, MAX_JUMP_MS)
        return ClockJump(self._nodes, self._draw_node(), offset_ms=offset_ms)

    def _isolate(self) -> Fault:
        return self._part({self._draw_node().name}, "nodes cut off")

    def _split(self) -> Fault:
        names = [node.name for node in self._nodes.authorities]
        return self._part(set(self._rng.sample(names, len(names) // 2)), "partitions")

    def _part(self, island: set[str], name: str) -> Fault:
        names = list(self._nodes.all)
        pairs = [(a, b) for a in names for b in names if (a in island) != (b in island)]
        state = self._rng.choice([State.SILENT, State.REFUSED])
        return Cut(self._links, pairs, state, name)

    def _cut_one(self) -> Fault:
        pair = self._draw_link()
        state = self._rng.choice([State.SILENT, State.REFUSED])
        return Cut(self._links, [pair], state, "links cut one way")

    def _slow(self) -> Fault:
        source, target = self._draw_link()
        pairs = [(source, target), (target, source)]
        return Cut(self._links, pairs, State.SLOW, "slow links")

    def _draw_link(self) -> tuple[str, str]:
        source, target = self._rng.sample([node.name for node in self._nodes.authorities], 2)
        return source, target
