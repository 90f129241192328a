"""Audits on the chain: both sign, the receipt is there already, and nobody audits one twice."""

import contextlib
from dataclasses import replace

import msgspec
import pytest

from ledger.block import VerifiedBlock, build_genesis_tip
from ledger.encoding import MAX_INTEGER, encode
from ledger.errors import (
    HistoryMissingError,
    InvalidBlockError,
    InvalidSignatureError,
    InvalidTransactionError,
    StoreError,
)
from ledger.proof import verify_bundle
from ledger.rules import verify_transaction
from ledger.selection import choose_transactions
from ledger.statement import parse_statement, verify_statement
from ledger.store.chain import ChainStore
from ledger.store.fsck import verify_chain
from ledger.store.mempool import count_submissions
from ledger.store.reading import build_pin
from ledger.transaction import build_transaction, sign_payload
from ledger.views.audits import load_audit_totals
from ledger.views.bundles import load_bundle
from ledger.views.statements import load_statement_bundle
from scripts import verify_receipt as script
from tests.builders import (
    build_audit,
    build_audit_payload,
    build_authority_set,
    build_chain,
    build_genesis,
    build_key,
    build_members,
    build_receipt,
    sign_audit,
)
from tests.market_node import MarketNode
from tests.test_chain_store import fill

GENESIS = build_genesis(4)
TIP = build_genesis_tip(GENESIS)
AUDITOR, COORDINATOR, MINER = (build_key(n) for n in ("auditor", "authority 0", "miner"))
SECOND, STRANGER = build_key("second auditor"), build_key("x")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.db"


# --- rules that need no chain -----------------------------------------------------------------


def test_an_audit_signed_by_both_is_valid():
    verify_transaction(build_audit(GENESIS), TIP)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"genesis": "ab" * 32}, "audit genesis"),
        ({"auditor": "miner-1"}, "audit auditor"),
        ({"auditor": AUDITOR.account[:-1] + "q"}, "audit auditor"),
        ({"coordinator": "somebody"}, "audit coordinator"),
        ({"exact_tokens": 11}, "exact_tokens and outside_tokens: expected at most tokens 10"),
        ({"outside_tokens": 2}, "exact_tokens and outside_tokens: expected at most tokens 10"),
    ],
)
def test_every_rule_of_an_audit_has_a_failing_case(changes, message):
    payload = build_audit_payload(GENESIS, **changes)
    with pytest.raises(InvalidTransactionError, match=message):
        verify_transaction(build_transaction(payload, sign_audit(payload)), TIP)


@pytest.mark.parametrize(
    "changes",
    [
        {"tokens": 0},
        {"tokens": 1_000_001},
        {"exact_tokens": -1},
        {"mean_gap_micros": 1_000_000_001},
        {"method": ""},
        {"method": "m" * 65},
        {"method": "Replay"},
        {"method": "replay\n"},
        {"model_digest": ""},
        {"ending": "stop"},
        {"verdict": "passed"},
        {"text_matches": 1},
    ],
    ids=str,
)
def test_values_out_of_their_bounds_are_no_audit(changes):
    payload = msgspec.structs.replace(build_audit_payload(GENESIS), **changes)
    with pytest.raises(InvalidTransactionError):
        build_transaction(payload, [])


@pytest.mark.parametrize(
    "roles",
    [
        [],
        [("auditor", AUDITOR)],
        [("coordinator", COORDINATOR)],
        [("auditor", COORDINATOR), ("coordinator", AUDITOR)],
        [("auditor", STRANGER), ("coordinator", COORDINATOR)],
        [("auditor", AUDITOR), ("coordinator", STRANGER)],
        [("auditor", AUDITOR), ("provider", COORDINATOR)],
        [("auditor", AUDITOR), ("coordinator", COORDINATOR), ("provider", MINER)],
    ],
    ids=lambda roles: " ".join(role for role, _ in roles) or "none",
)
def test_signers_missing_spare_or_swapped_are_refused(roles):
    payload = build_audit_payload(GENESIS)
    signed = build_transaction(payload, [sign_payload(payload, key, role) for role, key in roles])
    with pytest.raises(InvalidSignatureError, match="signers: expected"):
        verify_transaction(signed, TIP)


@pytest.mark.parametrize("place", [0, 1])
def test_a_signature_over_another_verdict_is_refused(place):
    payload, other = (build_audit_payload(GENESIS, verdict=v) for v in ("pass", "fail"))
    signatures = sign_audit(payload)
    signatures[place] = sign_audit(other)[place]
    with pytest.raises(InvalidSignatureError, match="does not verify"):
        verify_transaction(build_transaction(payload, signatures), TIP)


def test_only_listed_coordinators_vouch_for_audits():
    payload = build_audit_payload(GENESIS, coordinator=STRANGER.account)
    audit = build_transaction(payload, sign_audit(payload, coordinator=STRANGER))
    with pytest.raises(InvalidSignatureError, match="not a coordinator of this network"):
        verify_transaction(audit, TIP)
    listing = build_authority_set(build_members(4), coordinators=[STRANGER.account])
    verify_transaction(audit, replace(TIP, authority_set=listing))


