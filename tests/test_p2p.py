"""What a node lets other nodes do to it: one authority of four runs, the test plays the rest."""

import httpx2
import pytest
from msgspec.structs import replace

from consensus.messages import build_message
from ledger.block import Tip, hash_header
from ledger.encoding import encode
from ledger.transaction import build_transaction
from ledger.vote import QuorumCertificate, cast_vote
from node.p2p.address import MESSAGES_PATH, STATUS_PATH, TRANSACTIONS_PATH
from node.p2p.documents import MAX_GOSSIP_BYTES, build_gossip
from node.p2p.stamp import build_stamp
from tests.builders import (
    build_audit_payload,
    build_key,
    build_payload,
    sign_audit,
    sign_receipt,
)
from tests.peer_bench import run_bench

STRANGER = build_key("stranger")


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """For what is refused, and so changes nothing."""
    with run_bench(tmp_path_factory.mktemp("refusing")) as bench:
        yield bench
        assert bench.said() == []
        assert bench.node.chain.tip().height == 0


@pytest.fixture
def fresh(tmp_path):
    with run_bench(tmp_path) as bench:
        yield bench


def refused(answer: httpx2.Response, status: int, code: str, *words: str) -> None:
    assert (answer.status_code, answer.json()["error_code"]) == (status, code), answer.text
    for word in words:
        assert word in answer.json()["detail"]


# --- who may speak ------------------------------------------------------------------------------


def test_the_status_says_who_this_is_and_how_high_its_chain_is(bench):
    status = bench.client.get(STATUS_PATH).json()
    assert status["account"] == bench.keys[0].account
    assert status["genesis"] == bench.network.genesis_hash.hex()
    assert (status["height"], status["hash"]) == (0, bench.network.genesis_hash.hex())


@pytest.mark.parametrize("path", [MESSAGES_PATH, TRANSACTIONS_PATH])
def test_a_stranger_is_not_heard(bench, path):
    refused(bench.post(path, b"{}", STRANGER), 403, "UnknownPeerError", STRANGER.account)


@pytest.mark.parametrize("path", [MESSAGES_PATH, TRANSACTIONS_PATH])
@pytest.mark.parametrize(
    "changes",
    [
        {"genesis_hash": b"\1" * 32},
        {"recipient": STRANGER.account},
        {"path": "/p2p/other"},
    ],
    ids=["another network", "another recipient", "another path"],
)
def test_a_stamp_is_good_for_one_network_recipient_and_path(bench, path, changes):
    refused(bench.post(path, b"{}", **changes), 403, "UnknownPeerError", "does not verify")


def test_a_stamp_is_good_for_one_body(bench):
    body = encode(build_message(bench.tip))
    headers = build_stamp(
        bench.keys[1],
        genesis_hash=bench.network.genesis_hash,
        recipient=bench.keys[0].account,
        path=MESSAGES_PATH,
        body=body + b" ",
    )
    answer = bench.client.post(MESSAGES_PATH, content=body, headers=headers)
    refused(answer, 400, "BodyError", "not the one that was stamped")


@pytest.mark.parametrize("name", ["x-aitbc-account", "x-aitbc-digest", "x-aitbc-signature"])
@pytest.mark.parametrize("value", [None, "", "x" * 62, "ait1", "é", "0" * 64, "f" * 86])
def test_a_mangled_stamp_is_refused(bench, name, value):
    body = encode(build_message(bench.tip))
    headers = build_stamp(
        bench.keys[1],
        genesis_hash=bench.network.genesis_hash,
        recipient=bench.keys[0].account,
        path=MESSAGES_PATH,
        body=body,
    )
    del headers[name]
    if value is not None:
        headers[name] = value.encode()
    answer = bench.client.post(MESSAGES_PATH, content=body, headers=headers)
    refused(answer, 403, "UnknownPeerError")


def test_a_body_that_is_too_long_is_cut_off(bench):
    answer = bench.post(TRANSACTIONS_PATH, b"x" * (MAX_GOSSIP_BYTES + 5000))
    refused(answer, 400, "BodyError", "at most")


def test_a_member_cannot_open_many_requests_at_once(bench, monkeypatch):
    monkeypatch.setattr("node.p2p.routes.MAX_REQUESTS_PER_PEER", 0)
    answer = bench.say(build_message(bench.tip))
    refused(answer, 503, "DatabaseBusyError")
    assert answer.headers["retry-after"] == "1"


