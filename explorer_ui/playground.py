"""The playground: a prompt, its answer as it comes, and the receipt at its end."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from explorer_ui.chartdata import DAY_MS
from explorer_ui.site import Frame, Site
from explorer_ui.sources import Market, Views
from ledger.views import HeadView

MAX_MODELS = 20
REACH_DAYS = 365


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaygroundPage:
    """What the form offers. The key, the prompt and the answer never reach this face."""

    models: list[str]
    """Those with the most receipts of late."""
    has_market: bool
    """Whether this node takes jobs."""


class Playground:
    """Serves `/playground`."""

    def __init__(self, *, site: Site, views: Views, market: Market | None) -> None:
        self._site = site
        self._views = views
        self._market = market

    async def page(self, request: Request) -> Response:
        """Answer `/playground`."""
        head = self._views.head()
        tag = self._site.tag(request, head)
        if (unchanged := self._site.unchanged(request, tag)) is not None:
            return unchanged
        page = PlaygroundPage(
            models=self._list_models(head),
            has_market=self._market is not None,
        )
        frame = Frame(title="Playground", section="jobs", crumbs=(("Jobs", "/jobs"),))
        return self._site.page(
            "playground.html", request, frame=frame, page=page, head=head, tag=tag
        )

    def _list_models(self, head: HeadView) -> list[str]:
        from_ms = max(0, head.time_ms - REACH_DAYS * DAY_MS)
        return self._views.top_models(
            DAY_MS, from_ms=from_ms, to_ms=head.time_ms + 1, limit=MAX_MODELS
        )
