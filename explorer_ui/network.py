"""The network: who seals blocks, how many must agree, how that changed, who voted twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from explorer_ui.site import Frame, Site
from explorer_ui.sources import Views
from ledger.encoding import encode
from ledger.views import AuthoritiesView, PeerView


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkPage:
    """The authorities of this network, as its chain knows them."""

    authorities: AuthoritiesView
    peers: Sequence[PeerView]
    """Nodes that this one talks to."""

    @property
    def absent(self) -> int:
        """How many members may be down while blocks still become final."""
        return len(self.authorities.members) - self.authorities.quorum


class Network:
    """Serves `/network` and its twin."""

    def __init__(self, *, site: Site, views: Views) -> None:
        self._site = site
        self._views = views

    async def page(self, request: Request) -> Response:
        """Answer `/network`."""
        head = self._views.head()
        peers = self._views.peers()
        tag = self._site.tag(request, head, peers)
        if (unchanged := self._site.unchanged(request, tag)) is not None:
            return unchanged
        page = NetworkPage(authorities=self._views.authorities(), peers=peers)
        frame = Frame(title="Network", section="network", json_path="/network.json")
        return self._site.page("network.html", request, frame=frame, page=page, head=head, tag=tag)

    async def data(self, request: Request) -> Response:
        """Answer `/network.json`."""
        peers = self._views.peers()
        tag = self._site.tag(request, self._views.head(), peers)
        if (unchanged := self._site.unchanged(request, tag)) is not None:
            return unchanged
        page = NetworkPage(authorities=self._views.authorities(), peers=peers)
        body = encode(page)
        return self._site.answer(request, body, "application/json", tag)
