"""The Simplex engine (Chan and Pass, ePrint 2023/463), restricted to one block per height.

    view v: the proposer's notarize vote, block attached
      q notarize   the view is notarized: finalize, unless this view was nullified; go to v+1
      timer        nullify
      q nullify    the view is nullified; go to v+1
      q finalize   the block is final: commit; the next height starts from there

What a proposer may propose and what a member may vote for is in `height.py`. The same code runs
for one authority: its own vote is a quorum, so that a built block is notarized, finalized and
committed within one step, with one `Persist`.

Nothing is said that is not durable, and nothing durable is unsaid: `step` returns one `Persist`
with all that is new, then one `Send` with all that others may lack. What may have been lost is
sent again until the height is decided.
"""

from __future__ import annotations

from consensus.height import OpenHeight, may_vote
from consensus.interface import (
    BlockBuilt,
    BlockRefused,
    BlockValidator,
    BuildBlock,
    Commit,
    Contradiction,
    Effect,
    Event,
    FetchBlocks,
    HeightOpened,
    MessageReceived,
    OfferBlock,
    Send,
    SetTimer,
    Timer,
    TimerFired,
    TimerKind,
    TransactionsWaiting,
)
from consensus.messages import Message, build_message
from consensus.output import Output
from ledger.block import Block, Tip, VoteKind, hash_header
from ledger.errors import InvalidMessageError, LedgerError
from ledger.keys import KeyPair
from ledger.vote import (
    MAX_VIEWS,
    BlockDocument,
    QuorumCertificate,
    Vote,
    VoteRecord,
    build_finality_certificate,
    cast_vote,
    read_block_document,
)

VIEW_MS = 1_000
MAX_VIEW_MS = 30_000
REBROADCAST_MS = 1_000
MAX_REBROADCAST_MS = 10_000
HEARTBEAT_MS = 2_000

_MAX_VOTES_PER_STEP = 2 * MAX_VIEWS
_STEADY_VIEW = 9
"""From here on 1.5^v exceeds the bound."""


def compute_view_ms(view: int) -> int:
    """Return how long a view may last: 1 s · 1.5^view, at most 30 s."""
    exponent = min(view, _STEADY_VIEW)
    return min(int(VIEW_MS * 1.5**exponent), MAX_VIEW_MS)


