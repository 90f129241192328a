"""A run over front-ends that share one PostgreSQL: `make chaos ARGS=--postgresql`.

An authority seals, two front-ends serve the API beside it; clients and miners turn to any of the
three, and to another one when theirs does not answer well. What breaks is the nodes and the server.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from node.apikeys import issue_key
from node.clock import read_clock_ms
from node.config import format_options
from node.datadir import (
    DataDirectory,
    create_data_directory,
    create_follower_directory,
    create_key,
)
from node.files import write_private
from node.local.ports import HOST, choose_ports
from scripts.chaos.database import Crash, CutOff, Database, Freeze, KillBackend
from scripts.chaos.faults import Drawer, Fault, Kill, Pause, Restart
from scripts.chaos.history import History
from scripts.chaos.load import Party
from scripts.chaos.nodes import OPTIONS, Node, Processes
from scripts.chaos.rounds import PARTIES, PAUSE_S, Run

FRONT_ENDS = 2


class SharedNodes(Processes):
    """An authority and front-ends. The server has to run while they are made."""

    def __init__(self, root: Path, database: Database) -> None:
        super().__init__(root)
        self._database = database
        names = [f"api-{number + 1}" for number in range(FRONT_ENDS)]
        ports = choose_ports(0, 1 + len(names))
        authority = create_data_directory(
            root / "authority", network="aitbc-chaos", name="authority", now_ms=read_clock_ms()
        )
        key = issue_key(authority, "admin", now_ms=read_clock_ms(), database=database.url)
        shared: dict[str, str | int | list[str]] = {**OPTIONS, "database": database.url}
        self._add(authority, {**shared, "role": "authority", "port": ports[0]}, ports[0], key)
        for name, port in zip(names, ports[1:], strict=True):
            data = create_follower_directory(root / name, authority.load_genesis())
            create_key(data.miner_key)
            options: dict[str, str | int | list[str]] = {
                **shared,
                "role": "api",
                "port": port,
                "follow": [f"http://{HOST}:{ports[0]}"],
                "coordinator_key": str(authority.authority_key),
            }
            self._add(data, options, port, key)

    async def start(self, node: Node) -> None:
        """Start one once its database is there: without it, it would end again."""
        await asyncio.to_thread(self._database.wait)
        await super().start(node)

    def _add(
        self,
        data: DataDirectory,
        options: dict[str, str | int | list[str]],
        port: int,
        key: str,
    ) -> None:
        write_private(data.options, format_options(options))
        name = data.root.name
        log = self._root / f"{name}.log"
        node = Node(
            name=name, command="run", data=data, log=log, port=port, proxy=port, admin_key=key
        )
        self.add(node)


class SharedRun(Run):
    """A run over front-ends and their server, which runs already."""

    def __init__(self, root: Path, database: Database, *, seed: int) -> None:
        rng = random.Random(seed)  # noqa: S311 - no secret
        nodes = SharedNodes(root, database)
        everybody = list(nodes.all.values())
        self._first: list[Fault] = [Crash(database), Kill(nodes, everybody[-1])]
        kinds: dict[Callable[[], Fault], int] = {
            lambda: Kill(nodes, rng.choice(everybody)): 30,
            lambda: Pause(nodes, rng.choice(everybody)): 20,
            lambda: Restart(nodes, rng.choice(everybody)): 10,
            lambda: Crash(database): 20,
            lambda: KillBackend(database, rng=rng): 10,
            lambda: CutOff(database): 20,
            lambda: Freeze(database): 10,
        }
        super().__init__(nodes, Drawer(rng, kinds), rng)

    @property
    def _coordinators(self) -> list[Node]:
        return list(self._nodes.all.values())

    def _may_fail(self, node: Node) -> bool:
        return False

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[None]:
        yield

    async def _begin(self) -> None:
        """Lose the server and a front-end at once."""
        await self._suffer(self._first)

    def _list_parties(self, history: History) -> list[Party]:
        nodes = self._coordinators
        return [
            Party(
                node,
                history,
                number * len(nodes) + place,
                pause_s=PAUSE_S,
                others=[*nodes[place + 1 :], *nodes[:place]],
            )
            for place, node in enumerate(nodes)
            for number in range(PARTIES)
        ]
