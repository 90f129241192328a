"""The explorer in every state a reader may meet it in, and one page of each shape.

A page is chosen because it shows something that no page chosen before does: its route in that
state, or there an element of another class or role. So new pages and new parts of pages are chosen
by themselves, as soon as a link leads to them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from html.parser import HTMLParser
from urllib.parse import urlsplit

from httpx2 import Response
from starlette.applications import Starlette
from starlette.routing import Match, Route
from starlette.testclient import TestClient

from explorer_ui.jobs import STATES
from ledger.views import PeerView, SyncProgress
from tests.browser import Server
from tests.crawler import walk
from tests.fake_views import FakeViews, build_app, build_chain, receipt_id

TELLING = ("class", "role", "type", "aria-current", "data-module", "data-open")
"""Attributes that make an element another shape; of the rest, only that they are there counts."""
NO_PAGES = {
    "/_f/home/stream": "an event stream, which the live pages open",
    "/_f/jobs/{key}/stream": "an event stream",
    "/_f/pending/stream": "an event stream",
}
"""Routes that a crawl names but does not ask, and why."""


class Node(Server):
    """The explorer over a chain that tests make grow."""

    def __init__(self, views: FakeViews) -> None:
        self.views = views
        super().__init__(build_app(views))

    def __exit__(self, *exception):
        self.call(self.views.close())
        super().__exit__(*exception)

    def change(self, change: Callable[[FakeViews], object]) -> None:
        async def announce():
            change(self.views)
            await self.views.announce()

        self.call(announce())

    def seal(self, number: int) -> None:
        self.change(lambda views: (views.add_receipt(number), views.seal()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One state of a node, and addresses that no link of its pages leads to."""

    name: str
    build: Callable[[], FakeViews]
    start: tuple[str, ...] = ("/",)
    follow: bool = True
    """Whether links are followed from there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """One address for a browser to open."""

    scene: Scene
    address: str
    status: int


class Shapes(HTMLParser):
    """The kinds of elements of a page; those of the status line are the same on every route."""

    def __init__(self, html: str, route: str | None) -> None:
        super().__init__()
        self.found: set[tuple[str | None, ...]] = {(route,)}
        self._route, self._in_status = route, False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        names = sorted(name for name, _ in attrs)
        values = [f"{name}={value}" for name, value in attrs if name in TELLING]
        self._in_status |= ("id", "status") in attrs
        self.found.add(("status" if self._in_status else self._route, tag, *names, *values))

    def handle_endtag(self, tag):
        self._in_status &= tag != "p"


def build_busy() -> FakeViews:
    """A chain with audits, a change of its authorities, evidence, and jobs in every state."""
    views = build_chain(27)
    views.add_audit(5)
    views.add_audit(6, verdict="fail", exact_tokens=2, outside_tokens=3, ending="early")
    views.add_change()
    views.seal()
    views.add_evidence(height=2, view=6)
    views.add_receipt(90, provider="laptop", miner_id="laptop")
    views.seal()
    views.add_receipt(100)
    for number, state in enumerate(STATES * 6):
        views.add_job(number, state)
    views.add_job(40, "completed", texts_purged=True)
    views.market.add_miner("miner-a", running=1)
    views.market.add_miner("miner-b", active=False)
    views.others = (
        PeerView(account="ait1x", name="east", url="http://e.example", height=12_345, answers=True),
        PeerView(account="ait1y", name="south", url="", height=0, answers=False),
    )
    return views


def build_follower(state: str) -> FakeViews:
    """A node without a market, behind the chain or cut off from it."""
    views = build_chain(3)
    views.market = None
    views.sync = SyncProgress(
        state=state,
        height=3,
        target_height=9_000,
        blocks_per_s=5.0,
        receipts_per_s=50.0,
        eta_s=75,
        source="http://e.example",
        last_error=None,
    )
    return views


def build_broken() -> FakeViews:
    """A node whose reads fail."""
    views = build_chain(1)
    views.blocks = None
    return views


SCENES = (
    Scene(
        name="busy",
        build=build_busy,
        start=(
            *("/", "/explorer", "/charts", "/robots.txt", "/opensearch.xml", "/_f/suggest?q=dem"),
            *("/search", "/search?q=demo", "/search?q=nothing", "/search?q=abcdef12"),
            *("/receipts?client=demo&from=2026-01-01", "/receipts?model=nothing", "/blocks/99"),
            *("/blocks/x", "/receipts/rcp_x", "/txs/77", "/accounts/nobody", "/jobs/job_x"),
            *("/jobs?status=x", "/charts/x", "/nowhere", "/blocks?before=x"),
            f"/receipts/{receipt_id(100)}",
        ),
    ),
    Scene(name="empty", build=FakeViews, start=("/", "/blocks/0", "/blocks/1", "/search?q=x")),
    Scene(name="syncing", build=lambda: build_follower("syncing"), start=("/", "/jobs/job_x")),
    Scene(name="stalled", build=lambda: build_follower("stalled")),
    Scene(name="broken", build=build_broken, start=("/blocks",), follow=False),
)


def is_page(address: str, response: Response) -> bool:
    """Tell whether a browser shows the answer as a page of its own."""
    is_html = response.headers.get("content-type", "").startswith("text/html")
    is_whole = not address.startswith("/_f/") and "content-disposition" not in response.headers
    return is_html and is_whole


def find_route(app: Starlette, path: str) -> str | None:
    """Return the template of the route that answers a path."""
    scope = {"type": "http", "method": "GET", "path": path, "root_path": ""}
    routes = (route for route in app.routes if isinstance(route, Route))
    return next((route.path for route in routes if route.matches(scope)[0] is Match.FULL), None)


def choose_visits(scene: Scene, seen: set[tuple]) -> tuple[list[Visit], set[str]]:
    """Return pages of a scene that show something new, and the routes that were asked.

    `seen` holds what earlier scenes showed, and is added to.
    """
    app, visits, routes = build_app(scene.build()), [], set()
    with TestClient(app, follow_redirects=False, raise_server_exceptions=False) as client:
        asked = (
            walk(client, "", list(scene.start))
            if scene.follow
            else {address: client.get(address) for address in scene.start}
        )
        for address, response in asked.items():
            route = find_route(app, urlsplit(address).path)
            if response is None:
                continue
            routes.add(route)
            if not is_page(address, response):
                continue
            shapes = {(response.status_code, *s) for s in Shapes(response.text, route).found}
            if not shapes <= seen:
                seen |= shapes
                visits.append(Visit(scene=scene, address=address, status=response.status_code))
    return visits, routes - {None}
