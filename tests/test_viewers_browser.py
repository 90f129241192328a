"""Swagger UI and ReDoc in Chromium: every path, only their own node, nothing in the console."""

import json
import re
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
import yaml
from playwright.sync_api import Page, expect
from starlette.applications import Starlette
from starlette.routing import Mount

from api.app import OPENAPI_FILE
from tests.api_node import ApiNode
from tests.browser import Server, open_page

DOCUMENT = yaml.safe_load(OPENAPI_FILE.read_text("utf-8"))
OPERATIONS = {(method, path) for path, methods in DOCUMENT["paths"].items() for method in methods}
PLACES = [("", 360), ("", 1280), ("/api", 360), ("/told", 1280), ("/untold/api", 1280)]
"""Where a viewer is opened, and how wide."""


class Unprefixed:
    """A proxy that takes a prefix away, and tells the node nothing of it."""

    def __init__(self, app, prefix: str) -> None:
        self._app, self._prefix = app, prefix

    async def __call__(self, scope, receive, send):
        path = scope["path"].removeprefix(self._prefix)
        bare = {"path": path, "raw_path": path.encode(), "root_path": ""}
        await self._app({**scope, **bare}, receive, send)


class Proxied:
    """The same node at the root, under a prefix it is told of, and under one it is not."""

    def __init__(self, app) -> None:
        self._direct = Starlette(routes=[Mount("/told", app), *app.routes])
        self._unprefixed = Unprefixed(app, "/untold")

    async def __call__(self, scope, receive, send):
        is_untold = scope["path"].startswith("/untold/")
        await (self._unprefixed if is_untold else self._direct)(scope, receive, send)


@pytest.fixture(scope="module", name="node")
def start_node(tmp_path_factory):
    node = ApiNode(tmp_path_factory.mktemp("node"))
    with Server(Proxied(node.app("strict"))) as server:
        node.server = server
        yield node
    node.close()


@contextmanager
def open_viewer(browser, node, path: str, **options):
    """A viewer that shows the document. Chromium tells the console of what the policy blocks."""
    with open_page(browser, node.server, path, **options) as page:
        expect(page.locator(".opblock, .api-content").first).to_be_visible()
        yield page


def fits(page: Page) -> bool:
    return page.evaluate(
        "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    )


def listed_in_swagger(page: Page) -> set[tuple[str, str]]:
    rows = page.locator(".opblock").evaluate_all(
        """rows => rows.map((row) => [row.querySelector(".opblock-summary-method").textContent,
            row.querySelector(".opblock-summary-path").dataset.path])"""
    )
    return {(method.lower(), path) for method, path in rows}


def listed_in_redoc(page: Page) -> set[tuple[str, str]]:
    rows = page.locator(".http-verb").evaluate_all(
        "verbs => verbs.map((verb) => [verb.textContent, verb.nextSibling.textContent])"
    )
    return {(method.lower(), path) for method, path in rows}


def try_out(page: Page, operation: str, body: dict | None = None) -> tuple[str, dict]:
    """Open an operation, call it, and return its status and answer as the page shows them."""
    block = page.locator(f"[id='{operation}']")
    block.locator(".opblock-summary-control").click()
    block.get_by_role("button", name="Try it out").click()
    if body is not None:
        block.locator("textarea.body-param__text").fill(json.dumps(body))
    block.get_by_role("button", name="Execute").click()
    row = block.locator(".live-responses-table .response").first
    expect(row).to_be_visible()
    status = row.locator(".response-col_status").inner_text().split()[0]
    return status, json.loads(row.locator(".highlight-code code").first.inner_text())


@pytest.mark.parametrize(("base", "width"), PLACES)
def test_swagger_ui_lists_every_operation_and_calls_the_node_that_it_came_from(
    browser, node, base, width
):
    viewport = {"width": width, "height": 800}
    with open_viewer(browser, node, base + "/docs", viewport=viewport) as page:
        assert listed_in_swagger(page) == OPERATIONS
        assert fits(page)
        assert page.title() == "Swagger UI · AITBC API"
        home = page.locator(".brand").evaluate("link => link.href")
        assert home == f"{node.server.url}{base.removesuffix('/api')}/"
        shown = page.locator(".servers option").all_inner_texts()
        assert shown == [f"{node.server.url}{base} - this node"], "no other server to call"
        with page.expect_response(f"{node.server.url}{base}/health") as called:
            status, answer = try_out(page, "operations-System-getHealth")
        assert (called.value.status, status, answer["status"]) == (200, "200", "ok")
        assert fits(page), "an open operation and its answer too"


@pytest.mark.parametrize(("base", "width"), PLACES)
def test_redoc_lists_every_operation_and_leads_home(browser, node, base, width):
    viewport = {"width": width, "height": 800}
    with open_viewer(browser, node, base + "/redoc", viewport=viewport) as page:
        expect(page.locator(".http-verb").nth(len(OPERATIONS) - 1)).to_be_attached()
        assert listed_in_redoc(page) == OPERATIONS
        assert fits(page)
        assert page.title() == "ReDoc · AITBC API"
        home = page.locator(".brand").evaluate("link => link.href")
        assert home == f"{node.server.url}{base.removesuffix('/api')}/"


def test_redoc_searches_in_its_worker(browser, node):
    with open_viewer(browser, node, "/redoc") as page:
        page.get_by_placeholder("Search...").fill("consistency")
        results = page.locator("[data-role='search:results'] label")
        expect(results.first).to_contain_text(re.compile("tree|consistency", re.IGNORECASE))
        assert results.count() < len(OPERATIONS)


def test_an_address_cannot_make_the_page_show_or_call_something_else(browser, node):
    foreign = "http://other.test/openapi.json"
    path = f"/docs?url={foreign}&configUrl={foreign}&urls.primaryName=x#{foreign}"
    with open_viewer(browser, node, path) as page:
        assert listed_in_swagger(page) == OPERATIONS
        shown = page.locator(".servers option").all_inner_texts()
        assert shown == [f"{node.server.url} - this node"]


def test_the_viewers_lead_to_each_other(browser, node):
    with open_viewer(browser, node, "/api/docs") as page:
        page.get_by_role("link", name="ReDoc", exact=True).click()
        expect(page.locator(".api-content")).to_be_visible()
        assert urlsplit(page.url).path == "/api/redoc"


@pytest.mark.parametrize("scheme", ["ApiKey", "Bearer"])
def test_a_job_is_submitted_with_a_key_that_is_pasted_and_not_kept(browser, node, scheme):
    with open_viewer(browser, node, "/api/docs", expected="401") as page:
        status, answer = try_out(page, "operations-Jobs-submitJob", {"prompt": "Why?"})
        assert (status, answer["error_code"]) == ("401", "AUTH_MISSING_KEY")
        page.locator(".scheme-container").get_by_role("button", name="Authorize").click()
        form = page.locator(".auth-container").filter(has_text=scheme)
        form.locator("input").fill(node.keys["client"])
        form.get_by_role("button", name="Apply").or_(
            form.get_by_role("button", name="Authorize")
        ).first.click()
        page.locator(".modal-ux .close-modal").click()
        page.locator("[id='operations-Jobs-submitJob']").get_by_role(
            "button", name="Execute"
        ).click()
        row = page.locator("[id='operations-Jobs-submitJob'] .live-responses-table .response").first
        expect(row.locator(".response-col_status")).to_contain_text("201")
        job = json.loads(row.locator(".highlight-code code").first.inner_text())
        assert (job["prompt"], job["status"]) == ("Why?", "pending")
        kept = "JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])"
        assert node.keys["client"] not in page.evaluate(kept)
