"""What a proposer chooses is a block that every voter accepts, and nothing valid is given up."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.block import Limits
from ledger.errors import InvalidTransactionError
from ledger.rules import validate_block
from ledger.selection import choose_transactions
from ledger.transaction import build_transaction
from tests.builders import (
    build_audit,
    build_authority_set,
    build_chain,
    build_change_payload,
    build_evidence,
    build_key,
    build_receipt,
    sign_change,
    sign_receipt,
)

CHAIN = build_chain(4, blocks=[2])
TIP, OLD = CHAIN.tip, CHAIN.members
COORDINATOR = build_key("coordinator")


def receipt(number, **changes):
    return build_receipt(CHAIN.genesis, number, **changes)


def change(*, epoch=1, valid_for=100, members=OLD):
    payload = build_change_payload(
        TIP, build_authority_set(members, epoch=epoch), valid_for=valid_for
    )
    return sign_change(payload, OLD)


def choose(*candidates, tip=TIP):
    """(chosen, invalid) as places among the candidates."""
    selection = choose_transactions(iter(candidates), tip)
    # Equal bytes may be one object: the first place counts.
    places = {id(candidates[i]): i for i in reversed(range(len(candidates)))}
    return (
        [places[id(transaction)] for transaction in selection.chosen],
        [places[id(transaction)] for transaction, _ in selection.invalid],
    )


def test_all_that_waits_is_chosen_in_its_order():
    assert choose(receipt(3), change(), receipt(2), build_evidence(CHAIN.genesis, OLD[1])) == (
        [0, 1, 2, 3],
        [],
    )
    assert choose() == ([], [])


def test_a_second_change_waits_and_is_given_up_when_the_first_is_final():
    first, second = change(), change(members=OLD[:3])
    assert choose(first, second, receipt(3)) == ([0, 2], [])
    chain = build_chain(4, blocks=[2])
    chain.append(first)
    assert choose(second, receipt(3), tip=chain.tip) == ([1], [0])


def test_what_stands_twice_is_chosen_once():
    other = receipt(3, price_micros=1)
    evidence = [build_evidence(CHAIN.genesis, OLD[1]) for _ in range(2)]
    assert choose(receipt(3), receipt(3), other, *evidence) == ([0, 3], [])


def test_a_block_is_no_larger_than_its_limits():
    receipts = [receipt(number) for number in range(3, 60)]
    few = replace(TIP, limits=Limits(max_block_transactions=2))
    assert choose(*receipts, tip=few) == ([0, 1], [])
    small = replace(TIP, limits=Limits(max_block_bytes=65536))
    chosen, _ = choose(*receipts, tip=small)
    size_bytes = [len(transaction.envelope) for transaction in receipts]
    assert sum(size_bytes[: len(chosen)]) <= 65536 < sum(size_bytes[: len(chosen) + 1])
    assert chosen == list(range(len(chosen)))


def test_the_first_that_does_not_fit_is_overtaken_by_nobody():
    first, large, small = receipt(3), receipt(4), receipt(5, provider="m")
    room = len(first.envelope) + len(small.envelope)
    assert room < len(first.envelope) + len(large.envelope)
    tip = replace(TIP, limits=Limits(max_block_bytes=room))
    assert choose(first, small, tip=tip) == ([0, 1], [])
    assert choose(first, large, small, tip=tip) == ([0], [])


def test_candidates_are_read_no_further_than_needed():
    read = []

    def candidates():
        for number in range(3, 20):
            read.append(number)
            yield receipt(number)

    choose_transactions(candidates(), replace(TIP, limits=Limits(max_block_transactions=2)))
    assert read == [3, 4, 5]


@pytest.mark.parametrize(
    ("late", "why"),
    [
        (lambda: change(epoch=0), "epoch"),
        (lambda: change(valid_for=0), "expires_height"),
        (lambda: change(epoch=2, valid_for=1), "epoch"),
        (lambda: build_evidence(CHAIN.genesis, build_key("stranger")), "accused"),
        (lambda: build_evidence(build_chain(1).genesis, OLD[0]), "genesis"),
        (lambda: build_receipt(build_chain(1).genesis, 3), "genesis"),
        (lambda: sign_change(change().payload, OLD[:2]), "signers"),
    ],
    ids=["stale", "expired", "expires first", "no member", "evidence", "receipt", "unsigned"],
)
def test_what_can_never_be_valid_is_named(late, why):
    selection = choose_transactions([late(), receipt(3)], TIP)
    assert selection.chosen == (receipt(3),)
    ((transaction, error),) = selection.invalid
    assert transaction == late()
    assert isinstance(error, InvalidTransactionError)
    assert why in str(error)


def test_what_is_not_due_yet_waits():
    payload = receipt(3, coordinator=COORDINATOR.account).payload
    unlisted = build_transaction(payload, sign_receipt(payload, coordinator=COORDINATOR))
    early = [unlisted, change(epoch=2), build_evidence(CHAIN.genesis, OLD[0], height=3)]
    assert choose(*early, receipt(4)) == ([3], [])
    chain = build_chain(4, blocks=[2])
    chain.change_authorities(OLD, coordinators=[COORDINATOR])
    assert choose(unlisted, early[2], tip=chain.tip) == ([0, 1], [])


POOL = [
    receipt(3),
    receipt(3, price_micros=1),
    receipt(4),
    build_audit(CHAIN.genesis, 1),
    build_audit(CHAIN.genesis, 1, verdict="fail"),
    build_audit(CHAIN.genesis, 2, genesis="ab" * 32),
    build_audit(CHAIN.genesis, 2, auditor=build_key("other auditor")),
    change(),
    change(members=OLD[1:]),
    change(epoch=2),
    change(valid_for=0),
    build_evidence(CHAIN.genesis, OLD[0]),
    build_evidence(CHAIN.genesis, OLD[0], height=9),
    build_evidence(CHAIN.genesis, build_key("stranger")),
]


@given(st.lists(st.sampled_from(POOL), max_size=12), st.integers(1, 5))
def test_whatever_waits_the_chosen_make_a_valid_block(candidates, limit):
    tip = replace(TIP, limits=Limits(max_block_transactions=limit))
    selection = choose_transactions(candidates, tip)
    if selection.chosen:
        chain = build_chain(4, blocks=[2], max_block_transactions=4096)
        chain.tip = tip
        validate_block(chain.propose(*selection.chosen), tip, chain.read)
    assert not {t.id for t in selection.chosen} & {t.id for t, _ in selection.invalid}