def test_an_audit_of_a_coordinator_that_is_not_listed_now_waits():
    payload = build_audit_payload(GENESIS, coordinator=STRANGER.account)
    audit = build_transaction(payload, sign_audit(payload, coordinator=STRANGER))
    selection = choose_transactions([audit], TIP)
    assert (selection.chosen, selection.invalid) == ((), ())


def test_a_proposer_takes_one_of_two_audits_by_one_auditor():
    first, other = build_audit(GENESIS), build_audit(GENESIS, verdict="fail")
    second = build_audit(GENESIS, auditor=SECOND)
    assert choose_transactions([first, other, second], TIP).chosen == (first, second)


# --- rules that need the chain ----------------------------------------------------------------


def build_audited_chain(count=1):
    """Two blocks of receipts 1 to 3; a block of audits."""
    chain = build_chain(count, blocks=[2, 1])
    chain.append(
        build_audit(chain.genesis, 1),
        build_audit(chain.genesis, 2, verdict="fail", exact_tokens=4, mean_gap_micros=900_000),
        build_audit(chain.genesis, 2, auditor=SECOND),
    )
    return chain


def by_provider(genesis):
    payload = build_audit_payload(genesis, 2, auditor=MINER.account)
    return build_transaction(payload, sign_audit(payload, auditor=MINER))


def by_other_coordinator(genesis):
    other = build_members(4)[1]
    payload = build_audit_payload(genesis, 3, coordinator=other.account)
    return build_transaction(payload, sign_audit(payload, coordinator=other))


IMPOSSIBLE = {
    "a receipt that is not there": (
        lambda g: [build_audit(g, 9, auditor=SECOND)],
        "not in a lower block",
    ),
    "a receipt of the same block": (
        lambda g: [build_receipt(g, 9), build_audit(g, 9)],
        "not in a lower block",
    ),
    "a receipt of its own": (lambda g: [by_provider(g)], "somebody other than the provider"),
    "another coordinator's": (lambda g: [by_other_coordinator(g)], "expected the receipt's"),
    "one that was audited": (lambda g: [build_audit(g, 1, verdict="fail")], "has audited"),
    "one twice": (
        lambda g: [build_audit(g, 3), build_audit(g, 3, verdict="fail")],
        "audits one twice",
    ),
}


@pytest.mark.parametrize(("build", "message"), IMPOSSIBLE.values(), ids=IMPOSSIBLE.keys())
def test_no_node_votes_for_or_stores_an_audit_of(path, build, message):
    chain = build_audited_chain(4)
    with contextlib.closing(fill(path, chain)) as store:
        tip = store.tip()
        block = chain.propose(*build(chain.genesis))
        with pytest.raises((InvalidBlockError, InvalidTransactionError), match=message):
            store.validate(block, tip)
        chain.append(*block.transactions)
        verified = VerifiedBlock(
            block=block,
            certificate=chain.certificates[-1],
            set_hash=bytes.fromhex(block.header.set_hash),
        )
        with pytest.raises((InvalidBlockError, InvalidTransactionError)):
            store.append_verified([verified]).result()
        assert store.tip() == tip
    verify_chain(path, chain.genesis, lambda *_: None)


@pytest.mark.parametrize("name", ["a receipt that is not there", "a receipt of its own"])
def test_fsck_finds_a_block_that_no_node_would_have_stored(path, name, monkeypatch):
    chain = build_audited_chain(4)
    chain.append(*IMPOSSIBLE[name][0](chain.genesis))
    with monkeypatch.context() as patch:
        patch.setattr("ledger.store.audits._is_history_missing", lambda *_: True)
        patch.setattr("ledger.store.audits.validate_subject", lambda *_: None)
        fill(path, chain).close()
    with pytest.raises(StoreError, match="block 4: audit"):
        verify_chain(path, chain.genesis, lambda *_: None)


def read_totals(store):
    rows = store.database.reader.execute("SELECT * FROM audit_totals ORDER BY provider")
    return {row[0]: tuple(row[1:]) for row in rows}


def test_audits_are_added_up_for_the_provider_with_their_block(path):
    chain = build_audited_chain()
    with contextlib.closing(fill(path, chain)) as store:
        assert read_totals(store) == {MINER.account: (2, 1, 30, 22, 906_280)}
        bad = chain.append(build_audit(chain.genesis, 3), build_audit(chain.genesis, 1))
        with pytest.raises(InvalidTransactionError, match="not unique"):
            store.append(bad, chain.certificates[-1]).result()
        assert read_totals(store) == {MINER.account: (2, 1, 30, 22, 906_280)}
    verify_chain(path, chain.genesis, lambda *_: None)


