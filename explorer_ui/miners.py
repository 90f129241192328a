"""The miners that this node knows: who is at work, on what, for which models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from explorer_ui.errors import parse_name
from explorer_ui.site import Frame, Site
from explorer_ui.sources import Market, Views
from ledger.encoding import encode
from ledger.jobs import MinerStanding

PAGE_ROWS = 50
JSON_TYPE = "application/json"


@dataclass(frozen=True, slots=True, kw_only=True)
class MinersPage:
    """One page of miners, in the order of their names."""

    miners: Sequence[MinerStanding]
    after: str
    """The name above the page, empty at the beginning."""
    following: str | None
    """`after` of the next page, None at the end."""
    has_market: bool
    """Whether this node takes jobs; others know no miners."""

    @property
    def active(self) -> int:
        """How many of the page were heard of lately."""
        return sum(standing.active for standing in self.miners)


class Miners:
    """Serves `/miners` and its twin."""

    def __init__(self, *, site: Site, views: Views, market: Market | None) -> None:
        self._site = site
        self._views = views
        self._market = market

    async def page(self, request: Request) -> Response:
        """Answer `/miners`."""
        head, page = self._views.head(), self._read(request)
        tag = self._site.tag(request, head, page)
        if (unchanged := self._site.unchanged(request, tag)) is not None:
            return unchanged
        frame = Frame(
            title="Miners",
            section="miners",
            json_path="/miners.json",
            data_query={"after": page.after},
        )
        return self._site.page("miners.html", request, frame=frame, page=page, head=head, tag=tag)

    async def data(self, request: Request) -> Response:
        """Answer `/miners.json`."""
        page = self._read(request)
        tag = self._site.tag(request, self._views.head(), page)
        if (unchanged := self._site.unchanged(request, tag)) is not None:
            return unchanged
        body = encode({"miners": [_describe(m) for m in page.miners], "after": page.following})
        return self._site.answer(request, body, JSON_TYPE, tag)

    def _read(self, request: Request) -> MinersPage:
        after = parse_name(request, "after")
        found = self._market.miners(after=after, limit=PAGE_ROWS + 1) if self._market else ()
        shown = found[:PAGE_ROWS]
        return MinersPage(
            miners=shown,
            after=after,
            following=shown[-1].miner.miner_id if len(found) > len(shown) else None,
            has_market=self._market is not None,
        )


def _describe(standing: MinerStanding) -> dict[str, object]:
    """What everybody may see: not which API key registered it."""
    miner = standing.miner
    return {
        "miner_id": miner.miner_id,
        "account": miner.account,
        "capabilities": miner.capabilities,
        "gpu_name": miner.gpu_name,
        "gpu_memory": miner.gpu_memory,
        "registered_at_ms": miner.registered_at_ms,
        "last_seen_at_ms": miner.last_seen_at_ms,
        "draining": miner.draining,
        "active": standing.active,
        "running": standing.running,
    }
