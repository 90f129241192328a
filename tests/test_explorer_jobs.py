"""Jobs as everybody may see them: lists, one job, what is pending; on followers too."""

import json
import re

import pytest
from playwright.sync_api import expect
from starlette.testclient import TestClient

from explorer_ui.jobs import STATES
from tests.api_node import ApiNode, run_job
from tests.browser import Server, open_page
from tests.crawler import text_of
from tests.explorer_node import build_faces
from tests.fake_views import FakeViews, build_app, build_chain, receipt_id

LINK = re.compile(r'href="/jobs/(job_\w+)"')
SECRET_PROMPT, RESULT = "what nobody may read \u202e", "Rayleigh."


@pytest.fixture(name="views")
def build_views() -> FakeViews:
    views = build_chain(3)
    views.add_receipt(100)
    for number in range(60):
        views.add_job(number, STATES[number % 5])
    return views


# --- lists --------------------------------------------------------------------------------------


def test_tabs_count_the_jobs_and_narrow_the_list(client):
    page = client.get("/jobs")
    text = text_of(page)
    assert "60 jobs were submitted to this node; 12 run now and 12 wait for a miner." in text
    for words in ("All 60", "Pending 12", "Running 12", "Completed 12", "Failed 12"):
        assert words in text
    failed = client.get("/jobs?status=failed")
    assert len(LINK.findall(failed.text)) == 12
    assert 'aria-current="page">Failed' in failed.text
    assert 'href="/jobs.json?status=failed"' in failed.text


def test_pages_of_jobs_lead_down_and_back_up(client):
    page, pages = client.get("/jobs").text, []
    while True:
        pages.append(LINK.findall(page))
        older = re.search(r'href="([^"]+)" rel="next"', page)
        if older is None:
            break
        page = client.get(older[1].replace("&amp;", "&")).text
    assert [len(rows) for rows in pages] == [25, 25, 10]
    newer = re.search(r'href="([^"]+)" rel="prev"', page)[1].replace("&amp;", "&")
    page = client.get(newer).text
    assert LINK.findall(page) == pages[1]
    newer = re.search(r'href="([^"]+)" rel="prev"', page)[1].replace("&amp;", "&")
    page = client.get(newer).text
    assert LINK.findall(page) == pages[0]
    assert ">Newest</a>" not in page


@pytest.mark.parametrize(
    ("address", "status", "words"),
    [
        ("/jobs?status=lost", 400, "pending, running, completed, failed or cancelled"),
        ("/jobs?before=x", 400, "whole number"),
        ("/jobs?before=0", 200, "This is the end of the list."),
        ("/jobs/job_01K00000000000000000000000", 404, "this node knows none with exactly this id"),
        ("/jobs/else", 404, "No block, transaction"),
    ],
)
def test_what_is_not_there_is_explained(client, address, status, words):
    response = client.get(address)
    assert response.status_code == status
    assert words in text_of(response)


def test_a_new_node_says_how_to_submit_a_job():
    with TestClient(build_app(FakeViews())) as client:
        assert "No job has been submitted to this node yet." in text_of(client.get("/jobs"))
        assert "No job is failed." in text_of(client.get("/jobs?status=failed"))
        assert "No jobs wait for a miner, none run now" in text_of(client.get("/pending"))


def test_a_change_of_jobs_alone_changes_the_tags(client, views):
    addresses = ("/jobs", "/pending", "/pending.json", "/_f/pending")
    tags = {address: client.get(address).headers["etag"] for address in addresses}
    for address, tag in tags.items():
        assert client.get(address, headers={"if-none-match": tag}).status_code == 304
    views.add_job(100)
    for address, tag in tags.items():
        assert client.get(address, headers={"if-none-match": tag}).status_code == 200


# --- one job ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "changes", "words"),
    [
        ("pending", {}, "This job waits for a miner: 12 jobs are before it, and 1 miner takes"),
        ("pending", {"attempt": 1}, "1 attempt so far"),
        ("running", {}, "This job runs on the miner miner-a."),
        ("running", {"attempt": 2}, "This job runs on the miner miner-a, its attempt 2."),
        ("failed", {"reason": "queue_timeout"}, "This job failed: queue timeout. It cost nothing"),
        ("cancelled", {"started_at_ms": None}, "This job was cancelled."),
        ("completed", {}, "This job is completed; its receipt waits for the next block."),
        ("completed", {"receipt_id": receipt_id(3)}, "its receipt is final in block #2."),
        ("completed", {"texts_purged": True}, "Both were removed from this node"),
    ],
)
def test_a_job_says_how_far_it_is(client, views, state, changes, words):
    key = views.add_job(100, state, **changes)
    assert words in text_of(client.get(f"/jobs/{key}"))


def test_a_receipt_leads_to_its_job_where_the_job_is_known(client, views):
    link = 'href="/jobs/job_01K1'
    assert link in client.get(f"/receipts/{receipt_id(2)}").text
    views.all_jobs = []
    assert link not in client.get(f"/receipts/{receipt_id(2)}").text