class Engine:
    """Decides one height after another. Its only input is `step`, its only output the effects.

    The first event must be a `HeightOpened`. Without a key, or with one that is no member's, it
    votes for nothing and persists nothing, but sees what the others decide.
    """

    _height: OpenHeight

    def __init__(self, *, key: KeyPair | None, validator: BlockValidator) -> None:
        self._key = key
        self._validator = validator
        self._silent: frozenset[int] = frozenset()
        self._has_heartbeat = False
        self._out = Output()

    def step(self, event: Event) -> list[Effect]:
        """Take one event; return what to do about it, in order.

        Raises:
            InvalidMessageError, InvalidSignatureError, InvalidCertificateError: the message is
                bad by its sender's fault. Nothing has changed.
        """
        if isinstance(event, HeightOpened):
            self._open(event.tip, event.record)
        elif isinstance(event, MessageReceived):
            self._receive(event.message)
        elif isinstance(event, TimerFired):
            self._fire(event.timer)
        elif isinstance(event, TransactionsWaiting):
            self._is_waiting, self._asked_view = True, -1
        elif isinstance(event, BlockBuilt):
            self._take_built(event.block)
        else:
            self._note_silent(event.members)
        self._decide()
        effects, self._out = self._out.list_effects(self._height), Output()
        return effects

    # Events

    def _open(self, tip: Tip, record: VoteRecord) -> None:
        account = self._key.account if self._key is not None else ""
        self._height = height = OpenHeight(tip, tip.authority_set.index_of(account))
        if record.height != height.height:
            raise AssertionError(f"record: expected height {height.height}, got {record.height}")
        self._is_decided = self._is_waiting = False
        self._asked_view = -1
        self._built: dict[int, str] = {}
        self._armed_view = self._rebroadcast_view = -1
        self._rebroadcast_ms = REBROADCAST_MS
        height.blocks = {block.hash.hex(): block for block in record.blocks}
        for certificate in record.certificates:
            height.add_certificate(certificate)
        for vote in record.votes:
            height.add_vote(vote)
        self._out.is_resend = bool(record.votes or record.certificates)
        if height.member is not None and not self._has_heartbeat:
            self._has_heartbeat = True
            self._set_timer(TimerKind.HEARTBEAT, HEARTBEAT_MS)

    def _receive(self, message: Message) -> None:
        height = self._height
        if message.genesis != height.tip.genesis_hash.hex():
            raise InvalidMessageError("message: it belongs to another network")
        if message.height > height.height:
            self._out.others.append(FetchBlocks(height=message.height - 1))
        elif message.height < height.height:
            self._out.others.append(OfferBlock(height=message.height))
        elif not self._is_decided:
            certificates, votes = height.list_news(message)
            for certificate in certificates:
                self._learn(certificate)
            for vote in votes:
                self._count(vote)
            if message.block is not None:
                self._take_received(message.block)

    def _take_received(self, document: BlockDocument) -> None:
        """Admit a body that somebody with the right to choose it has named; drop any other."""
        height = self._height
        block_hash = hash_header(document.header).hex()
        is_named = block_hash == height.proposal or height.is_notarized(block_hash)
        if block_hash in height.blocks or not is_named:
            return
        try:
            self._admit(read_block_document(document))
        except LedgerError as error:
            self._out.others.append(BlockRefused(block_hash=block_hash, error=error))

    def _take_built(self, block: Block) -> None:
        height = self._height
        if not self._may_propose_fresh():
            return  # the view for which it was built is over
        try:
            self._admit(block)
        except LedgerError as error:
            self._out.others.append(BlockRefused(block_hash=block.hash.hex(), error=error))
        else:
            self._built = {height.view: block.hash.hex()}

    def _admit(self, block: Block) -> None:
        height, block_hash = self._height, block.hash.hex()
        is_fresh = not height.is_notarized(block_hash)
        self._validator.validate(block, height.tip, is_fresh=is_fresh)
        height.blocks[block_hash] = block
        self._out.blocks.append(block)

    def _fire(self, timer: Timer) -> None:
        height = self._height
        is_current = (timer.height, timer.view) == (height.height, height.view)
        if timer.kind is TimerKind.HEARTBEAT:
            self._has_heartbeat = height.member is not None
            if self._has_heartbeat:
                self._out.others.append(Send(message=build_message(height.tip)))
                self._set_timer(TimerKind.HEARTBEAT, HEARTBEAT_MS)
        elif not is_current or self._is_decided:
            return
        elif timer.kind is TimerKind.VIEW:
            self._cast("nullify", height.view, "")
        else:
            self._out.is_resend = True
            self._rebroadcast_ms = min(2 * self._rebroadcast_ms, MAX_REBROADCAST_MS)
            self._set_timer(TimerKind.REBROADCAST, self._rebroadcast_ms)

    def _note_silent(self, members: frozenset[int]) -> None:
        if self._height.proposer(self._height.view) in members - self._silent:
            self._armed_view = -1
        self._silent = members

    # Decisions

    def _decide(self) -> None:
        """Cast every vote that the rules allow. Each may complete a certificate and allow more."""
        for _ in range(_MAX_VOTES_PER_STEP):
            if self._height.finalization or not (self._finalize() or self._notarize()):
                break
        else:
            raise AssertionError("the rules of a voter allow votes without end")
        if not self._is_decided:
            self._commit()
        if not self._is_decided:
            self._ask_block()
            self._arm_timers()

    def _notarize(self) -> bool:
        height = self._height
        block_hash = height.proposal
        if height.is_proposer and block_hash is None:
            repeated = None if self._expects_finality() else height.choose()
            block_hash = repeated or self._built.get(height.view)
        return block_hash is not None and self._cast("notarize", height.view, block_hash)

    def _expects_finality(self) -> bool:
        """Tell whether the view before this one is likely to be finalized any moment.

        We voted so, and the others' votes are on their way. To propose its block again would send
        it twice in every height; so a proposer waits until it has to rebroadcast anyway.
        """
        height = self._height
        is_finalized = height.find_vote(height.view - 1, "finalize", height.member) is not None
        has_rebroadcast = (
            self._rebroadcast_view == height.view and self._rebroadcast_ms > REBROADCAST_MS
        )
        return is_finalized and not has_rebroadcast

    def _finalize(self) -> bool:
        # A view left behind may still be finalized: the rules tie a vote to its view, not to ours.
        notarizations = [c for c in self._height.certificates.values() if c.kind == "notarize"]
        return any(self._cast("finalize", c.view, c.block_hash) for c in notarizations)

    def _cast(self, kind: VoteKind, view: int, block_hash: str) -> bool:
        height = self._height
        if self._key is None or height.member is None or view >= MAX_VIEWS:
            return False
        if not may_vote(height, kind, view, block_hash):
            return False
        self._count(
            cast_vote(
                self._key,
                member=height.member,
                tip=height.tip,
                kind=kind,
                view=view,
                block_hash=block_hash,
            )
        )
        return True

    def _count(self, vote: Vote) -> None:
        height = self._height
        if contradicted := height.find_contradiction(vote):
            self._out.others.append(Contradiction(first=contradicted, second=vote))
            return
        if vote.member == height.member:
            self._out.votes.append(vote)
        if certificate := height.add_vote(vote):
            self._out.certificates.append(certificate)
            self._out.formed.append(certificate)

    def _learn(self, certificate: QuorumCertificate) -> None:
        self._height.add_certificate(certificate)
        self._out.certificates.append(certificate)

    def _commit(self) -> None:
        finalization = self._height.finalization
        if finalization is None:
            return
        block = self._height.blocks.get(finalization.block_hash)
        if block is None:
            self._out.others.append(FetchBlocks(height=self._height.height))
            return
        self._is_decided = True
        certificate = build_finality_certificate(finalization)
        self._out.others.append(Commit(block=block, certificate=certificate))

    def _ask_block(self) -> None:
        height = self._height
        is_asked = self._asked_view == height.view
        if self._is_waiting and not is_asked and self._may_propose_fresh():
            self._asked_view = height.view
            self._out.others.append(BuildBlock(tip=height.tip, view=height.view))

    def _may_propose_fresh(self) -> bool:
        height = self._height
        return (
            not self._is_decided
            and height.is_proposer
            and height.proposal is None
            and height.choose() == ""
        )

    def _arm_timers(self) -> None:
        height = self._height
        if height.member is None:
            return
        is_open = bool(height.certificates) or height.heard_view >= 0
        if is_open and self._rebroadcast_view != height.view:
            self._rebroadcast_view = height.view
            self._rebroadcast_ms = REBROADCAST_MS
            self._set_timer(TimerKind.REBROADCAST, REBROADCAST_MS)
        # An idle network stays silent: a view is timed once there is something to decide.
        is_notarized = any(kind == "notarize" for _, kind in height.certificates)
        is_busy = self._is_waiting or is_notarized or height.heard_view >= height.view
        if is_busy and self._armed_view != height.view:
            self._armed_view = height.view
            is_silent = height.proposer(height.view) in self._silent
            self._set_timer(TimerKind.VIEW, 0 if is_silent else compute_view_ms(height.view))

    def _set_timer(self, kind: TimerKind, delay_ms: int) -> None:
        timer = Timer(kind=kind, height=self._height.height, view=self._height.view)
        self._out.others.append(SetTimer(timer=timer, delay_ms=delay_ms))
