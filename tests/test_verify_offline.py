"""The verifiers to take away: built by anybody, the same bytes everywhere, at work from disk."""

import hashlib

import pytest
from playwright.sync_api import expect
from starlette.testclient import TestClient

from explorer_ui.offline import ENTRY, build_offline, join_modules
from explorer_ui.verify import SCRIPT
from ledger.encoding import encode
from scripts.offline_verifier import main as write_offline
from tests.browser import Server, open_page
from tests.fake_views import FakeViews, build_app
from tests.verify_node import build_changed_chain, choose, last_bundle, verdict, verify


def test_the_offline_page_is_what_anybody_can_build_and_its_hash_is_shown(tmp_path, capsys):
    with TestClient(build_app(FakeViews())) as client:
        answer = client.get("/verify/offline.html")
        file = tmp_path / "verifier.html"
        assert write_offline([str(file)]) == 0
        assert answer.content == file.read_bytes() == build_offline()
        assert answer.headers["content-disposition"].startswith("attachment; ")
        digest = hashlib.sha256(answer.content).hexdigest()
        assert digest in capsys.readouterr().out
        page = client.get("/verify").text
        script = client.get("/verify/verify_receipt.py")
        assert script.content == SCRIPT.read_bytes()
        assert digest in page
        assert hashlib.sha256(script.content).hexdigest() in page
        again = client.get(
            "/verify/offline.html", headers={"if-none-match": answer.headers["etag"]}
        )
        assert again.status_code == 304
    assert write_offline([]) == 2


def download(browser, folder):
    with (
        Server(build_app(FakeViews())) as server,
        open_page(browser, server, "/verify") as page,
        page.expect_download() as saved,
    ):
        page.get_by_role("link", name="Download the offline page").click()
        file = folder / saved.value.suggested_filename
        saved.value.save_as(file)
    return file


def test_the_downloaded_page_verifies_from_disk_and_may_not_connect(browser, tmp_path):
    file, chain = download(browser, tmp_path), build_changed_chain()
    context = browser.new_context()
    page, requests, complaints = context.new_page(), [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(file.as_uri())
    choose(page, "bundle", encode(last_bundle(chain)))
    choose(page, "genesis", encode(chain.genesis))
    verify(page)
    expect(verdict(page)).to_have_text("Verified: none of 8 claims failed.")
    expect(page.locator(".report")).to_contain_text("What this does not prove")
    expect(page.get_by_role("button", name="Use this node")).to_have_count(0)
    assert (requests, complaints) == ([file.as_uri()], [])
    refused = page.evaluate(
        "(url) => fetch(url).then(() => false, () => true)", "http://127.0.0.1:9/"
    )
    assert refused is True
    assert "Content Security Policy" in complaints[0]
    context.close()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("export let a = 1;", "unknown form"),
        ("export default 1;", "unknown form"),
        ('import "./b.js";', "unknown form"),
        ('export * from "./b.js";', "unknown form"),
        ('const b = await import("./b.js");', "cannot stand"),
        ('const a = "</script>";', "cannot stand"),
        ("const a = 1;\r\n", "cannot stand"),
        ('import { a } from "./offline.js";', "imports itself"),
    ],
)
def test_a_module_that_cannot_be_joined_is_refused(tmp_path, text, reason):
    file = tmp_path / ENTRY
    file.parent.mkdir()
    file.write_bytes(text.encode())
    with pytest.raises(ValueError, match=reason):
        join_modules(tmp_path, ENTRY)
