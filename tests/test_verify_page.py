"""The page /verify as readers use it: files chosen, dropped, pasted, by keyboard, on a phone."""

import json
import re

import pytest
from playwright.sync_api import expect

from ledger.encoding import encode
from tests.browser import open_page
from tests.builders import build_disclosure, build_genesis
from tests.verify_node import (
    OVERFLOW,
    Market,
    build_changed_chain,
    choose,
    claims,
    last_bundle,
    verdict,
    verify,
)

CLAIMS = [
    *("receipt", "provider_signature", "coordinator_signature", "inclusion", "header", "quorum"),
    *("authority_chain", "coordinator"),
]
HOSTILE = "</bdi><img src=//x.test/i onerror=alert(1)>\u202e"
DIGESTS = ["prompt_digest", "result_digest", "tokens_digest"]


@pytest.fixture(scope="module", name="market")
def start_market(tmp_path_factory):
    with Market(tmp_path_factory.mktemp("node")) as market:
        yield market


@pytest.fixture(scope="module", name="chain")
def build_chain_once():
    return build_changed_chain()


def test_a_bundle_with_changes_and_a_disclosure_is_verified_claim_by_claim(browser, market, chain):
    with open_page(browser, market, "/verify") as page:
        choose(page, "bundle", encode(last_bundle(chain)) + b"\n")
        choose(page, "genesis", encode(chain.genesis))
        choose(page, "disclosure", encode(build_disclosure(4)))
        verify(page)
        expect(verdict(page)).to_have_text("Verified: none of 11 claims failed.")
        expect(verdict(page)).to_have_attribute("role", "status")
        assert claims(page) == [(name, "verified") for name in CLAIMS + DIGESTS]
        expect(page.locator(".report")).to_contain_text("2 changes since genesis lead to epoch 2")
        expect(page.locator(".report")).to_contain_text("46 tokens for 0.000046 credits")
        expect(page.locator(".report")).to_contain_text("Held against your genesis of test-net")
        page.locator(".claims summary", has_text="quorum").click()
        opened = page.locator(".claims details[open]")
        expect(opened).to_have_count(1)
        expect(opened).to_contain_text(re.compile("votes\\s*6.*authorities\\s*6.*needed\\s*5"))


def test_what_fails_is_named_and_what_is_claimed_is_called_a_claim(browser, market, chain):
    with open_page(browser, market, "/verify") as page:
        document = json.loads(encode(last_bundle(chain)))
        del document["epochs"][0]
        choose(page, "bundle", encode(document))
        choose(page, "genesis", encode(chain.genesis))
        verify(page)
        expect(verdict(page)).to_have_text("Not verified: 3 of 8 claims failed.")
        failed = [name for name, status in claims(page) if status == "failed"]
        assert failed == ["quorum", "authority_chain", "coordinator"]
        expect(page.locator(".report")).to_contain_text("It claims, and that is not proved")
        choose(page, "bundle", encode(last_bundle(chain)))
        verify(page)
        expect(verdict(page)).to_have_text("Verified: none of 8 claims failed.")
        choose(page, "genesis", encode(build_genesis(1)))
        verify(page)
        expect(verdict(page)).to_have_text("Not verified: 5 of 8 claims failed.")
        assert len(claims(page)) == 8


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "There is no proof bundle yet"),
        ({"bundle": b"{}"}, "There is no genesis yet"),
        ({"bundle": b"{}", "genesis": None}, "Not verified, this is no proof bundle: bundle:"),
        ({"bundle": b"{}", "genesis": b"{}"}, "Your genesis file is not one: genesis: expected"),
        (
            {"bundle": b"{}", "genesis": None, "disclosure": b'"x"'},
            "The disclosure is not one: disclosure: expected an object.",
        ),
        ({"bundle": b'{"\\u202e":1}', "genesis": None}, "expected the field v, envelope"),
        ({"bundle": b" " * (17 << 20), "genesis": None}, "longer than any proof can be"),
    ],
)
def test_what_cannot_be_judged_is_said_in_one_sentence(browser, market, chain, files, words):
    with open_page(browser, market, "/verify") as page:
        for kind, data in files.items():
            choose(page, kind, encode(chain.genesis) if data is None else data)
        verify(page)
        expect(verdict(page)).to_contain_text(words)
        assert claims(page) == []


def test_hostile_names_in_a_bundle_are_shown_as_they_are_and_do_nothing(browser, market, chain):
    document = json.loads(encode(last_bundle(chain)))
    document["envelope"]["signatures"][0]["key_id"] = HOSTILE
    document["envelope"]["payload"]["model"] = HOSTILE
    with open_page(browser, market, "/verify") as page:
        choose(page, "bundle", encode(document))
        choose(page, "genesis", encode(chain.genesis))
        verify(page)
        expect(verdict(page)).to_have_text("Not verified: 4 of 8 claims failed.")
        report = page.locator(".report")
        expect(report).to_contain_text("onerror=alert(1)>⟨U+202E⟩ as coordinator")
        assert "\u202e" not in report.inner_text()
        assert page.evaluate("document.images.length") == 0


