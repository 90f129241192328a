"""The engine of one member, event by event: what it says, and what it never says."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus import height as height_module
from consensus.engine import Engine, compute_view_ms
from consensus.height import MAX_VIEWS_AHEAD, RULES, Rule
from consensus.interface import (
    BlockBuilt,
    BlockRefused,
    BuildBlock,
    Commit,
    Contradiction,
    Effect,
    Event,
    FetchBlocks,
    HeightOpened,
    MembersSilent,
    MessageReceived,
    OfferBlock,
    Persist,
    Send,
    SetTimer,
    Timer,
    TimerFired,
    TimerKind,
    TransactionsWaiting,
)
from consensus.messages import Message, build_message, compute_max_message_bytes, parse_message
from ledger.block import Block, VoteKind, advance_tip, verify_certificate
from ledger.encoding import encode
from ledger.errors import (
    InvalidBlockError,
    InvalidCertificateError,
    InvalidMessageError,
    InvalidSignatureError,
    LedgerError,
    StoreError,
)
from ledger.store.votes import VoteStore
from ledger.vote import (
    BlockDocument,
    QuorumCertificate,
    Vote,
    VoteRecord,
    build_block_document,
    cast_vote,
)
from tests.bare_blocks import BareValidator, build_bare_block, build_keys, build_tip, open_votes

KEYS = build_keys(7)


class Bench:
    """One member of a network of `count`, its `votes.db`, and the keys of all the others.

    At height 1 member (1 + view) mod n proposes: with four members 1, 2, 3, 0, 1, …
    """

    def __init__(self, *, count: int = 4, member: int | None = 0, disk: VoteStore | None = None):
        self.tip = build_tip(KEYS[:count])
        self.member = member
        self.validator = BareValidator()
        key = None if member is None else KEYS[member]
        self.disk = disk or open_votes(self.tip, key)
        self.engine = Engine(key=key, validator=self.validator)
        self.effects: list[Effect] = []
        self.do(HeightOpened(tip=self.tip, record=self.disk.load(1)))

    def do(self, event: Event) -> list[Effect]:
        """Step, and persist as a shell would. Returns the effects of this step."""
        effects = self.engine.step(event)
        for effect in effects:
            if isinstance(effect, Persist):
                self.disk.record(effect.record)
        self.effects += effects
        return effects

    def hear(
        self,
        *votes: Vote,
        certificates: Iterable[QuorumCertificate] = (),
        block: Block | None = None,
    ) -> list[Effect]:
        return self.do(self.message(*votes, certificates=certificates, block=block))

    def message(
        self,
        *votes: Vote,
        certificates: Iterable[QuorumCertificate] = (),
        block: Block | None = None,
    ) -> MessageReceived:
        document = None if block is None else build_block_document(block)
        message = build_message(self.tip, block=document, certificates=certificates, votes=votes)
        return MessageReceived(message=message)

    def timeout(self, view: int) -> list[Effect]:
        return self.do(TimerFired(timer=Timer(kind=TimerKind.VIEW, height=1, view=view)))

    def vote(self, member: int, kind: VoteKind, view: int, block: Block | None = None) -> Vote:
        return cast_vote(
            KEYS[member],
            member=member,
            tip=self.tip,
            kind=kind,
            view=view,
            block_hash="" if block is None else block.hash.hex(),
        )

    def certificate(
        self, kind: VoteKind, view: int, block: Block | None = None, members: Iterable[int] = ()
    ) -> QuorumCertificate:
        votes = [self.vote(m, kind, view, block) for m in members or (1, 2, 3)]
        return QuorumCertificate(
            kind=kind,
            view=view,
            block_hash=votes[0].block_hash,
            votes=tuple((vote.member, vote.sig) for vote in votes),
        )

    def block(self, proposer: int, salt: str = "") -> Block:
        return build_bare_block(self.tip, KEYS[proposer], salt=salt)

    def said(self) -> set[tuple[str, int, str]]:
        """Every (kind, view, block hash) that this member ever voted for."""
        return {
            (vote.kind, vote.view, vote.block_hash)
            for effect in self.effects
            if isinstance(effect, Send)
            for vote in effect.message.votes
            if vote.member == self.member
        }


def of_type(effects: Iterable[Effect], kind: type) -> list:
    return [effect for effect in effects if isinstance(effect, kind)]


def only(effects: Iterable[Effect], kind: type):
    (found,) = of_type(effects, kind)
    return found


# One authority


def test_one_authority_commits_in_one_step_with_one_persist_before_speech():
    bench = Bench(count=1)
    request = only(bench.do(TransactionsWaiting()), BuildBlock)
    assert request.tip == bench.tip
    block = bench.block(0)
    effects = bench.do(BlockBuilt(block=block))
    assert [type(effect) for effect in effects] == [Persist, Send, Commit]
    record, commit = effects[0].record, effects[2]
    assert {vote.kind for vote in record.votes} == {"notarize", "finalize"}
    assert record.blocks == (block,)
    assert [c.kind for c in record.certificates] == ["notarize"]
    assert commit.block == block
    verify_certificate(
        commit.certificate, header=block.header, authority_set=bench.tip.authority_set
    )


def test_one_authority_that_crashed_before_its_commit_commits_the_same_block_again():
    bench = Bench(count=1)
    bench.do(TransactionsWaiting())
    commit = only(bench.do(BlockBuilt(block=bench.block(0))), Commit)
    again = Bench(count=1, disk=bench.disk)
    assert only(again.effects, Commit) == commit
    assert not of_type(again.effects, Persist)
    (sent,) = of_type(again.effects, Send)
    assert [c.kind for c in sent.message.certificates] == ["finalize", "notarize"]


def test_one_authority_decides_height_after_height():
    bench, tip = Bench(count=1), build_tip(KEYS[:1])
    for height in range(1, 6):
        bench.do(TransactionsWaiting())
        block = build_bare_block(tip, KEYS[0])
        assert only(bench.do(BlockBuilt(block=block)), Commit).block.header.height == height
        tip = advance_tip(tip, block)
        bench.do(HeightOpened(tip=tip, record=VoteRecord(height=height + 1)))


def test_a_block_built_too_late_for_its_view_serves_the_next_one():
    bench = Bench(count=1)
    bench.do(TransactionsWaiting())
    effects = bench.timeout(0)
    assert only(effects, BuildBlock).view == 1
    block = bench.block(0)
    assert only(bench.do(BlockBuilt(block=block)), Commit).certificate.view == 1


# Four authorities, no faults


def test_a_proposal_is_notarized_finalized_and_committed():
    bench = Bench()
    block = bench.block(1)
    bench.hear(bench.vote(1, "notarize", 0, block), block=block)
    assert bench.said() == {("notarize", 0, block.hash.hex())}
    effects = bench.hear(bench.vote(2, "notarize", 0, block))
    assert ("finalize", 0, block.hash.hex()) in bench.said()
    assert [c.kind for c in only(effects, Send).message.certificates] == ["notarize"]
    bench.hear(bench.vote(1, "finalize", 0, block))
    commit = only(bench.hear(bench.vote(3, "finalize", 0, block)), Commit)
    verify_certificate(
        commit.certificate, header=block.header, authority_set=bench.tip.authority_set
    )
    assert bench.validator.asked == [(block.hash, True)]
    assert bench.said() == {
        ("notarize", 0, block.hash.hex()),
        ("finalize", 0, block.hash.hex()),
    }


def test_a_proposer_sends_its_block_with_its_vote():
    bench = Bench(member=1)
    assert only(bench.do(TransactionsWaiting()), BuildBlock).view == 0
    block = bench.block(1)
    effects = bench.do(BlockBuilt(block=block))
    assert [type(effect) for effect in effects[:2]] == [Persist, Send]
    message = effects[1].message
    assert message.block == build_block_document(block)
    assert [(v.member, v.kind, v.view) for v in message.votes] == [(1, "notarize", 0)]


def test_a_member_whose_turn_it_is_not_builds_nothing():
    bench = Bench(member=0)
    assert not of_type(bench.do(TransactionsWaiting()), BuildBlock)
    bench.do(BlockBuilt(block=bench.block(0)))
    assert bench.said() == set()


def test_a_block_is_asked_for_once_until_there_are_more_transactions():
    bench = Bench(member=1)
    assert of_type(bench.do(TransactionsWaiting()), BuildBlock)
    assert not of_type(bench.hear(), BuildBlock)
    assert of_type(bench.do(TransactionsWaiting()), BuildBlock)


def test_the_last_finalize_vote_decides_after_the_view_was_left():
    bench = Bench()
    block = bench.block(1)
    bench.hear(block=block, certificates=[bench.certificate("notarize", 0, block)])
    bench.hear(certificates=[bench.certificate("nullify", 1)])
    bench.hear(certificates=[bench.certificate("nullify", 2)])
    bench.hear(bench.vote(1, "finalize", 0, block), bench.vote(2, "finalize", 0, block))
    assert only(bench.effects, Commit).certificate.view == 0


def test_a_body_that_arrives_after_its_finalization_is_committed():
    bench = Bench()
    block = bench.block(1)
    effects = bench.hear(certificates=[bench.certificate("finalize", 0, block)])
    assert only(effects, FetchBlocks).height == 1
    assert only(bench.hear(block=block), Commit).block == block


def test_a_follower_commits_without_votes_timers_or_persisting():
    bench = Bench(member=None)
    block = bench.block(1)
    bench.hear(
        bench.vote(1, "notarize", 0, block),
        block=block,
        certificates=[bench.certificate("finalize", 0, block)],
    )
    assert [type(effect) for effect in bench.effects] == [Commit]


# Views


def test_a_silent_view_is_nullified_and_the_next_proposer_takes_over():
    bench = Bench(member=2)
    bench.do(TransactionsWaiting())
    assert bench.timeout(0)
    assert bench.said() == {("nullify", 0, "")}
    effects = bench.hear(bench.vote(0, "nullify", 0), bench.vote(3, "nullify", 0))
    assert only(effects, BuildBlock).view == 1
    effects = bench.do(BlockBuilt(block=bench.block(2)))
    certificates = only(effects, Send).message.certificates
    assert [(c.kind, c.view) for c in certificates] == [("nullify", 0)]


def test_a_certificate_of_a_later_view_moves_past_it():
    bench = Bench()
    bench.do(TransactionsWaiting())
    effects = bench.hear(certificates=[bench.certificate("nullify", 5)])
    timers = [e for e in of_type(effects, SetTimer) if e.timer.kind is TimerKind.VIEW]
    assert [(t.timer.view, t.delay_ms) for t in timers] == [(6, compute_view_ms(6))]


def test_timers_of_left_views_and_heights_do_nothing():
    bench = Bench()
    bench.hear(certificates=[bench.certificate("nullify", 0)])
    before = len(bench.effects)
    bench.timeout(0)
    for kind in (TimerKind.VIEW, TimerKind.REBROADCAST):
        bench.do(TimerFired(timer=Timer(kind=kind, height=9, view=1)))
    assert bench.effects[before:] == []


def test_views_last_longer_and_longer_up_to_half_a_minute():
    assert [compute_view_ms(view) for view in range(10)] == [
        1000, 1500, 2250, 3375, 5062, 7593, 11390, 17085, 25628, 30000,
    ]  # fmt: skip
    assert compute_view_ms(9_999) == 30_000


def test_a_silent_proposer_is_given_no_time():
    bench = Bench()
    bench.do(TransactionsWaiting())
    effects = bench.do(MembersSilent(members=frozenset({1})))
    assert only(effects, SetTimer).delay_ms == 0
    assert bench.do(MembersSilent(members=frozenset({1}))) == []
    effects = bench.hear(certificates=[bench.certificate("nullify", 0)])
    delays = {e.timer.kind: e.delay_ms for e in of_type(effects, SetTimer)}
    assert delays[TimerKind.VIEW] == compute_view_ms(1)


def test_an_idle_member_starts_no_view_timer():
    bench = Bench()
    assert [e.timer.kind for e in bench.effects] == [TimerKind.HEARTBEAT]
    assert bench.hear() == []
    bench.hear(certificates=[bench.certificate("nullify", 0)])
    kinds = [e.timer.kind for e in of_type(bench.effects, SetTimer)]
    assert kinds == [TimerKind.HEARTBEAT, TimerKind.REBROADCAST]
    effects = bench.hear(bench.vote(3, "nullify", 1))
    assert only(effects, SetTimer).timer.kind is TimerKind.VIEW


def test_heartbeats_name_the_open_height_and_go_on():
    bench = Bench()
    timer = only(bench.effects, SetTimer).timer
    effects = bench.do(TimerFired(timer=timer))
    assert only(effects, Send).message == build_message(bench.tip)
    assert only(effects, SetTimer).timer.kind is TimerKind.HEARTBEAT


def test_a_member_that_left_the_set_stops_its_heartbeats():
    bench = Bench(member=3)
    timer = only(bench.effects, SetTimer).timer
    bench.do(HeightOpened(tip=build_tip(KEYS[:3]), record=VoteRecord(height=1)))
    assert bench.do(TimerFired(timer=timer)) == []
    bench.do(TransactionsWaiting())
    assert bench.said() == set()


def test_a_rebroadcast_says_everything_open_and_waits_longer_each_time():
    bench = Bench()
    block = bench.block(1)
    bench.hear(certificates=[bench.certificate("notarize", 0, block)], block=block)
    bench.hear(certificates=[bench.certificate("nullify", 1)])
    bench.timeout(2)
    delays = []
    for _ in range(6):
        timer = Timer(kind=TimerKind.REBROADCAST, height=1, view=2)
        effects = bench.do(TimerFired(timer=timer))
        message = only(effects, Send).message
        assert [(c.kind, c.view) for c in message.certificates] == [
            ("notarize", 0), ("nullify", 1),
        ]  # fmt: skip
        assert [(v.kind, v.view) for v in message.votes] == [("finalize", 0), ("nullify", 2)]
        delays.append(only(effects, SetTimer).delay_ms)
    assert delays == [2000, 4000, 8000, 10000, 10000, 10000]


# Proposing again


def test_a_notarized_block_is_proposed_again_under_the_same_hash():
    bench = Bench(member=2)
    block = bench.block(1)
    bench.timeout(0)
    effects = bench.hear(certificates=[bench.certificate("notarize", 0, block)], block=block)
    message = only(effects, Send).message
    assert message.block == build_block_document(block)
    assert ("notarize", 1, block.hash.hex()) in bench.said()
    assert [(c.kind, c.view) for c in message.certificates] == [("notarize", 0)]
    assert not of_type(bench.do(TransactionsWaiting()), BuildBlock)


def test_a_block_about_to_be_final_is_proposed_again_only_when_finality_is_late():
    bench = Bench(member=2)
    block = bench.block(1)
    bench.hear(certificates=[bench.certificate("notarize", 0, block)], block=block)
    assert bench.said() == {("finalize", 0, block.hash.hex())}
    bench.do(TimerFired(timer=Timer(kind=TimerKind.REBROADCAST, height=1, view=1)))
    assert ("notarize", 1, block.hash.hex()) in bench.said()


def test_a_block_proposed_again_is_not_held_against_the_clock():
    bench = Bench()
    block = bench.block(1)
    bench.hear(
        bench.vote(2, "notarize", 1, block),
        certificates=[bench.certificate("notarize", 0, block)],
        block=block,
    )
    assert bench.validator.asked == [(block.hash, False)]
    assert ("notarize", 1, block.hash.hex()) in bench.said()


def test_a_notarization_reaches_over_nullified_views():
    bench = Bench()
    block = bench.block(1)
    bench.hear(
        bench.vote(3, "notarize", 2, block),
        certificates=[bench.certificate("notarize", 0, block), bench.certificate("nullify", 1)],
        block=block,
    )
    assert ("notarize", 2, block.hash.hex()) in bench.said()


def test_a_proposer_with_a_gap_in_its_certificates_waits_for_them():
    bench = Bench(member=2)
    bench.do(TransactionsWaiting())
    bench.hear(certificates=[bench.certificate("nullify", v) for v in (1, 2, 3, 4)])  # turn: view 5
    assert not of_type(bench.effects, BuildBlock)
    effects = bench.hear(certificates=[bench.certificate("nullify", 0)])
    assert only(effects, BuildBlock).view == 5


# The rules of a voter. Each story ends with a set of votes; with its rule taken away, the same
# story ends with a broken promise.


def tell_r1(bench: Bench) -> bool:
    first, second = bench.block(1, "first"), bench.block(1, "second")
    bench.hear(bench.vote(1, "notarize", 0, first), block=first)
    bench.engine._height.blocks[second.hash.hex()] = second
    return bench.engine._cast("notarize", 0, second.hash.hex())


def tell_r2_nullify_first(bench: Bench) -> bool:
    block = bench.block(1)
    bench.hear(bench.vote(1, "notarize", 0, block), block=block)
    bench.timeout(0)
    bench.hear(certificates=[bench.certificate("notarize", 0, block)])
    return ("finalize", 0, block.hash.hex()) in bench.said()


def tell_r2_finalize_first(bench: Bench) -> bool:
    block = bench.block(1)
    bench.hear(certificates=[bench.certificate("notarize", 0, block)], block=block)
    assert ("finalize", 0, block.hash.hex()) in bench.said()
    return bench.engine._cast("nullify", 0, "")


def tell_r3_without_body(bench: Bench) -> bool:
    block = bench.block(1)
    bench.hear(certificates=[bench.certificate("notarize", 0, block)])
    return ("finalize", 0, block.hash.hex()) in bench.said()


def tell_r3_without_notarization(bench: Bench) -> bool:
    block = bench.block(1)
    bench.hear(bench.vote(1, "notarize", 0, block), block=block)
    return bench.engine._cast("finalize", 0, block.hash.hex())


def tell_r4_without_body(bench: Bench) -> bool:
    block = bench.block(1)
    bench.hear(bench.vote(1, "notarize", 0, block))
    return ("notarize", 0, block.hash.hex()) in bench.said()


def tell_r4_invalid_body(bench: Bench) -> bool:
    block = bench.block(1)
    bench.validator.refused.add(block.hash)
    effects = bench.hear(bench.vote(1, "notarize", 0, block), block=block)
    assert isinstance(only(effects, BlockRefused).error, InvalidBlockError)
    return ("notarize", 0, block.hash.hex()) in bench.said()


def tell_r4_other_block_after_notarization(bench: Bench) -> bool:
    """View 0 notarized one block; the proposer of view 1 offers another."""
    notarized, other = bench.block(1), bench.block(2)
    certificates = [bench.certificate("notarize", 0, notarized)]
    bench.hear(bench.vote(2, "notarize", 1, other), certificates=certificates, block=other)
    return ("notarize", 1, other.hash.hex()) in bench.said()


def tell_r4_view_not_nullified(bench: Bench) -> bool:
    """A fresh block in view 2, though nothing shows that view 0 failed."""
    fresh = bench.block(3)
    certificates = [bench.certificate("nullify", 1)]
    bench.hear(bench.vote(3, "notarize", 2, fresh), certificates=certificates, block=fresh)
    return ("notarize", 2, fresh.hash.hex()) in bench.said()


def tell_r4_block_of_another(bench: Bench) -> bool:
    """A fresh block must be the work of the member whose turn it is."""
    stolen = bench.block(3)
    bench.hear(bench.vote(1, "notarize", 0, stolen), block=stolen)
    return ("notarize", 0, stolen.hash.hex()) in bench.said()


STORIES = [
    ("notarize", height_module.votes_once, tell_r1),
    ("finalize", height_module.never_both, tell_r2_nullify_first),
    ("nullify", height_module.never_both, tell_r2_finalize_first),
    ("finalize", height_module.holds_notarization, tell_r3_without_body),
    ("finalize", height_module.holds_notarization, tell_r3_without_notarization),
    ("notarize", height_module.is_justified, tell_r4_without_body),
    ("notarize", height_module.is_justified, tell_r4_invalid_body),
    ("notarize", height_module.is_justified, tell_r4_other_block_after_notarization),
    ("notarize", height_module.is_justified, tell_r4_view_not_nullified),
    ("notarize", height_module.is_justified, tell_r4_block_of_another),
]


@pytest.mark.parametrize(
    ("kind", "rule", "story"), STORIES, ids=lambda v: getattr(v, "__name__", v)
)
def test_a_rule_refuses_the_vote_and_only_the_rule_does(
    monkeypatch, kind: VoteKind, rule: Rule, story
):
    assert story(Bench()) is False
    rest = tuple(other for other in RULES[kind] if other is not rule)
    assert len(rest) == len(RULES[kind]) - 1
    monkeypatch.setitem(RULES, kind, rest)
    try:
        is_broken = story(Bench())
    except StoreError:  # votes.db refused it
        is_broken = True
    except AssertionError as error:
        is_broken = "without end" in str(error)
    assert is_broken


def test_a_vote_is_cast_once_however_often_its_reason_comes():
    bench = Bench()
    block = bench.block(1)
    for _ in range(3):
        bench.hear(bench.vote(1, "notarize", 0, block), block=block)
        bench.timeout(0)
    assert len(bench.disk.load(1).votes) == 2
    assert len(of_type(bench.effects, Persist)) == 2


def test_a_vote_of_our_own_that_we_forgot_still_binds_us():
    bench = Bench()
    first, second = bench.block(1, "first"), bench.block(1, "second")
    bench.hear(bench.vote(0, "notarize", 0, first))
    assert len(bench.disk.load(1).votes) == 1
    bench.hear(bench.vote(1, "notarize", 0, second), block=second)
    assert ("notarize", 0, second.hash.hex()) not in bench.said()


# Others that lie


def test_an_equivocating_member_counts_once_and_is_reported():
    bench = Bench()
    first, second = bench.block(1, "first"), bench.block(1, "second")
    votes = bench.vote(1, "notarize", 0, first), bench.vote(1, "notarize", 0, second)
    bench.hear(votes[0], block=first)
    effects = bench.hear(votes[1], block=second)
    assert only(effects, Contradiction) == Contradiction(first=votes[0], second=votes[1])
    bench.hear(bench.vote(2, "notarize", 0, second), bench.vote(3, "notarize", 0, second))
    assert bench.said() == {("notarize", 0, first.hash.hex())}


def test_a_member_that_nullifies_and_finalizes_is_reported():
    bench = Bench()
    block = bench.block(1)
    nullify, finalize = bench.vote(3, "nullify", 0), bench.vote(3, "finalize", 0, block)
    effects = bench.hear(nullify, finalize)
    assert {only(effects, Contradiction).first, only(effects, Contradiction).second} == {
        nullify,
        finalize,
    }


def break_certificate(bench: Bench, block: Block) -> dict[str, QuorumCertificate]:
    good = bench.certificate("finalize", 0, block)
    foreign = Bench(count=4)
    foreign.tip = build_tip(KEYS[:4], network="another")
    (a, b, c), strange = good.votes, bench.vote(3, "finalize", 1, block)
    replace = {
        "one vote too few": (a, b),
        "the same member twice": (a, b, b),
        "unsorted": (a, c, b),
        "a member that does not exist": (a, b, (4, c[1])),
        "a signature under another's name": (a, b, (3, b[1])),
        "a vote of another view": (a, b, (3, strange.sig)),
        "no signature": (a, b, (3, "")),
        "nothing": (),
    }
    broken = {
        name: QuorumCertificate(kind="finalize", view=0, block_hash=good.block_hash, votes=votes)
        for name, votes in replace.items()
    }
    notarization = bench.certificate("notarize", 0, block)
    broken["votes of another kind"] = QuorumCertificate(
        kind="finalize", view=0, block_hash=good.block_hash, votes=notarization.votes
    )
    broken["votes for another block"] = QuorumCertificate(
        kind="finalize", view=0, block_hash=bench.block(2).hash.hex(), votes=good.votes
    )
    broken["votes of another chain"] = foreign.certificate("finalize", 0, block)
    broken["a finalization of nothing"] = QuorumCertificate(
        kind="finalize", view=0, block_hash="", votes=bench.certificate("nullify", 0).votes
    )
    broken["a nullification of a block"] = QuorumCertificate(
        kind="nullify", view=0, block_hash=good.block_hash, votes=good.votes
    )
    return broken


CERTIFICATES = break_certificate(Bench(), Bench().block(1))


@pytest.mark.parametrize("name", CERTIFICATES)
def test_a_broken_certificate_is_refused_and_changes_nothing(name):
    bench = Bench()
    block = bench.block(1)
    bench.hear(bench.vote(1, "notarize", 0, block), block=block)
    before = len(bench.effects)
    with pytest.raises(InvalidCertificateError):
        bench.hear(bench.vote(2, "notarize", 0, block), certificates=[CERTIFICATES[name]])
    assert bench.hear() == []
    assert len(bench.effects) == before
    assert only(bench.hear(certificates=[bench.certificate("finalize", 0, block)]), Commit)


def test_a_vote_that_does_not_verify_refuses_the_whole_message():
    bench = Bench()
    block = bench.block(1)
    good = bench.vote(1, "notarize", 0, block)
    forged = Vote(kind="notarize", view=0, block_hash=good.block_hash, member=2, sig=good.sig)
    stranger = Vote(kind="notarize", view=0, block_hash=good.block_hash, member=9, sig=good.sig)
    shapeless = Vote(kind="nullify", view=0, block_hash=good.block_hash, member=2, sig=good.sig)
    for bad in (forged, stranger, shapeless):
        with pytest.raises(InvalidSignatureError):
            bench.hear(good, bad, block=block)
        assert bench.said() == set()


def test_votes_far_ahead_are_dropped_unless_a_certificate_leads_there():
    bench = Bench()
    for view in range(0, 200, 5):
        bench.hear(bench.vote(3, "nullify", view))
    assert max(view for view, _ in bench.engine._height.votes) <= MAX_VIEWS_AHEAD
    bench.hear(bench.vote(3, "nullify", 205), certificates=[bench.certificate("nullify", 200)])
    assert (205, "nullify") in bench.engine._height.votes


def test_a_body_nobody_voted_for_is_dropped_unread():
    bench = Bench()
    bench.hear(bench.vote(2, "notarize", 0, bench.block(2)), block=bench.block(2))
    assert bench.validator.asked == []
    assert bench.engine._height.blocks == {}


def test_an_invalid_block_of_our_own_is_reported_and_gets_no_vote():
    bench = Bench(member=1)
    bench.do(TransactionsWaiting())
    block = bench.block(1)
    bench.validator.refused.add(block.hash)
    assert only(bench.do(BlockBuilt(block=block)), BlockRefused).block_hash == block.hash.hex()
    assert bench.said() == set()


# Other heights and networks


def test_messages_of_other_heights_start_a_sync_or_get_the_block():
    bench = Bench()
    genesis = bench.tip.genesis_hash.hex()
    ahead = MessageReceived(message=Message(genesis=genesis, height=4))
    assert bench.do(ahead) == [FetchBlocks(height=3)]
    block = bench.block(1)
    bench.do(HeightOpened(tip=advance_tip(bench.tip, block), record=VoteRecord(height=2)))
    assert bench.hear() == [OfferBlock(height=1)]


def test_a_decided_height_takes_no_more_events():
    bench = Bench()
    block = bench.block(1)
    bench.hear(certificates=[bench.certificate("finalize", 0, block)], block=block)
    before = len(bench.effects)
    bench.hear(bench.vote(1, "nullify", 1))
    bench.timeout(0)
    bench.do(TransactionsWaiting())
    bench.do(BlockBuilt(block=bench.block(0)))
    assert bench.effects[before:] == []


def test_a_message_of_another_network_is_refused():
    bench = Bench()
    message = build_message(build_tip(KEYS[:4], network="another"))
    with pytest.raises(InvalidMessageError, match="another network"):
        bench.do(MessageReceived(message=message))


def test_a_record_of_another_height_is_our_own_bug():
    with pytest.raises(AssertionError, match="expected height 1, got 2"):
        Engine(key=KEYS[0], validator=BareValidator()).step(
            HeightOpened(tip=build_tip(KEYS[:4]), record=VoteRecord(height=2))
        )


# Crashes. A story is told up to every effect, the member crashes, and what follows tries to make
# it contradict what it said.


def tell_everything(bench: Bench, block: Block, other: Block) -> list[Event]:
    proposer = 2 if bench.member == 1 else 1
    return [
        TransactionsWaiting(),
        BlockBuilt(block=block),
        bench.message(bench.vote(proposer, "notarize", 0, block), block=block),
        TimerFired(timer=Timer(kind=TimerKind.VIEW, height=1, view=0)),
        bench.message(certificates=[bench.certificate("notarize", 0, block)]),
        TimerFired(timer=Timer(kind=TimerKind.VIEW, height=1, view=1)),
        bench.message(bench.vote(2, "notarize", 1, block), block=block),
        bench.message(certificates=[bench.certificate("nullify", 1)]),
        bench.message(bench.vote(2, "notarize", 1, other), block=other),
    ]


def tell_the_opposite(bench: Bench, block: Block, other: Block) -> list[Event]:
    return [
        TransactionsWaiting(),
        BlockBuilt(block=other),
        bench.message(bench.vote(1, "notarize", 0, other), block=other),
        TimerFired(timer=Timer(kind=TimerKind.VIEW, height=1, view=0)),
        bench.message(certificates=[bench.certificate("nullify", 0)]),
        bench.message(certificates=[bench.certificate("notarize", 0, block)], block=block),
        bench.message(bench.vote(2, "notarize", 1, other), block=other),
        TimerFired(timer=Timer(kind=TimerKind.VIEW, height=1, view=1)),
    ]


def live(bench: Bench, events: list[Event], crash_after: int) -> int:
    """Execute at most `crash_after` effects. Returns how many there were."""
    done = 0
    for event in events:
        for effect in bench.engine.step(event):
            if done == crash_after:
                return done
            done += 1
            if isinstance(effect, Persist):
                bench.disk.record(effect.record)  # refuses what breaks R1 or R2 over all lives
            bench.effects.append(effect)
    return done


@pytest.mark.parametrize(("count", "member"), [(1, 0), (4, 0), (4, 1), (4, 2)])
def test_a_crash_between_any_two_effects_never_makes_a_member_contradict_itself(count, member):
    for crash_after in itertools.count():
        first = Bench(count=count, member=member)
        blocks = [build_bare_block(first.tip, KEYS[1 % count], salt=s) for s in ("", "other")]
        told = live(first, tell_everything(first, *blocks), crash_after)
        second = Bench(count=count, member=member, disk=first.disk)
        durable = {(v.kind, v.view, v.block_hash) for v in first.disk.load(1).votes}
        assert first.said() <= durable
        certified = first.engine._height.certificates
        assert {v for v in second.said() if (v[1], v[0]) not in certified} <= durable
        live(second, tell_the_opposite(second, *blocks), 10**6)
        spoken = first.said() | second.said()
        assert len({(kind, view) for kind, view, _ in spoken}) == len(spoken)
        assert not {v for k, v, _ in spoken if k == "nullify"} & {
            v for k, v, _ in spoken if k == "finalize"
        }
        if told < crash_after:
            return
    raise AssertionError


def test_a_restarted_member_says_its_stored_votes_again_byte_for_byte():
    bench = Bench(member=1)
    bench.do(TransactionsWaiting())
    block = bench.block(1)
    sent = only(bench.do(BlockBuilt(block=block)), Send).message
    again = Bench(member=1, disk=bench.disk)
    assert only(again.effects, Send).message == sent
    assert not of_type(again.effects, Persist)
    again.do(TransactionsWaiting())
    again.do(BlockBuilt(block=bench.block(1, "other")))
    assert again.said() == bench.said()


# Bytes


def build_full_message() -> tuple[Bench, bytes]:
    bench = Bench()
    block = bench.block(2)
    event = bench.message(
        bench.vote(2, "notarize", 1, block),
        bench.vote(3, "nullify", 1),
        certificates=[bench.certificate("nullify", 0)],
        block=block,
    )
    return bench, encode(event.message)


FULL = build_full_message()[1]
BOUND = compute_max_message_bytes(build_tip(KEYS[:4]))


def test_a_message_survives_its_bytes():
    message = parse_message(FULL, max_bytes=BOUND)
    assert encode(message) == FULL
    assert isinstance(message.block, BlockDocument)


def test_every_truncation_is_refused():
    for size in range(len(FULL)):
        with pytest.raises(InvalidMessageError):
            parse_message(FULL[:size], max_bytes=BOUND)


def test_a_message_over_the_bound_is_refused():
    with pytest.raises(InvalidMessageError, match="at most"):
        parse_message(FULL, max_bytes=len(FULL) - 1)


def test_repeated_or_unsorted_votes_are_refused():
    bench = Bench()
    votes = bench.vote(2, "nullify", 0), bench.vote(3, "nullify", 0)
    for wrong in ((votes[0], votes[0]), (votes[1], votes[0])):
        message = Message(genesis=bench.tip.genesis_hash.hex(), height=1, votes=wrong)
        with pytest.raises(InvalidMessageError, match="sorted"):
            parse_message(encode(message), max_bytes=BOUND)


@given(st.binary(max_size=200))
def test_random_bytes_are_refused(data):
    with pytest.raises(InvalidMessageError):
        parse_message(data, max_bytes=BOUND)


@given(st.integers(0, len(FULL) - 1), st.integers(1, 255))
def test_a_changed_byte_never_yields_another_vote(position, difference):
    data = bytearray(FULL)
    data[position] ^= difference
    bench = Bench()
    before = len(bench.effects)
    try:
        effects = bench.do(MessageReceived(message=parse_message(bytes(data), max_bytes=BOUND)))
    except LedgerError:
        assert len(bench.effects) == before
        return
    # What is left are changes of the unsigned parts: the height, or the block that goes with it.
    assert bench.said() == set()
    assert {type(effect) for effect in effects} <= {
        FetchBlocks,
        OfferBlock,
        Persist,
        SetTimer,
        Send,
    }
