"""A miner's page: what it says of itself, how its attempts ended, what it earned, its audits."""

from urllib.parse import quote

import pytest
from starlette.testclient import TestClient

from tests.crawler import text_of
from tests.fake_views import MINER, FakeViews, build_app, build_chain


@pytest.fixture(name="views")
def build_views() -> FakeViews:
    return build_chain(30)


def test_a_miner_is_summed_up_in_one_sentence_and_six_figures(client, views):
    views.market.add_miner("miner-a", completed=39, lost=1, running=2, audits=True)
    views.market.add_miner("miner-b")
    views.add_audit(1)
    views.seal()
    text = text_of(client.get("/miners/miner-a"))
    earned = sum(t.payload.price_micros for t in views.final if t.type == "receipt")
    for words in (
        "is at work for this node: 39 of its 40 attempts to run a job brought a result, "
        "and 2 jobs run now.",
        "Success97.5 %",
        "Jobs run here39",
        f"Earned, credits{earned / 1e6:g}",
        "1,000 tokens, credits0.01",
        "Audits passed1 of 1",
        "GPURTX 4090 24 GB",
        "Takessmollm2:135m",
        "Audits othersyes",
        "by 60 final receipts. Other miners here work for it too: miner-b.",
        "smollm2:135m 60 receipts",
    ):
        assert words in text
    assert text.count("in #30") == 2


def test_a_miner_that_did_nothing_yet_says_so(client, views):
    views.market.add_miner("idle", account=None, gpu_name=None, capabilities=())
    text = text_of(client.get("/miners/idle"))
    for words in (
        "it has run no job of this node yet.",
        "Successnone",
        "GPUnot stated",
        "Takesany model",
        "It has no key",
        "There are none yet",
    ):
        assert words in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"active": False}, "This miner is away: it has run no job"),
        ({"draining": True, "running": 1}, "takes no more: it runs 1 job, and has ended none yet."),
    ],
)
def test_a_miner_is_said_to_be_away_or_to_finish(client, views, changes, words):
    views.market.add_miner("m", **changes)
    assert words in text_of(client.get("/miners/m"))


def test_the_twin_of_a_miner_has_the_same_figures_and_no_api_key(client, views):
    views.market.add_miner("miner-a", completed=39, lost=1)
    response = client.get("/miners/miner-a.json")
    shown = response.json()
    assert (shown["completed"], shown["lost"], shown["account"]) == (39, 1, MINER.account)
    assert shown["earned"]["earned_receipts"] == shown["lately"]["receipts"] == 60
    assert shown["lately"]["thousand_micros"] == 10_000
    assert "secretprefix" not in response.text
    again = client.get("/miners/miner-a.json", headers={"if-none-match": response.headers["etag"]})
    assert again.status_code == 304


def test_a_page_follows_its_miner_and_not_only_the_chain(client, views):
    views.market.add_miner("miner-a", completed=1)
    tag = client.get("/miners/miner-a").headers["etag"]
    views.market.standings.clear()
    views.market.add_miner("miner-a", completed=2)
    assert client.get("/miners/miner-a", headers={"if-none-match": tag}).status_code == 200


def test_an_unknown_miner_and_a_node_without_miners_are_explained(client, views):
    unknown = client.get("/miners/nobody")
    assert unknown.status_code == 404
    assert "No miner of this name is registered on this node." in text_of(unknown)
    assert client.get("/miners/nobody.json").json() == {
        "detail": "No miner of this name is registered on this node."
    }
    views.market = None
    with TestClient(build_app(views)) as follower:
        assert "This node takes no jobs" in text_of(follower.get("/miners/miner-a"))


def test_links_to_a_miner_survive_whatever_it_is_called(client, views):
    name = "a/b?c#d"
    views.market.add_miner(name)
    assert f'href="/miners/{quote(name, safe="")}"' in client.get("/miners").text
    assert client.get(f"/miners/{quote(name, safe='')}").status_code == 200
    assert client.get(f"/miners/{quote(name, safe='')}.json").json()["miner_id"] == name