def test_pasted_texts_count_as_files_and_the_last_one_given_counts(browser, market, chain):
    with open_page(browser, market, "/verify") as page:
        for kind, document in (("bundle", chain.bundle(0)), ("genesis", chain.genesis)):
            slot = page.locator(".slot", has=page.locator(f"#file-{kind}"))
            choose(page, kind, b"{}")
            slot.locator("summary").click()
            slot.locator("textarea").fill(encode(document).decode())
            expect(page.locator(f"#file-{kind}")).to_have_value("")
        verify(page)
        expect(verdict(page)).to_have_text("Verified: none of 8 claims failed.")
        choose(page, "bundle", b"{}")
        verify(page)
        expect(verdict(page)).to_contain_text("no proof bundle")


DROP = """(texts) => {
  const carrier = new DataTransfer();
  texts.forEach((text, i) => carrier.items.add(new File([text], `${i}.json`)));
  const options = { bubbles: true, cancelable: true, dataTransfer: carrier };
  document.querySelector(".check p").dispatchEvent(new DragEvent("drop", options));
}"""


def test_dropped_files_are_told_apart_by_what_they_hold(browser, market, chain):
    documents = (build_disclosure(4), chain.genesis, last_bundle(chain))
    with open_page(browser, market, "/verify") as page:
        page.evaluate(DROP, [encode(document).decode() for document in documents])
        for kind, number in (("disclosure", 0), ("genesis", 1), ("bundle", 2)):
            slot = page.locator(".slot", has=page.locator(f"#file-{kind}"))
            expect(slot).to_contain_text(re.compile(rf"{number}\.json, \d"))
        verify(page)
        expect(verdict(page)).to_have_text("Verified: none of 11 claims failed.")


def test_the_nodes_own_genesis_may_be_used_but_is_said_to_be_the_nodes(browser, market):
    with open_page(browser, market, "/verify") as page:
        proof = page.request.get(f"{market.url}/v1/receipts/{market.receipt}/proof").body()
        choose(page, "bundle", proof)
        page.get_by_role("button", name="Use this node").click()
        expect(page.locator(".check")).to_contain_text("For this one file you then trust the node.")
        verify(page)
        expect(verdict(page)).to_have_text("Verified: none of 8 claims failed.")
        expect(page.locator(".report")).to_contain_text("For that one file you trusted the node.")


def test_the_keyboard_alone_verifies(browser, market, chain):
    with open_page(browser, market, "/verify") as page:
        choose(page, "bundle", encode(chain.bundle(0)))
        choose(page, "genesis", encode(chain.genesis))
        page.locator("#file-bundle").focus()
        for _ in range(20):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.textContent") == "Verify":
                break
        page.keyboard.press("Enter")
        expect(verdict(page)).to_have_text("Verified: none of 8 claims failed.")
        for _ in range(30):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.localName") == "summary":
                break
        page.keyboard.press("Enter")
        expect(page.locator(".claims details[open]")).to_have_count(1)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 1280])
def test_form_and_verdict_fit(browser, market, chain, width, scheme):
    options = {"viewport": {"width": width, "height": 800}, "color_scheme": scheme}
    with open_page(browser, market, "/verify", **options) as page:
        expect(page.locator("form.check")).to_be_visible()
        assert page.evaluate(OVERFLOW) <= 0
        choose(page, "bundle", encode(last_bundle(chain)))
        choose(page, "genesis", encode(chain.genesis))
        verify(page)
        expect(page.locator(".claims > li")).to_have_count(8)
        for summary in page.locator("main summary").all():
            summary.click()
        assert page.evaluate(OVERFLOW) <= 0
        page.goto(f"{market.url}/receipts/{market.receipt}", wait_until="domcontentloaded")
        page.get_by_role("button", name="Verify in this browser").click()
        expect(page.locator("#own-genesis")).to_be_visible()
        for summary in page.locator(".claims summary").all():
            summary.click()
        assert page.evaluate(OVERFLOW) <= 0


def test_without_javascript_the_page_says_what_to_do(browser, market):
    with open_page(browser, market, "/verify", java_script_enabled=False) as page:
        expect(page.locator("#verifier")).to_contain_text("need JavaScript, which is off here")
        expect(page.locator("main")).to_contain_text("python verify_receipt.py bundle.json")
        expect(page.get_by_role("link", name="Download the script")).to_be_visible()
        page.goto(f"{market.url}/receipts/{market.receipt}", wait_until="domcontentloaded")
        expect(page.get_by_role("button", name="Verify in this browser")).to_have_count(0)


def test_a_check_that_is_overtaken_stops(browser, market, chain):
    with open_page(browser, market, "/verify") as page:
        found = page.evaluate(
            """async ([bundle, genesis]) => {
              const script = document.querySelector("script[type=module]").src;
              const { report } = await import(new URL("report.js", script));
              const bytes = (text) => new TextEncoder().encode(text);
              const stop = new AbortController();
              const [status, output] = [document.createElement("p"), document.createElement("div")];
              const files = { bundle: bytes(bundle), genesis: bytes(genesis), disclosure: null };
              const running = report({ status, output, files, signal: stop.signal });
              stop.abort();
              return [await running, status.textContent];
            }""",
            [encode(last_bundle(chain)).decode(), encode(chain.genesis).decode()],
        )
        assert found == [None, "Checking…"]
