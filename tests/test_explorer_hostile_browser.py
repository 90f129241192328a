"""Hostile names in Chromium: every page of them is the page of harmless ones, with other words.

Two nodes hold the same things under different names. Their pages are paired by walking both in the
order of their links, and must have the same elements with the same attributes after scripts ran.
"""

import csv
import io
import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any
from xml.etree import ElementTree as ET

import httpx2
import pytest
from httpx2 import Response
from playwright.sync_api import Page, expect
from starlette.testclient import TestClient

from explorer_ui.format import visible
from explorer_ui.jobs import STATES
from ledger.views import PeerView
from tests.api_node import ApiNode, run_job
from tests.browser import Server, new_context, open_page, watch
from tests.crawler import Skeleton, walk
from tests.explorer_node import AskedNode, build_faces
from tests.explorer_stage import Node, is_page
from tests.fake_views import FakeViews, build_app
from tests.hostile import CORPUS, find_hidden

HARMLESS = [f"name{number:02}" for number in range(len(CORPUS))]
NAME = re.compile("name[0-9]{2}")
ALL = "\n".join(text for text in CORPUS.values() if "\0" not in text)
"""As a prompt or an answer: the API takes no NUL in one."""
FORMULAS = ("=", "+", "-", "@", "\t", "\r")
PHONE = {"width": 320, "height": 800}
OUTLINE = """() => ({
  elements: Array.from(document.querySelectorAll("*"),
    (e) => [e.localName, ...e.getAttributeNames().sort()].join(" ")),
  overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
})"""


def build_named(names: list[str]) -> FakeViews:
    """A node on which all that others choose is one of `names`, each of them wherever it can be."""
    views = FakeViews(network=names[0], authority_names=[*names[1:4], names[0]])
    for number, name in enumerate(names):
        who = name.replace("/", "\N{FRACTION SLASH}")  # it stands in addresses: none has a slash
        views.market.add_miner(who, capabilities=(name,), gpu_name=name, gpu_memory=name)
        state = STATES[number % len(STATES)]
        views.add_job(number, state, client=who, model=name, miner_id=who, reason=name)
        views.add_receipt(
            number, miner_id=who, client=who, provider=who, model=name, sampler=name,
            metered_by=name, unit_type=name, model_digest=name,
        )  # fmt: skip
    views.add_change(name=names[4], url=names[5])
    views.seal()
    views.add_evidence()
    views.add_audit(0, ending="early")
    views.seal()
    views.add_receipt(900, model=names[6])
    views.others = (PeerView(account="ait1x", name=names[7], url=names[8], height=1, answers=True),)
    return views


Answers = dict[str, Response | None]


class Stage:
    """The two nodes on sockets, and what each answered to a walk along all its links."""

    def __init__(self, stack: ExitStack) -> None:
        self.servers, self.walks = [], []
        for names in (list(CORPUS.values()), HARMLESS):
            app = build_app(build_named(names))
            self.servers.append(stack.enter_context(Server(app)))
            with TestClient(app, follow_redirects=False) as client:
                self.walks.append(walk(client, "", ["/", "/search?q=demo", "/opensearch.xml"]))

        self.urls = [server.url for server in self.servers]

    def pairs(self) -> Iterator[tuple[str, Response, str, Response]]:
        """(hostile address, answer, harmless address, answer), streams left out."""
        for (bad, refused), (good, given) in zip(*(w.items() for w in self.walks), strict=True):
            assert (refused is None) == (given is None), bad
            if refused is not None and given is not None:
                yield bad, refused, good, given


@pytest.fixture(scope="module", name="stage")
def build_stage():
    with ExitStack() as stack:
        yield Stage(stack)


@pytest.fixture(name="page")
def open_phone(browser, stage):
    """A page whose complaints, dialogs and foreign requests fail the test."""
    context = new_context(browser, viewport=PHONE)
    page = context.new_page()
    problems = watch(page, *stage.urls)
    yield page
    context.close()
    assert problems == []


def outline(page: Page, address: str) -> list[str]:
    page.goto(address, wait_until="load")
    found = page.evaluate(OUTLINE)
    assert found["overflow"] <= 0, address
    assert find_hidden(page.inner_text("body")) == [], address
    return found["elements"]


def test_pages_of_hostile_names_are_those_of_harmless_ones_in_a_browser(page, stage):
    shown: set[tuple[str, str]] = set()
    outlines: dict[str, list[str]] = {}
    for bad, refused, good, given in stage.pairs():
        assert refused.headers.get("content-type") == given.headers.get("content-type"), bad
        if not is_page(good, given):
            continue
        kind = good.split("/")[1].partition("?")[0]
        new = {(kind, name) for name in NAME.findall(given.text)} | {(kind, "")}
        if new <= shown:
            continue
        shown |= new
        tags = repr(Skeleton(given.text).tags)
        assert repr(Skeleton(refused.text).tags) == tags, bad
        if tags not in outlines:
            outlines[tags] = outline(page, stage.urls[1] + good)
        assert outline(page, stage.urls[0] + bad) == outlines[tags], bad
    for kind in ("receipts", "txs", "jobs", "accounts", "miners"):
        assert {name for seen, name in shown if seen == kind} >= set(HARMLESS), kind


