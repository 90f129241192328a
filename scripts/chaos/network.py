"""A run over a network of authorities with a follower and a witness."""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from scripts.chaos.disk import SmallDisk
from scripts.chaos.faults import NetworkDrawer
from scripts.chaos.history import History
from scripts.chaos.links import Links
from scripts.chaos.load import Party
from scripts.chaos.nodes import Node, Nodes, require
from scripts.chaos.rounds import HEAL_TIMEOUT_S, PARTIES, PAUSE_S, POLL_S, Run, read_height

QUORUM_LOST_S = 3.0
MIN_ACCEPTED = 10
"""Receipts that are accepted meanwhile."""
MAX_LATE = 2
"""Blocks that have their votes already: the open one, and one that the others were ahead."""
MAX_COMPLAINTS = 40
"""Warnings and errors that two nodes may log in that time."""


class NetworkRun(Run):
    """First a quorum is lost; then come the rounds."""

    def __init__(self, root: Path, disk: SmallDisk | None, *, seed: int) -> None:
        rng = random.Random(seed)  # noqa: S311 - no secret
        self._network = Nodes(root, disk.root if disk else None)
        self._links = Links(self._network.find_pids)
        self._filled = {self._network.authorities[-1].name} if disk else set[str]()
        super().__init__(self._network, NetworkDrawer(self._network, self._links, disk, rng), rng)

    @property
    def _coordinators(self) -> list[Node]:
        return self._network.authorities

    def _may_fail(self, node: Node) -> bool:
        return node.name in self._filled

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[None]:
        try:
            for node in self._network.all.values():
                await self._links.listen(node.name, node.proxy, node.port)
            yield
        finally:
            await self._links.close()

    def _list_parties(self, history: History) -> list[Party]:
        return [
            Party(node, history, number, pause_s=PAUSE_S)
            for node in self._coordinators
            for number in range(PARTIES)
        ]

    async def _begin(self) -> None:
        """Kill one of four and stop another: nothing becomes final, and work goes on.

        Raises:
            ChaosError: it is otherwise, or the logs of the others can no longer be read.
        """
        away, here = self._network.authorities[2:], self._network.authorities[:2]
        print("  lost quorum", end="", file=sys.stderr)
        await asyncio.gather(self._nodes.kill(away[0]), self._nodes.stop(away[1]))
        height, accepted = await read_height(here[0]), len(self.outcome.history.completed)
        complaints = sum(node.count_complaints() for node in here)
        deadline = time.monotonic() + HEAL_TIMEOUT_S
        await asyncio.sleep(QUORUM_LOST_S)
        while len(self.outcome.history.completed) < accepted + MIN_ACCEPTED:
            require(time.monotonic() < deadline, "nothing is accepted without a quorum")
            await asyncio.sleep(POLL_S)
        late = await read_height(here[0]) - height
        require(late <= MAX_LATE, f"{late} blocks became final without a quorum")
        complaints = sum(node.count_complaints() for node in here) - complaints
        require(complaints <= MAX_COMPLAINTS, f"{complaints} complaints in the logs of the others")
        self.outcome.counts.update(["lost quorums", "kills", "restarts"])
        await self._heal(*(self._nodes.start(node) for node in away))
