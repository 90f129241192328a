"""The explorer's routes, and the handler that shows errors as pages."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from explorer_ui.accounts import Accounts
from explorer_ui.blocks import Blocks
from explorer_ui.charts import Charts
from explorer_ui.errors import ErrorPage, NotFoundError, NotYetError, PageError
from explorer_ui.explain import MAX_QUERY, Explanation
from explorer_ui.export import Exports
from explorer_ui.feeds import Feeds
from explorer_ui.finding import Finding
from explorer_ui.home import Home
from explorer_ui.jobs import Jobs
from explorer_ui.live import Live
from explorer_ui.miners import Miners
from explorer_ui.network import Network
from explorer_ui.pending import Pending
from explorer_ui.playground import Playground
from explorer_ui.receiptlist import ReceiptList
from explorer_ui.receipts import Receipts
from explorer_ui.search import Search
from explorer_ui.site import SECURITY_HEADERS, Address, Frame, Site
from explorer_ui.sources import HeadWatch, Market, Views
from explorer_ui.verify import Verify
from ledger.encoding import encode
from ledger.errors import HistoryMissingError
from ledger.views import HeadView

Endpoint = Callable[[Request], Awaitable[Response]]
ErrorHandler = Callable[[Request, Exception], Awaitable[Response]]

_ROBOTS = "User-agent: *\nDisallow: /_f/\nDisallow: /search?\n"
_BROKEN = Explanation(
    finding="Something went wrong on this node, and it is our fault, not yours.",
    advice="What was final stays final. Try again in a moment; the node's log says more.",
)
_NO_PAGE = Explanation(
    finding="There is no page at this address.",
    advice="Search for what you had in mind, or begin at the home page.",
)


def build_explorer(
    views: Views,
    *,
    market: Market | None,
    clock_ms: Callable[[], int],
    head_changed: HeadWatch,
    release: str,
    public_url: str = "",
) -> list[BaseRoute]:
    """Return the routes of all pages, to be mounted at the root beside the API's.

    Args:
        views: the reads.
        market: what everybody may see of the jobs and miners here; None on a node without any.
        clock_ms: Unix milliseconds, for the figures of the last 24 hours.
        head_changed: rings for new blocks and for the end of the process.
        release: version of the node, as the footer shows it.
        public_url: where others reach this node, for addresses to take away; empty: as asked.
    """
    site = Site(release=release, public_url=public_url)
    live = Live(site=site, head_changed=head_changed)
    home = Home(site=site, views=views, live=live, clock_ms=clock_ms)
    blocks = Blocks(site=site, views=views)
    exports = Exports(views)
    receipt_list = ReceiptList(site=site, views=views, exports=exports, clock_ms=clock_ms)
    receipts = Receipts(site=site, views=views)
    accounts = Accounts(site=site, views=views, exports=exports)
    jobs = Jobs(site=site, views=views, market=market, live=live, clock_ms=clock_ms)
    pending = Pending(site=site, views=views, market=market, live=live)
    charts = Charts(site=site, views=views)
    miners = Miners(site=site, views=views, market=market)
    network = Network(site=site, views=views, release=release)
    search = Search(site=site, views=views, market=market)
    finding = Finding(site=site, views=views)
    feeds = Feeds(site=site, views=views)
    playground = Playground(site=site, views=views, market=market)
    verify = Verify(site=site, views=views)

    async def static(request: Request) -> Response:
        return site.static(request) or PlainTextResponse("no such file\n", 404)

    async def robots(_: Request) -> Response:
        return PlainTextResponse(_ROBOTS, headers={"X-Content-Type-Options": "nosniff"})

    async def old_address(request: Request) -> Response:
        return Response(status_code=307, headers={"Location": Address(request)("/")})

    def page(path: str, endpoint: Endpoint) -> Route:
        return Route(path, _with_error_page(site, views, endpoint))

    def data(path: str, endpoint: Endpoint) -> Route:
        return Route(path, _with_json_error(endpoint))

    return [
        page("/", home.page),
        Route("/_f/home", home.fragment),
        Route("/_f/home/stream", home.stream),
        page("/blocks", blocks.list),
        data("/blocks/{key}.json", blocks.block_json),
        page("/blocks/{key}", blocks.block),
        data("/txs/{key}.json", blocks.transaction_json),
        page("/txs/{key}", blocks.transaction),
        data("/receipts.json", receipt_list.data),
        data("/receipts.csv", receipt_list.table),
        page("/receipts", receipt_list.page),
        page("/receipts/{key}", receipts.receipt),
        page("/accounts/{key}/statement", accounts.statement),
        data("/accounts/{key}.json", accounts.data),
        data("/accounts/{key}.csv", accounts.table),
        page("/accounts/{key}", accounts.page),
        data("/jobs.json", jobs.data),
        page("/jobs", jobs.list),
        page("/jobs/{key}", jobs.job),
        data("/_f/jobs/{key}", jobs.fragment),
        data("/_f/jobs/{key}/stream", jobs.stream),
        data("/pending.json", pending.data),
        page("/pending", pending.page),
        Route("/_f/pending", pending.fragment),
        Route("/_f/pending/stream", pending.stream),
        Route("/charts", charts.index),
        data("/charts/{key}.json", charts.data),
        data("/charts/{key}.csv", charts.table),
        page("/charts/{key}", charts.page),
        data("/miners.json", miners.data),
        page("/miners", miners.page),
        data("/miners/{key:path}.json", miners.miner_data),
        page("/miners/{key:path}", miners.miner),
        page("/playground", playground.page),
        data("/feeds/blocks.atom", feeds.blocks),
        data("/feeds/receipts.atom", feeds.receipts),
        data("/feeds/accounts/{key}.atom", feeds.account),
        Route("/opensearch.xml", finding.description),
        Route("/_f/suggest", finding.suggest),
        page("/verify", verify.page),
        Route("/verify/offline.html", verify.offline),
        Route("/verify/verify_receipt.py", verify.script),
        data("/network.json", network.data),
        page("/network", network.page),
        data("/authorities/{key}.json", network.authority_data),
        page("/authorities/{key}", network.authority),
        page("/search", search.page),
        Route("/static/{release}/{name:path}", static),
        Route("/robots.txt", robots),
        Route("/explorer", old_address),
    ]


def build_error_handler(views: Views, *, release: str, public_url: str = "") -> ErrorHandler:
    """Return a handler for HTTPException and Exception on paths that are pages.

    For an address without a page it says so; for our own bug it shows a page that reads nothing,
    with status 500 (log the exception before calling it).
    """
    site = Site(release=release, public_url=public_url)

    async def handle(request: Request, error: Exception) -> Response:
        if not isinstance(error, HTTPException):
            page = ErrorPage(status=500, title="This page failed", explanation=_BROKEN, text="")
            return _answer_error(site, request, None, page)
        title, explanation = NotFoundError.title, _NO_PAGE
        if error.status_code != 404:
            finding = f"This node answered: {error.detail}."
            title = PageError.title
            explanation = Explanation(finding=finding, advice=_NO_PAGE.advice)
        page = ErrorPage(status=error.status_code, title=title, explanation=explanation, text="")
        answer = _answer_error(site, request, views.head(), page)
        answer.headers.update(error.headers or {})
        return answer

    return handle


async def _call(endpoint: Endpoint, request: Request) -> Response:
    try:
        return await endpoint(request)
    except HistoryMissingError as error:
        raise NotYetError(error) from error


def _with_error_page(site: Site, views: Views, endpoint: Endpoint) -> Endpoint:
    async def guarded(request: Request) -> Response:
        try:
            return await _call(endpoint, request)
        except PageError as error:
            page = ErrorPage(
                status=error.status,
                title=error.title,
                explanation=error.explanation,
                text=request.path_params.get("key", "")[:MAX_QUERY],
            )
            return _answer_error(site, request, views.head(), page)

    return guarded


def _with_json_error(endpoint: Endpoint) -> Endpoint:
    async def guarded(request: Request) -> Response:
        try:
            return await _call(endpoint, request)
        except PageError as error:
            body = encode({"detail": error.explanation.finding})
            return Response(body, error.status, SECURITY_HEADERS, "application/json")

    return guarded


def _answer_error(site: Site, request: Request, head: HeadView | None, page: ErrorPage) -> Response:
    frame = Frame(title=page.title, query=page.text)
    return site.page("error.html", request, frame=frame, page=page, head=head, status=page.status)
