"""Who seals blocks, in the explorer: signing strips, peers, changes of the set, evidence."""

import dataclasses
import re

import pytest
from starlette.testclient import TestClient

from explorer_ui.signing import LINE, WINDOW, Signing
from ledger.encoding import encode
from ledger.views import PeerView
from tests.crawler import Skeleton, text_of
from tests.explorer_addresses import build_changed_views
from tests.fake_views import (
    AUTHORITIES,
    COORDINATOR,
    JOINING,
    MINER,
    NAMES,
    FakeViews,
    build_app,
    build_chain,
)

# --- authorities --------------------------------------------------------------------------------


def rows_of(response, table: int) -> list[str]:
    """The rows of a table of the page, without its head."""
    bodies = re.findall(r"<tbody>(.*?)</tbody>", response.text, re.DOTALL)
    return re.findall(r"<tr>(.*?)</tr>", bodies[table], re.DOTALL)


def build_peer(index: int, **changes) -> PeerView:
    fields = {
        "account": AUTHORITIES[index].account,
        "name": NAMES[index],
        "url": "",
        "height": 3,
        "answers": True,
        "release": "1.2.0",
    }
    return PeerView(**fields | changes)


def test_the_network_page_shows_every_authority_as_this_node_sees_it():
    views = build_chain(3)
    views.account_here = AUTHORITIES[0].account
    views.others = (
        build_peer(1, height=1, release="<b>1</b>\u202e"),
        build_peer(2, answers=False, height=5),
        build_peer(3, release="", height=0),
    )
    with TestClient(build_app(views)) as client:
        first = client.get("/network")
        rows = [" ".join(" ".join(Skeleton(row).words).split()) for row in rows_of(first, 0)]
        assert "What north signed 3 of 3 blocks" in rows[0]
        assert rows[0].endswith("3 of 3 0 #3 level 1.2.3 this node")
        assert rows[1].endswith("3 of 3 1 #1 2 <b>1</b>⟨U+202E⟩ answers")
        assert rows[2].endswith("3 of 3 1 #5 2 ahead 1.2.0 away")
        assert rows[3].endswith("0 of 3 1 unknown unknown unknown not heard")
        assert "From here one of them is away now." in text_of(first)
        assert "1.2 MB" in text_of(first)
        member = client.get("/network.json").json()["members"][1]
        assert (member["name"], member["lag"], member["signed"]) == ("east", 2, 3)
        views.others = ()
        again = client.get("/network", headers={"If-None-Match": first.headers["etag"]})
        assert again.status_code == 200
        assert again.text.count("not asked") == 3


def test_a_follower_says_so_and_asks_nobody():
    with TestClient(build_app(build_chain(1))) as client:
        text = text_of(client.get("/network"))
    assert "a follower: it verifies every block and votes on none" in text
    assert text.count("not asked") == 4


def test_an_authority_shows_what_it_signed_as_cells_and_as_a_table():
    views = build_chain(2)
    views.signers = 4
    views.add_receipt(90)
    views.seal()
    with TestClient(build_app(views)) as client:
        page = client.get(f"/authorities/{AUTHORITIES[3].account}")
        data = client.get(f"/authorities/{AUTHORITIES[3].account}.json").json()
    text = text_of(page)
    assert "This authority signed 1 of the latest 3 blocks and proposed 1" in text
    assert "#3 1 signed #2 down to #1 2 not in the certificate" in text
    assert "1 signed, 2 without its vote, of blocks 1 to 3" in text
    assert '<path class="signed" d="M20 0h8v24h-8z"/>' in page.text
    assert '<path class="missing" d="M0 0h8v24h-8zM10 0h8v24h-8z"/>' in page.text
    assert data["runs"][0] == {"first_height": 3, "last_height": 3, "mark": "signed"}
    assert (data["signed"], data["due"], data["is_member"]) == (1, 3, True)


def test_a_strip_ends_with_the_newest_block_and_reads_each_block_once(monkeypatch):
    views = FakeViews()
    for number in range(WINDOW + 30):
        views.add_receipt(number)
        views.seal()
    asked = []
    blocks = views.blocks

    def count(**wanted):
        found = blocks(**wanted)
        asked.append(len(found))
        return found

    monkeypatch.setattr(views, "blocks", count)
    signing, account = Signing(views), AUTHORITIES[0].account
    strip = signing.strip(views.head(), account)
    assert (strip.first_height, strip.last_height, sum(asked)) == (31, WINDOW + 30, WINDOW)
    assert strip.marks == ("signed",) * WINDOW
    assert strip.draw(LINE).shapes == (("signed", f"M0 0h{3 * WINDOW}v14h-{3 * WINDOW}z"),)
    asked.clear()
    assert signing.strip(views.head(), account) == strip
    assert asked == []
    views.add_receipt(999)
    views.seal()
    assert signing.strip(views.head(), account).last_height == WINDOW + 31
    assert sum(asked) == 1


def test_an_authority_that_has_left_keeps_its_page():
    views = build_changed_views()
    with TestClient(build_app(views)) as client:
        text = text_of(client.get(f"/authorities/{AUTHORITIES[3].account}"))
        accused = text_of(client.get(f"/authorities/{AUTHORITIES[1].account}"))
        other = client.get(f"/authorities/{MINER.account}")
        nobody = client.get("/authorities/ait1qqqq")
    assert "west" in text
    assert "is in the set no more" in text
    assert "It voted twice." in accused
    assert views.final[3].id[:12] in accused
    assert (other.status_code, nobody.status_code) == (404, 404)
    assert "seals no blocks of this network" in text_of(other)