# --- what may be said ---------------------------------------------------------------------------


def test_rubbish_is_refused(bench):
    for body in (b"", b"null", b"{}", b"\xff" * 100, b"[" * 10_000):
        refused(bench.post(MESSAGES_PATH, body), 400, "InvalidMessageError")
        refused(bench.post(TRANSACTIONS_PATH, body), 400, "InvalidTransactionError")


def test_a_message_of_another_network_is_refused(bench):
    message = replace(build_message(bench.tip), genesis="ab" * 32)
    refused(bench.say(message), 400, "InvalidMessageError", "another network")


def test_votes_of_another_chain_are_refused(bench):
    elsewhere = Tip(
        genesis_hash=b"\1" * 32,
        height=0,
        hash=b"\1" * 32,
        time_ms=0,
        tree_size=0,
        authority_set=bench.tip.authority_set,
        limits=bench.tip.limits,
    )
    vote = cast_vote(bench.keys[1], member=1, tip=elsewhere, kind="nullify", view=0, block_hash="")
    refused(bench.say(build_message(bench.tip, votes=[vote])), 400, "InvalidSignatureError")


def test_a_vote_by_a_key_that_is_not_the_members_is_refused(bench):
    vote = bench.vote(2, "nullify", None, key=STRANGER)
    refused(bench.say(build_message(bench.tip, votes=[vote])), 400, "InvalidSignatureError")


def test_a_certificate_with_one_vote_too_few_is_refused(bench):
    certificate = bench.certificate("notarize", bench.block(), [1, 2])
    refused(
        bench.say(build_message(bench.tip, certificates=[certificate])),
        400,
        "InvalidCertificateError",
        "expected at least 3 votes of 4, got 2",
    )


def test_a_certificate_that_counts_a_vote_twice_is_refused(bench):
    certificate = bench.certificate("finalize", bench.block(), [1, 2, 2])
    refused(
        bench.say(build_message(bench.tip, certificates=[certificate])),
        400,
        "InvalidCertificateError",
        "distinct voters",
    )


def test_the_same_vote_twice_in_a_message_is_refused(bench):
    vote = bench.vote(2, "nullify", None)
    refused(
        bench.say(build_message(bench.tip, votes=[vote, vote])),
        400,
        "InvalidMessageError",
        "distinct votes",
    )


def test_a_block_by_a_random_key_is_refused_though_its_proposer_voted_for_it(fresh):
    message = fresh.proposal(fresh.block(proposer=STRANGER))
    refused(fresh.say(message), 400, "InvalidBlockError", "is not an authority")
    assert fresh.said() == []


def test_a_block_with_an_unsigned_transaction_is_refused(fresh):
    bare = build_transaction(fresh.receipt().payload, [])
    message = fresh.proposal(fresh.block(bare))
    refused(fresh.say(message), 400, "InvalidSignatureError", "signers: expected")
    assert fresh.said() == []


def test_a_block_from_another_time_is_refused(fresh):
    block = fresh.network.propose(
        fresh.node, fresh.tip, fresh.receipt(), proposer=fresh.keys[1], time_ms=1
    )
    refused(fresh.say(fresh.proposal(block)), 400, "InvalidBlockError", "proposed long ago")
    assert fresh.said() == []


def test_an_unsigned_transaction_is_refused(bench):
    bare = build_transaction(bench.receipt().payload, [])
    body = build_gossip(bench.network.genesis_hash, [bare.envelope])
    refused(bench.post(TRANSACTIONS_PATH, body), 400, "InvalidSignatureError", "signers: expected")


def test_a_transaction_of_a_coordinator_that_is_none_is_refused(bench):
    payload = build_payload(bench.network.genesis, 1, coordinator=STRANGER.account)
    forged = build_transaction(payload, sign_receipt(payload, coordinator=STRANGER))
    body = build_gossip(bench.network.genesis_hash, [forged.envelope])
    refused(bench.post(TRANSACTIONS_PATH, body), 400, "InvalidSignatureError", STRANGER.account)


def test_transactions_of_another_network_are_refused(bench):
    body = build_gossip(b"\1" * 32, [bench.receipt().envelope])
    refused(bench.post(TRANSACTIONS_PATH, body), 400, "InvalidTransactionError", "network")


# --- and when all is well -----------------------------------------------------------------------


