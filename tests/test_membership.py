"""Authorities come and go while the network runs: real nodes, real changes, over HTTP."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import httpx2
import pytest

from consensus.messages import build_message
from ledger.authorities import Authority
from ledger.block import Tip
from ledger.encoding import encode
from ledger.keys import KeyPair
from ledger.store.chain import load_block
from ledger.transaction import build_transaction, sign_payload
from ledger.vote import QuorumCertificate, cast_vote
from node.apikeys import issue_key
from node.assembly import Node
from node.cli.setchange import Edits, apply_edits, build_payload
from node.datadir import create_data_directory, create_joining_directory, load_key
from node.local.ports import HOST, choose_ports
from tests.authorities import Authorities, serve_node
from tests.builders import CREATED_MS
from tests.caller import Caller

WAIT_S = 60
POLL_S = 0.02


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline
        threading.Event().wait(POLL_S)


def submit_change(url: str, tip: Tip, edits: Edits, signers: Sequence[KeyPair]) -> None:
    payload = build_payload(apply_edits(tip.authority_set, edits), tip, valid_for=100)
    signatures = [sign_payload(payload, key, "authority") for key in signers]
    envelope = build_transaction(payload, signatures).envelope
    answer = httpx2.post(
        f"{url}/v1/transactions",
        content=envelope,
        headers={"content-type": "application/json"},
        trust_env=False,
    )
    assert answer.status_code in {200, 202}, answer.text


def run_job(url: str, key: str) -> str:
    """A whole life cycle; returns the receipt's id."""
    with Caller(url, key) as caller:
        return caller.finish_job()


def epochs(nodes: Sequence[Node]) -> set[int]:
    return {node.chain.tip().authority_set.epoch for node in nodes}


def is_final(nodes: Sequence[Node], receipt_id: str) -> bool:
    found = [node.views.receipt(receipt_id) for node in nodes]
    return all(r is not None and r.transaction.finality == "final" for r in found)


def test_a_network_of_one_grows_to_four_that_decide_together(tmp_path):
    urls = [f"http://{HOST}:{port}" for port in choose_ports(0, 4)]
    founder = create_data_directory(
        tmp_path / "0", network="test-net", name="alpha", url=urls[0], now_ms=CREATED_MS
    )
    genesis = founder.load_genesis()
    joining = [create_joining_directory(tmp_path / str(i), genesis) for i in (1, 2, 3)]
    directories = [founder, *joining]
    keys = [load_key(directory.authority_key)[0] for directory in directories]
    secret, other_secret = (
        issue_key(directory, "admin", now_ms=CREATED_MS) for directory in directories[:2]
    )
    with contextlib.ExitStack() as stack:
        alpha = stack.enter_context(serve_node(founder, urls[0]))
        first = run_job(urls[0], secret)
        wait_until(lambda: is_final([alpha], first))
        nodes = [alpha] + [
            stack.enter_context(serve_node(directory, url, peers=(urls[0],)))
            for directory, url in zip(joining, urls[1:], strict=True)
        ]
        # Without a vote they follow, and verify what the founder sealed. They take no jobs.
        wait_until(lambda: is_final(nodes, first))
        with Caller(urls[1], other_secret) as caller:
            refused = caller.post("/v1/jobs", prompt="Why is the sky blue?")
            assert (refused.status_code, refused.json()["error_code"]) == (421, "NODE_IS_FOLLOWER")
            assert urls[0] in refused.json()["detail"]
        added = [
            Authority(account=key.account, name=f"member {i}", url=url)
            for i, (key, url) in enumerate(zip(keys[1:], urls[1:], strict=True), start=1)
        ]
        submit_change(urls[0], alpha.chain.tip(), Edits(added=added), keys)
        wait_until(lambda: epochs(nodes) == {1})
        second = run_job(urls[0], secret)
        wait_until(lambda: is_final(nodes, second))
        tips = {node.chain.tip().hash for node in nodes}
        assert len(tips) == 1
        height = alpha.views.receipt(second).transaction.height
        _, certificate = load_block(alpha.chain.database.reader, height)
        assert len(certificate.votes) >= 3


def test_an_address_that_is_none_costs_no_other_member_its_link(tmp_path):
    network = Authorities(tmp_path, 4, stated={1: "http://127.0.0.1:8001x"})
    secret = network.create_key(0, "admin")
    with contextlib.ExitStack() as stack:
        nodes = [stack.enter_context(network.run(i)) for i in (0, 2, 3)]
        receipt = run_job(network.urls[0], secret)
        wait_until(lambda: is_final(nodes, receipt))


@pytest.fixture
def four(tmp_path):
    return Authorities(tmp_path, 4)


def test_a_member_that_is_put_out_while_it_is_away_learns_of_it_and_follows(four):
    secret = four.create_key(0, "admin")
    with contextlib.ExitStack() as stack:
        nodes = [stack.enter_context(four.run(i)) for i in (0, 1, 2)]
        before = run_job(four.urls[0], secret)
        wait_until(lambda: is_final(nodes, before))
        gone = four.keys[3].account
        submit_change(four.urls[1], nodes[0].chain.tip(), Edits(removed=[gone]), four.keys[:3])
        wait_until(lambda: epochs(nodes) == {1})
        returned = stack.enter_context(four.run(3))
        wait_until(lambda: epochs([returned]) == {1})
        after = run_job(four.urls[0], secret)
        wait_until(lambda: is_final([*nodes, returned], after))
        height = nodes[0].views.receipt(after).transaction.height
        _, certificate = load_block(returned.chain.database.reader, height)
        assert {index for index, _ in certificate.votes} <= {0, 1, 2}


def test_what_a_member_of_the_old_set_says_is_refused_and_tells_it_how_far_the_others_are(four):
    with contextlib.ExitStack() as stack:
        nodes = [stack.enter_context(four.run(i)) for i in (0, 1, 2)]
        tip = nodes[0].chain.tip()
        submit_change(four.urls[0], tip, Edits(removed=[four.keys[3].account]), four.keys[:3])
        wait_until(lambda: epochs(nodes) == {1})
        answer = four.stamp_and_post(0, "/p2p/messages", b"{}", four.keys[3])
        assert answer.status_code == 403
        assert answer.json()["error_code"] == "UnknownPeerError"
        assert "of authority set 1" in answer.json()["detail"]
        assert int(answer.headers["x-aitbc-height"]) >= 1


def test_a_certificate_of_the_old_set_is_refused_after_a_change(four):
    """Four members needed three votes; the three that are left need all of theirs."""
    with contextlib.ExitStack() as stack:
        nodes = [stack.enter_context(four.run(i)) for i in (0, 1, 2)]
        old = nodes[0].chain.tip()
        submit_change(four.urls[0], old, Edits(removed=[four.keys[3].account]), four.keys[:3])
        wait_until(lambda: epochs(nodes) == {1})
        tip = nodes[0].chain.tip()
        stale = replace(tip, authority_set=old.authority_set)
        votes = tuple(
            (
                i,
                cast_vote(
                    four.keys[i], member=i, tip=stale, kind="nullify", view=0, block_hash=""
                ).sig,
            )
            for i in (1, 2, 3)
        )
        certificate = QuorumCertificate(kind="nullify", view=0, block_hash="", votes=votes)
        body = encode(build_message(tip, certificates=[certificate]))
        answer = four.stamp_and_post(0, "/p2p/messages", body, four.keys[1])
        assert answer.status_code == 400
        assert answer.json()["error_code"] == "InvalidCertificateError"
        assert "member 3 of 3 does not exist" in answer.json()["detail"]
