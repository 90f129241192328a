"""Search: an exact hit leads to its page; anything else is told what it looks like."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from explorer_ui.explain import MAX_QUERY, Explanation, explain
from explorer_ui.site import SECURITY_HEADERS, Address, Frame, Site
from explorer_ui.sources import Market, Views
from ledger.errors import MarketError
from ledger.views import HeadView, ReceiptFilter

_PAGES = {
    "account": "/accounts/",
    "authority": "/authorities/",
    "block": "/blocks/",
    "job": "/jobs/",
    "receipt": "/receipts/",
    "transaction": "/txs/",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchPage:
    """What was looked for and not found exactly."""

    query: str
    """Untrusted, without white space around it."""
    explanation: Explanation | None
    """None for an empty query."""
    lists: list[str]
    """Receipt filters (`model`, `miner`, `client`) under which the query has receipts."""
    is_account: bool
    """Whether those receipts are earned or spent under exactly this name."""
    begun: list[str]
    """Ids and names that begin with the query, where nothing is called exactly so; untrusted."""


class Search:
    """Serves `/search`."""

    def __init__(self, *, site: Site, views: Views, market: Market | None) -> None:
        self._site = site
        self._views = views
        self._market = market

    async def page(self, request: Request) -> Response:
        """Answer `/search?q=`: 303 to an exact hit, else a page that helps further."""
        query = request.query_params.get("q", "").strip()
        head = self._views.head()
        tag = self._site.tag(request, head)
        if (unchanged := self._site.unchanged(request, tag)) is not None:
            return unchanged
        lists: list[str] = []
        begun: list[str] = []
        explanation = None
        if len(query) > MAX_QUERY:
            explanation = Explanation(
                finding=f"This is longer than {MAX_QUERY} characters, and nothing here is.",
                advice="Search for one height, hash, id, account or name at a time.",
            )
        elif query:
            if (path := self._find(query, head)) is not None:
                location = Address(request)(*path)
                return Response(status_code=303, headers=SECURITY_HEADERS | {"Location": location})
            lists = self._find_lists(query)
            if not lists:
                explanation, begun = explain(query, head), self._views.suggest(query)
        page = SearchPage(
            query=query,
            explanation=explanation,
            lists=lists,
            begun=begun,
            # The totals of an account need the whole chain, which is still being fetched.
            is_account=bool(lists) and not head.missing and self._views.account(query) is not None,
        )
        frame = Frame(title="Search", query=query[:MAX_QUERY])
        return self._site.page("search.html", request, frame=frame, page=page, head=head, tag=tag)

    def _find(self, query: str, head: HeadView) -> tuple[str, str] | None:
        # People copy heights as pages print them: #20,411.
        plain = query.removeprefix("#").replace(",", "")
        hit = self._views.search(plain if plain.isascii() and plain.isdigit() else query)
        if hit is not None:
            is_plain = hit.kind == "authority" and not self._is_member(hit.key, head)
            return _PAGES["account" if is_plain else hit.kind], hit.key
        return ("/miners/", query) if self._is_miner(query) else None

    def _is_member(self, account: str, head: HeadView) -> bool:
        """Tell whether an account seals blocks; others may coordinate without."""
        if head.missing:
            return True  # nothing else can be told yet, and its page says so
        found = self._views.account(account)
        return found is not None and found.authority is not None

    def _is_miner(self, query: str) -> bool:
        try:
            return self._market is not None and bool(self._market.miner(query))
        except MarketError:
            return False

    def _find_lists(self, query: str) -> list[str]:
        filters = {
            "model": ReceiptFilter(model=query),
            "miner": ReceiptFilter(provider=query),
            "client": ReceiptFilter(client=query),
        }
        return [name for name, wanted in filters.items() if self._views.receipts(wanted, limit=1)]
