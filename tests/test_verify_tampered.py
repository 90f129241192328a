"""Tampered proofs as a reader meets them: each face names the claims that fail, and no others.

One vector of each kind that the verifiers share, by what fails in it, on three faces: `/verify`,
the page that works offline, and the button on a receipt's page, whose node sends the tampered one.
"""

import json

import pytest
from playwright.sync_api import expect

from explorer_ui.offline import build_offline
from tests.browser import Server, open_page
from tests.fake_views import build_app, build_chain, receipt_id
from tests.verify_modules import vector
from tests.verify_node import choose, claims, verdict, verify

CLAIMS = {
    *("receipt", "provider_signature", "coordinator_signature", "inclusion", "header", "quorum"),
    *("authority_chain", "coordinator", "prompt_digest", "result_digest", "tokens_digest"),
}
RECEIPT = f"/receipts/{receipt_id(0)}"


def choose_cases() -> list[dict]:
    """One case for each set of claims that fail, the genuine and the unreadable among them."""
    vectors = vector("bundles")
    by_failure = {json.dumps(case["failed"]): case for case in reversed(vectors["cases"])}
    return [case | {"genesis": vectors["genesis"][case["genesis"]]} for case in by_failure.values()]


CASES = choose_cases()


def expect_case(page, case: dict) -> None:
    """Wait for the verdict of a case, and hold what is shown to what the vector says."""
    if case["failed"] is None:
        expect(verdict(page)).to_contain_text("Not verified, this is no proof bundle")
        assert claims(page) == []
        return
    count = len(case["failed"])
    outcome = f"Not verified: {count} of" if count else "Verified: none of"
    expect(verdict(page)).to_contain_text(outcome)
    shown = [[name, status.replace(" ", "_")] for name, status in claims(page)]
    assert shown == [list(claim) for claim in case["claims"]], case["why"]


@pytest.fixture(scope="module", name="node")
def start_node():
    with Server(build_app(build_chain(1))) as node:
        yield node


def test_every_claim_fails_in_some_case():
    assert {name for case in CASES for name in case["failed"] or []} == CLAIMS
    assert [] in [case["failed"] for case in CASES]


@pytest.mark.parametrize("face", ["served", "offline"])
def test_chosen_files_are_refused_by_the_claims_that_fail(browser, node, tmp_path, face):
    file = tmp_path / "verifier.html"
    file.write_bytes(build_offline())
    context = browser.new_context()
    page = context.new_page()
    for case in CASES:
        page.goto(f"{node.url}/verify" if face == "served" else file.as_uri())
        for kind in ("bundle", "genesis"):
            choose(page, kind, case[kind].encode())
        if "disclosure" in case:
            choose(page, "disclosure", json.dumps(case["disclosure"]).encode())
        verify(page)
        expect_case(page, case)
    context.close()


def test_a_node_that_sends_a_tampered_proof_is_refused_on_its_own_page(browser, node):
    with open_page(browser, node, RECEIPT) as page:
        sent = {}
        page.route("**/v1/receipts/*/proof", lambda route: route.fulfill(body=sent["proof"]))
        page.route("**/v1/genesis", lambda route: route.fulfill(body=sent["genesis"]))
        for case in (case for case in CASES if "disclosure" not in case):
            sent |= {"proof": case["bundle"], "genesis": case["genesis"]}
            page.reload(wait_until="load")
            button = page.get_by_role("button", name="Verify in this browser")
            button.evaluate("(button, id) => { button.dataset.receipt = id; }", find_id(case))
            button.click()
            expect_case(page, case)


def find_id(case: dict) -> str:
    if case["failed"] is None:
        return ""
    return json.loads(case["bundle"])["envelope"]["payload"]["receipt_id"]
