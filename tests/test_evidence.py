"""Evidence of equivocation: two votes that prove it by themselves, and nothing less."""

from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.block import build_genesis_tip
from ledger.encoding import encode
from ledger.errors import InvalidSignatureError, InvalidTransactionError
from ledger.rules import validate_block, verify_transaction
from ledger.transaction import build_transaction, parse_transaction, sign_payload
from ledger.vote import build_evidence as build_evidence_of_votes
from ledger.vote import cast_vote
from tests.builders import build_chain, build_evidence, build_genesis, build_key
from tests.strategies import draw_changed_byte

CHAIN = build_chain(4, blocks=[2, 1])
TIP, GENESIS, ACCUSED = CHAIN.tip, CHAIN.genesis, CHAIN.members[2]
A, B = "aa" * 32, "bb" * 32


def evidence(**changes):
    return build_evidence(GENESIS, ACCUSED, **changes)


@pytest.mark.parametrize(
    "votes",
    [
        [("notarize", A), ("notarize", B)],
        [("finalize", A), ("finalize", B)],
        [("finalize", A), ("nullify", "")],
    ],
    ids=["two notarize", "two finalize", "finalize and nullify"],
)
def test_two_votes_that_exclude_each_other_prove_themselves(votes):
    verify_transaction(evidence(votes=votes, height=2, view=7), TIP)


@pytest.mark.parametrize(
    ("votes", "message"),
    [
        ([("notarize", A), ("nullify", "")], "notarize and nullify do not contradict"),
        ([("finalize", A), ("notarize", A)], "finalize and notarize do not contradict"),
        ([("finalize", A), ("notarize", B)], "finalize and notarize do not contradict"),
        ([("notarize", A), ("notarize", A)], "two different votes, sorted"),
        ([("finalize", A), ("finalize", A)], "two different votes, sorted"),
        ([("nullify", ""), ("nullify", "")], "two different votes, sorted"),
        ([("notarize", B), ("notarize", A)], "two different votes, sorted"),
        ([("nullify", ""), ("finalize", A)], "two different votes, sorted"),
        ([("finalize", A), ("nullify", B)], "all but nullify votes to name a block"),
        ([("finalize", ""), ("finalize", A)], "all but nullify votes to name a block"),
        ([("finalize", ""), ("nullify", "")], "all but nullify votes to name a block"),
    ],
)
def test_votes_that_an_honest_authority_may_cast_both_prove_nothing(votes, message):
    with pytest.raises(InvalidTransactionError, match=message):
        verify_transaction(evidence(votes=votes), TIP)


@pytest.mark.parametrize(("height", "is_valid"), [(1, True), (2, True), (3, True), (4, False)])
def test_evidence_is_of_the_open_height_or_one_below(height, is_valid):
    transaction = evidence(height=height)
    if is_valid:
        verify_transaction(transaction, TIP)
    else:
        with pytest.raises(InvalidTransactionError, match="height: expected at most 3, got 4"):
            verify_transaction(transaction, TIP)


def test_only_members_of_the_current_set_are_accused():
    with pytest.raises(InvalidTransactionError, match="accused: expected an authority"):
        verify_transaction(build_evidence(GENESIS, build_key("stranger")), TIP)
    alone = replace(TIP, authority_set=build_genesis(1).authority_set)
    with pytest.raises(InvalidTransactionError, match="accused: expected an authority"):
        verify_transaction(evidence(), alone)


def test_nobody_signs_evidence():
    payload = evidence().payload
    for key in (ACCUSED, CHAIN.members[0]):
        signed = build_transaction(payload, [sign_payload(payload, key, "authority")])
        with pytest.raises(InvalidSignatureError, match="signers: expected nobody, got 1"):
            verify_transaction(signed, TIP)


@pytest.mark.parametrize("place", ["first", "second"])
@pytest.mark.parametrize(
    "elsewhere",
    [
        {"height": 2},
        {"view": 1},
        {"votes": [("notarize", "cc" * 32), ("notarize", "dd" * 32)]},
        {"votes": [("finalize", A), ("finalize", B)]},
    ],
    ids=["height", "view", "block", "kind"],
)
def test_a_vote_that_was_cast_elsewhere_is_refused(place, elsewhere):
    """The accused cast one of the two on another height, view or block, or of another kind."""
    payload, other = evidence().payload, evidence(**elsewhere).payload
    moved = msgspec.structs.replace(getattr(payload, place), sig=getattr(other, place).sig)
    with pytest.raises(InvalidSignatureError, match="evidence: notarize vote"):
        verify_transaction(
            build_transaction(msgspec.structs.replace(payload, **{place: moved}), []), TIP
        )


