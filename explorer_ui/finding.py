"""Search from outside a page: the description for browsers, and suggestions while one types."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from explorer_ui.format import visible
from explorer_ui.site import Site
from explorer_ui.sources import Views
from ledger.encoding import encode

DESCRIPTION_TYPE = "application/opensearchdescription+xml; charset=utf-8"
SUGGESTIONS_TYPE = "application/x-suggestions+json"


class Finding:
    """Serves `/opensearch.xml` and `/_f/suggest`."""

    def __init__(self, *, site: Site, views: Views) -> None:
        self._site = site
        self._views = views

    async def description(self, request: Request) -> Response:
        """Answer `/opensearch.xml`: how a browser searches here."""
        body = self._site.render("opensearch.xml", request).encode()
        return self._site.answer(request, body, DESCRIPTION_TYPE, None)

    async def suggest(self, request: Request) -> Response:
        """Answer `/_f/suggest?q=` in the form of OpenSearch: the query, then what it may become.

        Names that hide or reorder anything are left out: one that is shown is one that is meant.
        """
        query = request.query_params.get("q", "").strip()
        names = [name for name in self._views.suggest(query) if visible(name) == name]
        return self._site.answer(request, encode([query, names]), SUGGESTIONS_TYPE, None)
