"""Both faces over a real node's stores."""

from starlette.applications import Starlette
from starlette.exceptions import HTTPException

from api.access import ApiMode
from explorer_ui import ClosingError, build_error_handler, build_explorer
from tests.api_node import ApiNode
from tests.browser import Server

RELEASE = "0.1.0"


class NobodyWaits:
    async def wait(self, height: int) -> int:
        raise ClosingError


def build_faces(node: ApiNode, mode: ApiMode = "dev") -> Starlette:
    """The REST API and the pages, whose streams end at once."""
    pages = build_explorer(
        node.views,
        market=node.coordinator,
        clock_ms=node.clock_ms,
        head_changed=NobodyWaits(),
        release=RELEASE,
    )
    handler = build_error_handler(node.views, release=RELEASE)
    return Starlette(
        routes=[*node.app(mode=mode).routes, *pages],
        exception_handlers={HTTPException: handler, Exception: handler},
    )


class AskedNode(Server):
    """A node on a socket that makes its blocks, without a miner."""

    def __init__(self, node: ApiNode) -> None:
        self.node = node
        app = build_faces(node)
        super().__init__(app)

    async def bind(self) -> None:
        """Let the market's news reach the loop of this server."""
        self.node.coordinator.feed.bind()
