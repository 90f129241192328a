"""Audits in the explorer: what others found, in words, without calling it a proof."""

import pytest

from tests.builders import build_key
from tests.crawler import Skeleton, crawl, text_of
from tests.fake_views import MINER, FakeViews, build_chain, receipt_id

FAILED = {
    "verdict": "fail",
    "tokens": 2000,
    "exact_tokens": 1999,
    "outside_tokens": 1,
    "mean_gap_micros": 900_000,
    "max_gap_micros": 3_500_000,
    "ending": "early",
    "text_matches": False,
}


@pytest.fixture(name="views")
def build_views() -> FakeViews:
    return build_chain(5)


def section(response, name: str) -> str:
    """The words of a section, by its heading's id."""
    text = response.text
    start = text.index(f'aria-labelledby="{name}"')
    return " ".join("".join(Skeleton(text[start : text.index("</section>", start)]).words).split())


def test_a_receipt_without_an_audit_says_that_this_says_nothing(client):
    shown = section(client.get(f"/receipts/{receipt_id(3)}"), "audits")
    assert "Nobody has audited this answer." in shown
    assert "says nothing about it" in shown


def test_a_receipt_shows_each_audit_in_words_with_its_transaction(views, client):
    passed, failed = views.add_audit(3), views.add_audit(3, **FAILED)
    page = client.get(f"/receipts/{receipt_id(3)}")
    shown = section(page, "audits")
    for sentence in (
        "each of the 10 tokens of the answer: 9 of them (90 %) it would have chosen itself",
        "each of the 2,000 tokens of the answer: 1,999 of them (99.9 %)",
        "and 1 its model could not have chosen at all",
        "Largest distance3.5",
        "ends early",
        "do not spell",
    ):
        assert sentence in shown
    for transaction in (passed, failed):
        assert f'href="/txs/{transaction}"' in page.text
    assert shown.count("pending") == 2
    assert "proved" not in shown


def test_a_new_audit_makes_a_page_that_is_kept_old(views, client):
    address = f"/receipts/{receipt_id(3)}"
    tag = client.get(address).headers["etag"]
    assert client.get(address, headers={"If-None-Match": tag}).status_code == 304
    views.add_audit(3)
    assert client.get(address, headers={"If-None-Match": tag}).status_code == 200


def test_an_account_tells_what_audits_of_its_answers_come_to(views, client):
    views.add_audit(1)
    views.add_audit(2, **FAILED)
    views.seal()
    page = client.get(f"/accounts/{MINER.account}")
    shown = section(page, "audits")
    assert "1 of 2 audits passed." in shown
    assert "2,010 tokens of its answers: 99.9 % they would have chosen themselves" in shown
    assert "the mean distance from their choices is 0.45157" in shown
    for number in (1, 2):
        assert f'href="/receipts/{receipt_id(number)}"' in page.text
    data = client.get(f"/accounts/{MINER.account}.json").json()
    assert data["audits"] == {
        "passed": 1,
        "failed": 1,
        "tokens": 2010,
        "exact_tokens": 2008,
        "gap_micros": 903_140,
        "is_suspect": False,
    }


def test_an_account_whose_audits_stand_out_together_is_called_suspect(views, client):
    for number in (1, 2):
        views.add_audit(number)
    views.seal()
    address = f"/accounts/{MINER.account}"
    assert "Suspect" not in section(client.get(address), "audits")
    for number in (3, 4, 5):
        views.add_audit(number, mean_gap_micros=900_000)
    views.seal()
    assert "Suspect." in section(client.get(address), "audits")


def test_an_account_that_nobody_audited_says_so(client):
    assert "Nobody has audited" in section(client.get(f"/accounts/{MINER.account}"), "audits")
    assert 'id="audits"' not in client.get("/accounts/demo").text


def test_an_auditor_is_told_as_one(views, client):
    views.add_audit(1)
    views.seal()
    text = text_of(client.get(f"/accounts/{build_key('auditor').account}"))
    assert "This is an auditor of this network." in text


def test_links_of_audits_lead_somewhere(views, client):
    audits = [views.add_audit(1), views.add_audit(2, **FAILED)]
    views.seal()
    seen = crawl(client, "", [f"/receipts/{receipt_id(1)}", f"/accounts/{MINER.account}"])
    assert {f"/txs/{audit}" for audit in audits} <= seen
    assert "was audited and failed" in text_of(client.get(f"/txs/{audits[1]}"))
