"""Every link between two nodes, through a proxy that can cut it or slow it down.

The address of a node that the authority set names is that of a proxy before it. Who connects is
asked of the system: the process that owns the other end of the connection. So each directed link
has a state of its own, and the nodes run as they always do.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

CHUNK_BYTES = 65_536
DRIP_BYTES = 512
DRIP_S = 0.02
"""On a slow link so many bytes pass in so many seconds: 25 kB/s."""


class State(Enum):
    """What a link does."""

    OPEN = "open"
    REFUSED = "refused"
    """Connections are closed."""
    SILENT = "silent"
    """Nothing passes, and nobody is told: a cable that is cut."""
    SLOW = "slow"


@dataclass
class Link:
    """One direction of calls: from a node to another, with the answers."""

    state: State = State.OPEN
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    open: set[asyncio.StreamWriter] = field(default_factory=set)

    def put(self, state: State) -> None:
        """Let it behave otherwise from now on."""
        self.state = state
        if state is State.REFUSED:
            for writer in self.open:
                writer.transport.abort()
        self.changed.set()
        self.changed = asyncio.Event()

    async def passes(self) -> None:
        """Wait until bytes may pass."""
        while self.state is State.SILENT:
            await self.changed.wait()
        if self.state is State.SLOW:
            await asyncio.sleep(DRIP_S)

    @property
    def chunk_bytes(self) -> int:
        """How many may pass at once."""
        return DRIP_BYTES if self.state is State.SLOW else CHUNK_BYTES


class Links:
    """The proxies before all nodes."""

    def __init__(self, find_pids: Callable[[], dict[str, int]]) -> None:
        """`find_pids` tells the process of each node that runs."""
        self._find_pids = find_pids
        self._links: dict[tuple[str, str], Link] = {}
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def between(self, source: str, target: str) -> Link:
        """Return the link by which one node calls another."""
        return self._links.setdefault((source, target), Link())

    async def listen(self, target: str, port: int, behind: int) -> None:
        """Stand before a node: on `port`, for the one that listens `behind`."""

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            source = find_owner(writer.get_extra_info("peername")[1], self._find_pids())
            await self._relay(self.between(source, target), behind, reader, writer)

        self._servers.append(await asyncio.start_server(connected, "127.0.0.1", port))

    async def close(self) -> None:
        """Close everything."""
        for server in self._servers:
            server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)  # connections that were given up are closed in the next turn

    async def _relay(
        self, link: Link, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        link.open.add(writer)
        try:
            if link.state is State.REFUSED:
                return
            await link.passes()
            inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
            link.open.add(inner_writer)
            try:
                await asyncio.gather(
                    _pump(link, reader, inner_writer), _pump(link, inner_reader, writer)
                )
            finally:
                link.open.discard(inner_writer)
                inner_writer.transport.abort()
        except OSError:
            pass  # one end has gone, and the other learns it
        finally:
            link.open.discard(writer)
            writer.transport.abort()


async def _pump(link: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(link.chunk_bytes):
        await link.passes()
        writer.write(data)
        await writer.drain()
    await link.passes()
    with contextlib.suppress(OSError):
        writer.write_eof()


def find_owner(port: int, pids: dict[str, int]) -> str:
    """Return which process has the local end of a connection on this port; "" for none of them."""
    inode = _find_inode(port)
    for name, pid in pids.items() if inode else ():
        with contextlib.suppress(OSError):
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    if str(descriptor.readlink()) == f"socket:[{inode}]":
                        return name
    return ""


def _find_inode(port: int) -> str:
    wanted = f"0100007F:{port:04X}"
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1] == wanted and fields[9] != "0":
            return fields[9]
    return ""
