"""A client and a miner of one node, whose calls run in the loop of a test that waits for news."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from api.access import ApiMode
from tests.api_node import ApiNode
from tests.asgi_stream import Opener, OpenRequest

LIMIT_S = 30
MINER = {"miner_id": "m1"}


class Story:
    """What happens to one job."""

    def __init__(self, node: ApiNode, mode: ApiMode, **settings: Any) -> None:
        self.node = node
        self.open = Opener(node.app(mode, **settings))
        self.job = ""

    @property
    def path(self) -> str:
        return f"/v1/jobs/{self.job}"

    async def call(
        self, path: str, *, key: str = "admin", status: int = 200, **body: Any
    ) -> OpenRequest:
        """POST, with a key of this role."""
        answer = await self.open.get(path, method="POST", body=body, x_api_key=self.node.keys[key])
        assert answer.status == status, answer.text
        return answer

    async def submit(self, prompt: str = "Why is the sky blue?") -> None:
        await self.call("/v1/miners/register", key="miner", status=201, **MINER, capabilities=["*"])
        answer = await self.call("/v1/jobs", key="client", status=201, prompt=prompt)
        self.job = answer.headers["location"].rsplit("/", 1)[-1]

    async def claim(self) -> None:
        await self.call(f"{self.path}/claim", key="miner", **MINER, heartbeat=True)

    async def tell(self, offset: int, text: str) -> None:
        await self.call(f"{self.path}/text", key="miner", **MINER, offset=offset, text=text)

    async def release(self) -> None:
        await self.call(f"{self.path}/release", key="miner", **MINER)

    async def complete(self, result: str) -> None:
        self.node.now_ms += 1_000
        await self.call(f"{self.path}/complete", key="miner", **MINER, result=result)

    async def cancel(self) -> None:
        await self.call(f"{self.path}/cancel", key="client")

    async def events(self, position: str = "", *, key: str = "client") -> OpenRequest:
        """Open the event stream, behind a position."""
        headers = {"x_api_key": self.node.keys[key]} if key else {}
        if position:
            headers["last_event_id"] = position
        return await self.open(f"{self.path}/events", **headers)


def tell_story(
    root: Path,
    scenario: Callable[[Story], Awaitable[None]],
    *,
    mode: ApiMode = "strict",
    **settings: Any,
) -> None:
    """Run a scenario on a node of its own; nothing is sealed before it says so."""
    node = ApiNode(root)

    async def bounded() -> None:
        node.coordinator.bind()
        story = Story(node, mode, **settings)
        async with asyncio.timeout(LIMIT_S):
            try:
                await scenario(story)
            finally:
                await story.open.close()
        assert node.coordinator.feed.waiting == 0, "everybody has left"

    try:
        asyncio.run(bounded())
    finally:
        node.close()
