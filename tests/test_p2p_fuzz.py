"""Whatever a member sends, a node answers it and stays as it was; nobody waits for a slow one."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.messages import build_message
from ledger.encoding import encode
from node.p2p.address import MESSAGES_PATH, STATUS_PATH, TRANSACTIONS_PATH
from node.p2p.documents import build_gossip
from node.p2p.routes import MAX_REQUESTS_PER_PEER
from node.p2p.stamp import build_stamp
from tests.peer_bench import run_bench

EXAMPLES = 120
TIMEOUT_S = 30


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    with run_bench(tmp_path_factory.mktemp("fuzz")) as bench:
        yield bench
        assert bench.node.chain.tip().height == 0


@pytest.fixture(scope="module")
def bodies(bench) -> Iterator[list[tuple[str, bytes]]]:
    """What honest members say; no change of it may make the node vote for another block."""
    block = bench.block()
    votes = [bench.vote(2, kind, block) for kind in ("notarize", "finalize")]
    certificate = bench.certificate("notarize", block, (1, 2, 3))
    messages = [
        bench.proposal(block),
        build_message(bench.tip, votes=votes),
        build_message(bench.tip, certificates=[certificate]),
    ]
    gossip = [bench.receipt(number).envelope for number in (1, 2)]
    told = build_gossip(bench.network.genesis_hash, gossip)
    yield [*((MESSAGES_PATH, encode(message)) for message in messages), (TRANSACTIONS_PATH, told)]
    # A genuine vote beside a changed block lets the time of the height run. If the genuine block
    # comes beside a changed vote as well, which is known by then, both make the genuine proposal.
    said = bench.said_of_blocks()
    assert set(said) <= {("nullify", ""), ("notarize", block.hash.hex())}, said


def test_two_changed_proposals_make_the_genuine_one_if_anything(tmp_path):
    with run_bench(tmp_path) as fresh:
        block = fresh.block()
        said = encode(fresh.proposal(block))
        transaction = block.transactions[0].envelope
        other = fresh.receipt(2).envelope
        assert fresh.post(MESSAGES_PATH, said.replace(transaction, other)).status_code == 400
        assert fresh.said() == []
        sig = fresh.vote(fresh.proposer, "notarize", block).sig.encode()
        assert fresh.post(MESSAGES_PATH, said.replace(sig, sig[::-1])).status_code == 200
        assert fresh.said_of_blocks() == [("notarize", block.hash.hex())]


@st.composite
def changes(draw):
    """How bytes are changed: some are replaced, by others, by none, or by a copy of some."""
    start, size = draw(st.floats(0, 1)), draw(st.integers(0, 40))
    put = draw(
        st.one_of(
            st.binary(max_size=8),
            st.sampled_from([b"", b"0", b"-1", b'"', b"[", b"{}", b"null", b"9" * 40, b"\\u0000"]),
            st.integers(0, 7),
        )
    )
    return start, size, put


def change(body: bytes, start: float, size: int, put: bytes | int) -> bytes:
    at = int(start * (len(body) - 1))
    if isinstance(put, int):  # one flipped bit
        return body[:at] + bytes([body[at] ^ 1 << put]) + body[at + 1 :]
    return body[:at] + put + body[at + size :]


@settings(max_examples=EXAMPLES)
@given(which=st.integers(0, 3), how=st.lists(changes(), min_size=1, max_size=3))
def test_a_changed_body_is_answered_and_makes_nothing_final(bench, bodies, which, how):
    path, body = bodies[which]
    changed = body
    for one in how:
        changed = change(changed, *one) or b"{"
    if changed == body:
        return
    answer = bench.post(path, changed)
    # What a change leaves may be genuine votes, or receipts that are known already.
    assert answer.status_code in {200, 400}, answer.text
    if answer.status_code == 400:
        assert answer.json()["error_code"].endswith("Error")


@settings(max_examples=EXAMPLES)
@given(path=st.sampled_from([MESSAGES_PATH, TRANSACTIONS_PATH]), body=st.binary(max_size=300))
def test_random_bytes_are_refused(bench, path, body):
    assert bench.post(path, body).status_code == 400


def test_a_member_that_drips_keeps_no_other_from_being_heard(bench):
    slow = bench.keys[2]
    host, port = bench.network.urls[0].removeprefix("http://").split(":")
    body = b"x" * 1000
    stamp = build_stamp(
        slow,
        genesis_hash=bench.network.genesis_hash,
        recipient=bench.keys[0].account,
        path=MESSAGES_PATH,
        body=body,
    )
    lines = [f"POST {MESSAGES_PATH} HTTP/1.1", f"Host: {host}", "Content-Length: 1000"]
    lines += [f"{name}: {value}" for name, value in stamp.items()]
    head = "\r\n".join([*lines, "", ""]).encode()
    with contextlib.ExitStack() as stack:
        for _ in range(2 * MAX_REQUESTS_PER_PEER):
            address = (host, int(port))
            dripping = stack.enter_context(socket.create_connection(address, timeout=TIMEOUT_S))
            dripping.sendall(head + body[:1])
        assert bench.client.get(STATUS_PATH).status_code == 200
        assert bench.post(MESSAGES_PATH, b"{}").status_code == 400
