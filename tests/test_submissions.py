"""Handing in a change or evidence: no key, but nothing that does not prove itself."""

import msgspec
import pytest

from ledger.encoding import encode
from ledger.errors import MarketError
from ledger.store.mempool import list_mempool
from ledger.transaction import MAX_ENVELOPE_BYTES, build_transaction
from node import submissions
from tests.api_node import ApiNode
from tests.builders import (
    build_audit,
    build_authority_set,
    build_change_payload,
    build_evidence,
    build_genesis,
    build_key,
    build_receipt,
    sign_change,
)
from tests.market_node import MarketNode

JOINING = build_key("joining")
HEADERS = {"content-type": "application/json"}


@pytest.fixture
def node(tmp_path):
    node = MarketNode(tmp_path)
    yield node
    node.close()


def build_change(node, **changes):
    following = build_authority_set([node.key, JOINING], epoch=1)
    payload = build_change_payload(node.chain.tip(), following, **changes)
    return sign_change(payload, [node.key, JOINING])


def submit(node, transaction):
    return node.do(node.coordinator.submit_transaction(transaction.envelope))


def test_a_change_waits_wakes_the_sealer_and_becomes_final(node):
    change = build_change(node)
    shown = submit(node, change)
    assert (shown.id, shown.type, shown.finality) == (change.id.hex(), "authority_set", "pending")
    assert node.kicks == 1
    node.seal()
    assert node.chain.tip().authority_set == change.payload.authority_set
    assert submit(node, change).finality == "final"
    assert node.verify() == 1


def test_what_was_handed_in_survives_a_restart(node):
    evidence = build_evidence(node.genesis, node.key)
    submit(node, evidence)
    node.restart()
    assert [row[1] for row in list_mempool(node.store.reader, limit=9)] == [bytes(evidence.id)]
    node.seal()
    assert node.views.transaction(evidence.id.hex()).finality == "final"


def test_the_same_again_changes_nothing(node):
    change = build_change(node)
    first = submit(node, change)
    assert submit(node, change) == first
    assert len(list_mempool(node.store.reader, limit=9)) == 1
    # Whoever asks at the same moment finds it stored by the other.
    work = lambda c: submissions.store_submission(c, change, now_ms=1)  # noqa: E731
    node.store.write(work).result()
    assert len(list_mempool(node.store.reader, limit=9)) == 1


@pytest.mark.parametrize("build", [build_receipt, build_audit])
def test_what_coordinators_put_into_blocks_is_refused(node, build):
    with pytest.raises(MarketError, match="put into blocks by their coordinator") as caught:
        submit(node, build(node.genesis, 1))
    assert caught.value.code == "TRANSACTION_TYPE_REFUSED"


def build_expired_change(node):
    node.finish()
    node.seal()
    return build_change(node, valid_for=0)


def forged_evidence(node):
    payload = build_evidence(node.genesis, build_key("x")).payload
    return build_transaction(msgspec.structs.replace(payload, accused=node.key.account), [])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda node: sign_change(build_change(node).payload, [node.key]), "who enters"),
        (lambda node: sign_change(build_change(node).payload, [JOINING]), "at least 1 of the 1"),
        (build_expired_change, "expires_height"),
        (lambda node: build_change(node, genesis="ab" * 32), "genesis"),
        (forged_evidence, "does not verify"),
        (lambda node: build_evidence(node.genesis, node.key, height=2), "height"),
        (lambda _node: build_evidence(build_genesis(4), build_key("authority 0")), "genesis"),
    ],
)
def test_what_breaks_a_rule_is_refused_in_its_words(node, build, message):
    transaction, kicks = build(node), node.kicks
    with pytest.raises(MarketError, match=message) as caught:
        submit(node, transaction)
    assert caught.value.code == "TRANSACTION_INVALID"
    assert list_mempool(node.store.reader, limit=9) == []
    assert node.kicks == kicks


@pytest.mark.parametrize("data", [b"", b"{}", b"null", b"[" * 5000, b"\xff", b" " * 70_000])
def test_hostile_bytes_are_refused(node, data):
    with pytest.raises(MarketError) as caught:
        node.do(node.coordinator.submit_transaction(data))
    assert caught.value.code == "TRANSACTION_INVALID"