@pytest.mark.parametrize("place", ["first", "second"])
def test_a_vote_by_somebody_else_is_refused(place):
    """An honest member's vote beside one of the accused's: no two of one key."""
    payload = evidence().payload
    other = build_evidence(GENESIS, CHAIN.members[1]).payload
    changed = msgspec.structs.replace(payload, **{place: getattr(other, place)})
    with pytest.raises(InvalidSignatureError, match="does not verify"):
        verify_transaction(build_transaction(changed, []), TIP)


@pytest.mark.parametrize(
    "changes",
    [{"height": 2}, {"view": 1}, {"accused": CHAIN.members[0].account}],
    ids=lambda changes: next(iter(changes)),
)
def test_evidence_moved_to_another_place_or_person_is_refused(changes):
    payload = msgspec.structs.replace(evidence().payload, **changes)
    with pytest.raises(InvalidSignatureError, match="does not verify"):
        verify_transaction(build_transaction(payload, []), TIP)


def test_votes_of_another_network_are_no_evidence_here():
    """Of the same authorities: a member may vote as it likes on each of two networks."""
    other = build_genesis(4, network="other-net")
    foreign = build_evidence(other, ACCUSED)
    verify_transaction(foreign, build_genesis_tip(other))
    with pytest.raises(InvalidTransactionError, match="evidence genesis"):
        verify_transaction(foreign, TIP)
    renamed = msgspec.structs.replace(foreign.payload, genesis=TIP.genesis_hash.hex())
    with pytest.raises(InvalidSignatureError, match="does not verify"):
        verify_transaction(build_transaction(renamed, []), TIP)


def test_what_the_engine_saw_becomes_evidence_in_either_order():
    votes = [
        cast_vote(ACCUSED, member=2, tip=TIP, kind=kind, view=4, block_hash=block_hash)
        for kind, block_hash in (("nullify", ""), ("finalize", A))
    ]
    transaction = build_evidence_of_votes(*votes, TIP)
    assert transaction == build_evidence_of_votes(*votes[::-1], TIP)
    assert (transaction.payload.accused, transaction.payload.height) == (ACCUSED.account, 3)
    verify_transaction(transaction, TIP)


def test_evidence_stands_in_a_block_and_changes_nothing_by_itself():
    block = CHAIN.propose(evidence())
    validate_block(block, TIP, CHAIN.read)
    assert block.header.next_set_hash == block.header.set_hash


SOUND = evidence()


@pytest.mark.parametrize(
    "mutate",
    [
        lambda d: d["payload"].update(v=2),
        lambda d: d["payload"].update(x=1),
        lambda d: d["payload"].update(height=0),
        lambda d: d["payload"].update(height=2**53),
        lambda d: d["payload"].update(view=-1),
        lambda d: d["payload"].update(view=2**53),
        lambda d: d["payload"].update(accused="a" * 91),
        lambda d: d["payload"].update(genesis=""),
        lambda d: d["payload"].update(first=None),
        lambda d: d["payload"].pop("second"),
        lambda d: d["payload"]["first"].update(kind="approve"),
        lambda d: d["payload"]["first"].update(kind=None),
        lambda d: d["payload"]["first"].update(block_hash=None),
        lambda d: d["payload"]["first"].update(block_hash="AA" * 32),
        lambda d: d["payload"]["first"].update(sig="A" * 87),
        lambda d: d["payload"]["first"].update(member=0),
        lambda d: d["payload"]["first"].pop("sig"),
    ],
)
def test_malformed_evidence_is_no_transaction(mutate):
    document = msgspec.json.decode(SOUND.envelope)
    mutate(document)
    with pytest.raises(InvalidTransactionError):
        parse_transaction(encode(document))


@given(st.data())
def test_no_changed_byte_of_evidence_leaves_it_valid(data):
    changed = draw_changed_byte(data, SOUND.envelope)
    with pytest.raises(InvalidTransactionError):
        verify_transaction(parse_transaction(changed), TIP)