def test_receipts_beside_audits_are_proved_by_node_and_script(path):
    chain = build_audited_chain(4)
    chain.append(build_audit(chain.genesis, 3), build_receipt(chain.genesis, 4))
    document = script.parse_genesis(encode(chain.genesis))
    with contextlib.closing(fill(path, chain)) as store:
        for transaction in chain.transactions:
            if transaction.type != "receipt":
                continue
            data = load_bundle(store.database.reader, transaction.payload.receipt_id)
            assert verify_bundle(data, genesis=chain.genesis).verified
            assert script.verify(script.parse_bundle(data), document, {})["verified"]
        period = {"from_ms": 0, "to_ms": MAX_INTEGER}
        data = load_statement_bundle(store.database.reader, MINER.account, **period)
    assert len(parse_statement(data).entries) == 4
    assert verify_statement(data, genesis=chain.genesis).verified
    statement = script.parse_statement(data)
    assert script.verify_statement(statement, document)["verified"]


def test_an_auditor_has_an_account_of_its_own(node):
    node.mempool.add_own(audit_of(node, node.finish()), now_ms=1)
    node.seal()
    assert node.views.account(AUDITOR.account).is_auditor
    assert node.views.search(AUDITOR.account).kind == "account"
    assert node.views.account(SECOND.account) is None


# --- chains that begin at a pinned checkpoint --------------------------------------------------


def verified(chain, *heights):
    return [
        VerifiedBlock(
            block=chain.blocks[height - 1],
            certificate=chain.certificates[height - 1],
            set_hash=bytes.fromhex(chain.blocks[height - 1].header.set_hash),
        )
        for height in heights
    ]


def begin_at_two(tmp_path, chain):
    with contextlib.closing(fill(tmp_path / "whole.db", chain, blocks=2)) as whole:
        pin = build_pin(whole.database.reader)
    store = ChainStore(tmp_path / "pinned.db", chain.genesis)
    store.adopt_pin(pin).result()
    return store


def test_audits_of_receipts_that_are_still_fetched_count_once_history_is_whole(tmp_path):
    chain = build_audited_chain()
    chain.append(build_receipt(chain.genesis, 4))
    chain.append(build_audit(chain.genesis, 4))
    with contextlib.closing(begin_at_two(tmp_path, chain)) as store:
        store.append_verified(verified(chain, 3, 4, 5)).result()
        with pytest.raises(HistoryMissingError):
            load_audit_totals(store.database.reader, MINER.account)
        assert read_totals(store) == {MINER.account: (1, 0, 10, 9, 3_140)}
        store.append_history(verified(chain, 1)).result()
        with pytest.raises(StoreError, match="everything else verifies"):
            verify_chain(tmp_path / "pinned.db", chain.genesis, lambda *_: None)
        store.append_history(verified(chain, 2)).result()
        assert read_totals(store) == {MINER.account: (3, 1, 40, 31, 909_420)}
    assert verify_chain(tmp_path / "pinned.db", chain.genesis, lambda *_: None) == chain.tip


@pytest.mark.parametrize("build", [by_provider, lambda g: build_audit(g, 9)])
def test_an_audit_above_the_checkpoint_that_breaks_a_rule_is_found_with_the_history(
    tmp_path, build
):
    chain = build_chain(1, blocks=[2, 1])
    chain.append(build(chain.genesis))
    with contextlib.closing(begin_at_two(tmp_path, chain)) as store:
        store.append_verified(verified(chain, 3)).result()
        with pytest.raises(StoreError, match="the audit of leaf 3 is not valid"):
            store.append_history(verified(chain, 1, 2)).result()
        assert store.history_tip().height == 0


# --- the mempool ------------------------------------------------------------------------------


@pytest.fixture
def node(tmp_path, open_store):
    node = MarketNode(tmp_path, open_store=open_store)
    yield node
    node.close()


def audit_of(node, receipt_id, **changes):
    auditor = changes.pop("by", AUDITOR)
    payload = build_audit_payload(
        node.genesis,
        coordinator=node.key.account,
        receipt_id=receipt_id,
        **{"auditor": auditor.account} | changes,
    )
    return build_transaction(payload, sign_audit(payload, auditor=auditor, coordinator=node.key))


def test_an_audit_waits_in_the_mempool_until_its_receipt_is_final(node):
    receipt_id = node.finish()
    audit = audit_of(node, receipt_id)
    node.mempool.add_own(audit, now_ms=1)
    assert [t.type for t in node.mempool.choose(node.chain.tip())] == ["receipt"]
    assert node.seal() == 2
    assert node.views.transaction(audit.id.hex()).height == 2
    assert node.verify() == 2


def test_an_audit_that_no_block_may_hold_leaves_the_mempool(node, caplog):
    receipt_id = node.finish()
    node.seal()
    node.mempool.add_own(audit_of(node, receipt_id), now_ms=1)
    node.seal()
    node.mempool.add_own(audit_of(node, receipt_id, verdict="fail"), now_ms=2)
    assert node.mempool.choose(node.chain.tip()) == ()
    assert node.mempool.list_own(9) == []
    assert "can never be final" in caplog.text


def test_audits_take_no_place_from_changes_and_evidence(node):
    receipt_id = node.finish()
    node.seal()
    node.mempool.add_own(audit_of(node, receipt_id), now_ms=1)
    assert count_submissions(node.store.reader, 9) == 0