def test_data_of_hostile_names_is_data_and_a_browser_shows_it_as_such(browser, stage):
    documents = {}
    for address, answer, _, twin in stage.pairs():
        media_type = answer.headers.get("content-type", "").partition(";")[0]
        if answer.status_code != 200 or media_type == "text/html":
            continue
        documents.setdefault((media_type, address.split("/")[1]), address)
        if not address.startswith("/static/"):
            assert answer.headers["x-content-type-options"] == "nosniff", address
        if media_type == "application/json":
            json.loads(answer.text)
        elif media_type.endswith("xml") and not address.startswith("/static/"):
            tags = [[e.tag for e in ET.fromstring(a.text).iter()] for a in (answer, twin)]
            assert tags[0] == tags[1], address
            assert find_hidden(answer.text) == [], address
        elif media_type == "text/csv":
            rows = list(csv.reader(io.StringIO(answer.text)))
            assert len({len(row) for row in rows}) == 1, address
            assert not [c for row in rows for c in row if c.startswith(FORMULAS)], address
    assert {kind for kind, _ in documents} >= {
        *("application/json", "application/atom+xml", "text/csv"),
        "application/opensearchdescription+xml",
    }
    shown = [a for (kind, _), a in documents.items() if kind == "application/json"]
    icon = "404"  # which Chromium asks for beside a document that names none
    with open_page(browser, stage.servers[0], "/", expected=icon) as page:
        for address in shown:  # of other kinds Chromium makes files
            page.goto(stage.urls[0] + address)
            assert page.locator("script, img, iframe, form").count() == 0, address


def seal_named(node: Node, names: list[str], first: int) -> None:
    """Seal a block of eight receipts, the first of them named like `names[first]`."""

    def seal(views: FakeViews) -> None:
        for number, name in enumerate(names[first : first + 8], first):
            views.add_receipt(number, model=name, client=name, miner_id=name)
        views.seal()

    node.change(seal)


def test_hostile_names_that_come_by_stream_change_no_markup_either(browser):
    with Node(FakeViews()) as bad, Node(FakeViews()) as good, ExitStack() as stack:
        pages = [stack.enter_context(open_page(browser, node, "/")) for node in (bad, good)]
        for block, first in enumerate(range(0, len(CORPUS), 8), 1):
            seal_named(bad, list(CORPUS.values()), first)
            seal_named(good, HARMLESS, first)
            for page in pages:
                expect(page.locator("#latest-blocks th").first).to_have_text(f"#{block}")
            outlines = [page.evaluate(OUTLINE)["elements"] for page in pages]
            assert outlines[0] == outlines[1]
            assert find_hidden(pages[0].inner_text("body")) == []


def show_texts(page: Page, url: str, job: dict[str, Any], key: str) -> list[str]:
    page.goto(f"{url}/jobs/{job['job_id']}", wait_until="load")
    page.get_by_label("API key").fill(key)
    page.get_by_role("button", name="Show").click()
    expect(page.locator("#disclosure pre")).to_have_count(3)
    return page.evaluate(OUTLINE)["elements"]


def stream_text(page: Page, asked: AskedNode, text: str) -> None:
    """Ask in the playground, and answer with a text one character at a time."""
    page.goto(f"{asked.url}/playground", wait_until="load")
    page.get_by_label("API key").fill(asked.node.keys["client"])
    page.get_by_role("button", name="Ask", exact=True).click()
    job = page.locator("#answer .trail a")
    with httpx2.Client(base_url=asked.url, timeout=20) as miner:
        path = f"/v1/jobs/{job.inner_text()}"
        me = {"miner_id": "m1"}
        miner.post("/v1/miners/register", json=me | {"capabilities": ["*"]}).raise_for_status()
        miner.post(f"{path}/claim", json=me).raise_for_status()
        for offset, character in enumerate(text):
            told = me | {"offset": offset, "text": character}
            miner.post(f"{path}/text", json=told).raise_for_status()
        gone = me | {"reason": text, "retryable": False}
        miner.post(f"{path}/fail", json=gone).raise_for_status()
    expect(page.locator("#answer .verdict")).to_contain_text("It failed")


def test_hostile_tokens_that_come_one_by_one_are_shown_as_all_at_once(browser, tmp_path):
    """A tower of marks, a pair of controls or a tag is whole in none of them."""
    node = ApiNode(tmp_path)
    texts = [CORPUS[name] for name in ("script", "bidi", "controls", "tower", "emoji", "end tags")]
    with AskedNode(node) as asked, open_page(browser, asked, "/", viewport=PHONE) as page:
        asked.call(asked.bind())
        outlines = []
        for text in ["plain", *texts]:
            stream_text(page, asked, text)
            outlines.append(page.evaluate(OUTLINE))
            assert find_hidden(page.inner_text("body")) == []
            shown = page.locator("#answer pre").inner_text()
            assert shown == "\n".join(visible(line) for line in text.split("\n"))
        assert [found["elements"] for found in outlines] == [outlines[0]["elements"]] * len(
            outlines
        )
        assert {found["overflow"] for found in outlines} == {0}
    node.coordinator.close()
    node.close()


def test_hostile_prompts_and_answers_are_shown_to_their_owner_as_text(browser, tmp_path):
    node, texts = ApiNode(tmp_path), [ALL, "W" * 5000]
    app = build_faces(node, "strict")
    with TestClient(app, headers={"X-Api-Key": node.keys["miner"]}) as client:
        jobs = [run_job(client, node, prompt=text, result=text)[0] for text in [*texts, "plain"]]
    with Server(app) as server, open_page(browser, server, "/", viewport=PHONE) as page:
        shown = [show_texts(page, server.url, job, node.keys["client"]) for job in jobs]
        assert shown[0] == shown[1] == shown[2]
        for job in jobs[:2]:
            show_texts(page, server.url, job, node.keys["client"])
            answer = page.locator("#disclosure pre").nth(1).inner_text()
            assert answer[:20] in {"<script>alert(1)</sc", "W" * 20}
            assert find_hidden(page.inner_text("body")) == []
            assert page.evaluate(OUTLINE)["overflow"] <= 0
    node.close()