def test_no_more_than_a_bounded_number_waits(node, monkeypatch):
    monkeypatch.setattr(submissions, "MAX_WAITING_SUBMISSIONS", 2)
    pieces = [build_evidence(node.genesis, node.key, view=view) for view in range(3)]
    node.finish()  # receipts do not count
    for evidence in pieces[:2]:
        submit(node, evidence)
    with pytest.raises(MarketError) as caught:
        submit(node, pieces[2])
    assert caught.value.code == "RATE_LIMIT_EXCEEDED"
    assert submit(node, pieces[0]).finality == "pending"
    node.seal()
    assert submit(node, pieces[2]).finality == "pending"


# --- over HTTP --------------------------------------------------------------------------------


@pytest.fixture
def served(tmp_path):
    node = ApiNode(tmp_path)
    with node.client("strict") as client:
        yield node, client
    node.close()


def test_evidence_is_handed_in_without_a_key_and_shown_by_every_face(served):
    node, client = served
    evidence = build_evidence(node.genesis, node.key)
    address = f"/v1/transactions/{evidence.id.hex()}"
    assert client.get(address).json()["error_code"] == "TRANSACTION_NOT_FOUND"
    response = client.post("/v1/transactions", content=evidence.envelope + b"\n", headers=HEADERS)
    assert (response.status_code, response.json()["status"]) == (202, "pending")
    assert response.json()["accused"] == node.key.account
    assert response.json()["signers"] == []
    assert f"/txs/{evidence.id.hex()}" in response.headers["link"]
    assert client.get(address).json() == response.json()
    node.start_sealing()
    node.wait_final(1)
    again = client.post("/v1/transactions", content=evidence.envelope, headers=HEADERS)
    assert (again.status_code, again.json()["status"]) == (200, "final")
    assert again.json()["block_height"] == 1
    shown = client.get("/v1/authorities").json()
    assert shown["members"][0]["evidence"] == 1
    assert shown["evidence"] == [
        {
            "transaction_id": evidence.id.hex(),
            "block_height": 1,
            "accused": node.key.account,
            "height": 1,
            "view": 0,
        }
    ]
    listed = client.get("/explorer/transactions").json()
    assert [(row["type"], row["transaction_id"]) for row in listed] == [
        ("evidence", evidence.id.hex())
    ]


def test_authorities_are_served_with_their_history(served):
    node, client = served
    shown = client.get("/v1/authorities")
    assert "/network" in shown.headers["link"]
    member = node.genesis.authority_set.members[0]
    assert shown.json()["members"] == [
        {"account": member.account, "name": member.name, "url": member.url, "evidence": 0}
    ]
    (epoch,) = shown.json()["epochs"]
    assert epoch == {
        "epoch": 0,
        "set_hash": shown.json()["set_hash"],
        "from_height": 1,
        "members": 1,
        "quorum": 1,
    }


@pytest.mark.parametrize(
    ("content", "headers", "status", "code"),
    [
        (b"{}", HEADERS, 400, "TRANSACTION_INVALID"),
        (b"x" * (MAX_ENVELOPE_BYTES + 2), HEADERS, 413, "VALIDATION_BODY_TOO_LARGE"),
        (b"{}", {"content-type": "text/plain"}, 415, "VALIDATION_MEDIA_TYPE"),
    ],
)
def test_bodies_are_bounded_and_refused_as_documented(served, content, headers, status, code):
    _, client = served
    response = client.post("/v1/transactions", content=content, headers=headers)
    assert (response.status_code, response.json()["error_code"]) == (status, code)


def test_a_transaction_that_is_not_canonical_is_refused(served):
    node, client = served
    document = msgspec.json.decode(build_evidence(node.genesis, node.key).envelope)
    for content in (msgspec.json.format(encode(document)), encode(document) + b"\n\n"):
        response = client.post("/v1/transactions", content=content, headers=HEADERS)
        assert response.json()["error_code"] == "TRANSACTION_INVALID"


@pytest.mark.parametrize("key", ["x", "0" * 63, "0" * 64, "F" * 64])
def test_there_is_no_transaction_under_another_name(served, key):
    _, client = served
    response = client.get(f"/v1/transactions/{key}")
    assert (response.status_code, response.json()["error_code"]) == (404, "TRANSACTION_NOT_FOUND")