def test_a_good_proposal_gets_the_nodes_vote_and_becomes_final(fresh):
    block = fresh.block()
    assert fresh.say(fresh.proposal(block)).status_code == 200
    assert fresh.said() == [("notarize", 0)]
    votes = [fresh.vote(m, "notarize", block) for m in (2, 3)]
    assert fresh.say(build_message(fresh.tip, votes=votes)).status_code == 200
    assert ("finalize", 0) in fresh.said()
    votes = [fresh.vote(m, "finalize", block) for m in (1, 2)]
    status = fresh.say(build_message(fresh.tip, votes=votes)).json()
    assert (status["height"], status["hash"]) == (1, hash_header(block.header).hex())


def test_a_transaction_of_another_coordinator_is_proposed_when_it_is_our_turn(fresh):
    receipt = fresh.receipt(7)
    body = build_gossip(fresh.network.genesis_hash, [receipt.envelope])
    for _ in range(2):  # the second time it is known
        assert fresh.post(TRANSACTIONS_PATH, body).status_code == 200
    # Views 0 to 2 pass; in view 3 member 0 proposes.
    nullified = [
        QuorumCertificate(
            kind="nullify",
            view=view,
            block_hash="",
            votes=tuple((m, fresh.vote(m, "nullify", None, view=view).sig) for m in (1, 2, 3)),
        )
        for view in range(3)
    ]
    assert fresh.say(build_message(fresh.tip, certificates=nullified)).status_code == 200
    assert fresh.say(build_message(fresh.tip)).status_code == 200  # taken once the block is built
    (proposed,) = fresh.node.sealer._engine._height.blocks.values()
    assert [t.id for t in proposed.transactions] == [receipt.id]
    assert ("notarize", 3) in fresh.said()


def test_an_audit_is_kept_only_once_its_receipt_is_final_here(fresh):
    receipt = fresh.receipt(7)
    payload = build_audit_payload(
        fresh.network.genesis,
        coordinator=fresh.keys[1].account,
        receipt_id=receipt.payload.receipt_id,
    )
    audit = build_transaction(payload, sign_audit(payload, coordinator=fresh.keys[1]))
    body = build_gossip(fresh.network.genesis_hash, [audit.envelope])
    mempool = fresh.node.sealer._mempool
    assert fresh.post(TRANSACTIONS_PATH, body).status_code == 200
    assert mempool.count_foreign() == 0
    block = fresh.block(receipt)
    votes = [fresh.vote(member, "notarize", block) for member in (1, 2, 3)]
    assert fresh.say(fresh.proposal(block)).status_code == 200
    votes += [fresh.vote(member, "finalize", block) for member in (1, 2, 3)]
    assert fresh.say(build_message(fresh.tip, votes=votes)).json()["height"] == 1
    assert fresh.post(TRANSACTIONS_PATH, body).status_code == 200
    assert [t.id for t in mempool.choose(fresh.node.chain.tip())] == [audit.id]


def test_two_votes_that_contradict_each_other_become_evidence_once(fresh):
    one, other = fresh.block(fresh.receipt(1)), fresh.block(fresh.receipt(2))
    for block in (one, other, one, other):
        message = build_message(fresh.tip, votes=[fresh.vote(2, "notarize", block)])
        assert fresh.say(message).status_code == 200
    (waiting,) = fresh.client.get("/explorer/transactions").json()
    assert (waiting["type"], waiting["status"]) == ("evidence", "pending")
    page = fresh.client.get(f"/txs/{waiting['transaction_id']}.json").json()
    assert page["envelope"]["payload"]["accused"] == fresh.keys[2].account
    assert page["envelope"]["payload"]["height"] == 1


def test_a_transaction_that_is_not_valid_holds_up_none_beside_it(fresh):
    """A peer is told of all that waits; one that cannot be final must not hide the others."""
    one, two, three = (fresh.receipt(number) for number in (1, 2, 3))
    bare = build_transaction(two.payload, [])
    envelopes = [one.envelope, bare.envelope, three.envelope]
    body = build_gossip(fresh.network.genesis_hash, envelopes)
    refused(fresh.post(TRANSACTIONS_PATH, body), 400, "InvalidSignatureError", "signers: expected")
    waiting = fresh.node.sealer._mempool.choose(fresh.tip)
    assert [t.id for t in waiting] == [one.id, three.id]