def test_the_network_page_tells_who_seals_and_how_that_changed():
    views = build_changed_views()
    change, evidence = views.final[2], views.final[3]
    with TestClient(build_app(views)) as client:
        text = text_of(client.get("/network"))
        html = client.get("/network").text
    assert "4 authorities seal the blocks of this network; 3 of them make a block final." in text
    assert "It goes on while at most 1 of them is down." in text
    assert "the set of epoch 1, and certify the blocks from #3 on" in text
    for member in views.authorities().members:
        assert f'href="/authorities/{member.account}"' in html
    assert "far north" in text
    assert "<bdi>west</bdi>" not in html
    assert html.count('<span class="state absent">voted twice</span>') == 1
    assert COORDINATOR.account in text
    for transaction in (change, evidence):
        assert f'href="/txs/{transaction.id}"' in html


@pytest.mark.parametrize(
    ("size", "quorum", "sentence"),
    [
        (1, 1, "One authority seals the blocks of this network by itself. If it stops, so does"),
        (2, 2, "2 authorities seal the blocks of this network; 2 of them make a block final. If"),
        (7, 5, "It goes on while at most 2 of them are down."),
    ],
)
def test_the_network_page_says_how_many_may_be_down(monkeypatch, size, quorum, sentence):
    views = FakeViews()
    shown = views.authorities()
    shown = dataclasses.replace(
        shown, members=(shown.members * 2)[:size], quorum=quorum, evidence=()
    )
    monkeypatch.setattr(views, "authorities", lambda: shown)
    with TestClient(build_app(views)) as client:
        assert sentence in text_of(client.get("/network"))


def test_the_twin_of_the_network_page_is_what_the_page_shows():
    views = build_changed_views()
    with TestClient(build_app(views)) as client:
        response = client.get("/network.json")
        again = client.get("/network.json", headers={"if-none-match": response.headers["etag"]})
    shown = response.json()
    assert encode(shown["authorities"]) == encode(views.authorities())
    assert shown["node"] == {"account": "", "ledger_bytes": 1_234_567}
    assert [member["account"] for member in shown["members"]] == [
        member.account for member in views.authorities().members
    ]
    assert again.status_code == 304


def test_a_change_is_shown_beside_the_set_that_it_replaces():
    views = build_changed_views()
    change = views.final[2]
    with TestClient(build_app(views)) as client:
        response = client.get(f"/txs/{change.id}")
    text = text_of(response)
    assert "changes the authorities of this network from block #3 on and is final in" in text
    assert "3 of the 4 authorities before it signed it (3 needed)" in text
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows_of(response, 0)]
    rows = [[re.sub(r"<[^>]*>", " ", cell).split() for cell in row] for row in cells]
    assert [(" ".join(name), *what, *signed) for name, _, _, what, signed in rows] == [
        ("far north was north", "stays", "yes"),
        ("east", "stays", "yes"),
        ("south", "stays", "no"),
        ("new", "joins", "yes"),
        ("west", "leaves", "yes"),
    ]
    assert [" ".join(url) for _, _, url, _, _ in rows][:2] == [
        "http://127.0.0.1:8 was not stated",
        "not stated",
    ]
    assert "May issue receipts from then on" in text
    assert "May no longer issue receipts" not in text


def test_a_change_that_waits_does_not_claim_a_block():
    views = build_chain(1)
    change = views.add_change()
    with TestClient(build_app(views)) as client:
        text = text_of(client.get(f"/txs/{change}"))
    assert "changes the authorities of this network and is pending" in text


def test_a_change_of_a_set_that_is_not_known_here_is_not_compared(monkeypatch):
    views = build_chain(1)
    change = views.add_change()
    monkeypatch.setattr(views, "authority_set", lambda _epoch: None)
    with TestClient(build_app(views)) as client:
        assert "a set that has not begun here" in text_of(client.get(f"/txs/{change}"))


def test_evidence_is_verified_again_and_told_in_words():
    views = build_changed_views()
    evidence = views.final[3]
    with TestClient(build_app(views)) as client:
        text = text_of(client.get(f"/txs/{evidence.id}"))
    assert "proves that the authority east voted twice at height 2 and is final in" in text
    assert "Both signatures were verified again by this node" in text
    assert text.count("“notarize, height 2, view 6”") == 2
    for vote in (evidence.payload.first, evidence.payload.second):
        assert vote.block_hash in text
        assert vote.sig in text
    assert "Nobody signs evidence" in text


@pytest.mark.parametrize(
    ("votes", "sentence"),
    [
        ([("finalize", "aa" * 32), ("nullify", "")], "voted to give a view up must never help"),
        ([("finalize", "aa" * 32), ("finalize", "bb" * 32)], "casts one such vote in a view"),
    ],
)
def test_evidence_names_the_rule_that_was_broken(votes, sentence):
    views = FakeViews()
    evidence = views.add_evidence(votes=votes)
    with TestClient(build_app(views)) as client:
        text = text_of(client.get(f"/txs/{evidence}"))
    assert sentence in text
    assert text.count("for no block") == (votes[1][0] == "nullify")


def test_evidence_that_does_not_hold_is_not_called_verified():
    views = FakeViews()
    forged = views.add_evidence(accused=JOINING, **{"accused_account": AUTHORITIES[0].account})
    with TestClient(build_app(views)) as client:
        text = text_of(client.get(f"/txs/{forged}"))
    assert "These two do not prove it" in text
    assert "does not verify" in text
    assert "verified again" not in text


def test_a_block_lists_what_is_no_receipt_too():
    views = build_changed_views()
    with TestClient(build_app(views)) as client:
        second, third = (text_of(client.get(f"/blocks/{height}")) for height in (2, 3))
    assert "The authorities change to the set of epoch 1" in second
    assert "Evidence that an authority voted twice" in third