def test_what_is_pending_is_told_as_data(client):
    data = client.get("/pending.json").json()
    assert (data["pending"], data["running"], data["waiting_transactions"]) == (12, 12, 1)
    assert {job["state"] for job in data["jobs"]} == {"running"}
    assert [line["receipt_id"] for line in data["receipts"]] == [receipt_id(100)]


def test_a_follower_says_that_it_has_no_jobs():
    views = build_chain(3)
    views.market = None
    with TestClient(build_app(views)) as client:
        jobs = client.get("/jobs")
        assert "This node takes no jobs" in text_of(jobs)
        assert "/v1/jobs" not in jobs.text
        assert "it follows the chain" in text_of(client.get("/jobs/job_01K00000000000000000000000"))
        pending = client.get("/pending")
        assert "No transactions wait here for the next block." in text_of(pending)
        assert "pending-jobs" not in pending.text + client.get("/_f/pending").text


# --- over a real node: no text, whoever asks; in the browser with the key -------------------------


class JobNode(Server):
    """A strict node on a socket, with one job completed and one that waits."""

    def __init__(self, node: ApiNode) -> None:
        self.node = node
        app = build_faces(node, "strict")
        with TestClient(node.app()) as client:
            self.job, receipt = run_job(client, node, prompt=SECRET_PROMPT)
            self.receipt_id = receipt["receipt_id"]
            headers = {"X-Api-Key": node.keys["client"]}
            waiting = client.post("/v1/jobs", json={"prompt": SECRET_PROMPT}, headers=headers)
            self.waiting = waiting.json()
        super().__init__(app)


@pytest.fixture(scope="module", name="server")
def start_server(tmp_path_factory):
    node = ApiNode(tmp_path_factory.mktemp("jobs"))
    with JobNode(node) as server:
        yield server
    node.close()


def test_no_page_has_a_text_of_a_job(server):
    with TestClient(server._server.config.app) as client:
        addresses = ["/jobs", "/pending", "/pending.json", "/_f/pending", "/receipts.json"]
        addresses += [f"/jobs/{job['job_id']}" for job in (server.job, server.waiting)]
        addresses += [f"/_f/jobs/{server.job['job_id']}", f"/receipts/{server.receipt_id}"]
        for address in addresses:
            for headers in ({}, {"X-Api-Key": server.node.keys["admin"]}):
                response = client.get(address, headers=headers)
                assert response.status_code == 200, address
                assert "what nobody may read" not in response.text
                assert RESULT not in response.text


def test_the_holder_of_the_key_reads_the_texts_in_place(browser, server):
    path = f"/jobs/{server.job['job_id']}"
    with open_page(browser, server, path) as page:
        page.fill("#key", server.node.keys["client"])
        page.get_by_role("button", name="Show").click()
        expect(page.locator("#disclosure")).to_contain_text(RESULT)
        expect(page.locator("#disclosure")).to_contain_text("what nobody may read ⟨U+202E⟩")
        page.reload(wait_until="domcontentloaded")
        expect(page.locator("#key")).to_have_value("")
        assert server.node.keys["client"] not in json.dumps(page.context.storage_state())


@pytest.mark.parametrize(
    ("key", "words", "expected"),
    [
        ("", "This key may not read the texts of this job.", None),
        ("aik_wrong_key", "This key is unknown to this node, or was revoked.", "401"),
    ],
)
def test_others_are_told_why_they_read_nothing(browser, server, key, words, expected):
    path = f"/jobs/{server.job['job_id']}"
    with open_page(browser, server, path, expected=expected) as page:
        page.fill("#key", key)
        page.get_by_role("button", name="Show").click()
        expect(page.locator("#disclosure .verdict")).to_have_text(words)
        expect(page.locator("#disclosure")).not_to_contain_text("nobody may read")
        expect(page.get_by_role("button", name="Cancel this job")).to_have_count(0)


def test_the_holder_of_the_key_cancels_a_job_that_has_not_ended(browser, server):
    path = f"/jobs/{server.waiting['job_id']}"
    # Its stream ends at once on this node, so the page comes back to it.
    with open_page(browser, server, path) as page:
        page.fill("#key", server.node.keys["client"])
        page.get_by_role("button", name="Cancel this job").click()
        expect(page.locator("#disclosure .verdict")).to_have_text("It is cancelled.")
        page.goto(server.url + path, wait_until="domcontentloaded")
        expect(page.locator("#lede")).to_have_text(
            "This job was cancelled. It cost nothing, and has no receipt."
        )


def test_the_twin_of_the_jobs_shows_what_the_page_shows_and_no_text(client):
    shown = client.get("/jobs.json").json()
    assert len(shown["jobs"]) == 25
    assert shown["counts"] == dict.fromkeys(STATES, 12)
    assert not {"prompt", "result"} & set(shown["jobs"][0])
    older = client.get("/jobs.json", params={"before": shown["older"]}).json()
    assert older["jobs"][0]["cursor"] == shown["older"] - 1
    failed = client.get("/jobs.json?status=failed").json()["jobs"]
    assert {job["state"] for job in failed} == {"failed"}
    assert client.get("/jobs.json?status=lost").status_code == 400
