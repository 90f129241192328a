"""What goes into the engine and what comes out: events, effects, and the one thing it asks.

The shell owns the clock, the sockets, the database and the mempool. It hands `Engine.step` one
event after another and executes the returned effects **in order**, each finished before the next.
`Persist` always comes first: durability before speech. If it fails, the process must stop without
executing the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from consensus.messages import Message
from ledger.block import Block, Certificate, Tip
from ledger.errors import LedgerError
from ledger.vote import Vote, VoteRecord


class BlockValidator(Protocol):
    """Decides whether a block extends the tip. Held by the shell, since it reads the tree."""

    def validate(self, block: Block, tip: Tip, *, is_fresh: bool) -> None:
        """Check a block completely, apart from its certificate.

        `is_fresh` asks to hold its time against the clock as well; a block that a quorum has
        notarized is never judged by the clock again.

        Raises:
            LedgerError: the block is not valid.
        """


class TimerKind(Enum):
    """What a timer is for."""

    VIEW = "view"
    """The view has lasted too long: nullify it."""
    REBROADCAST = "rebroadcast"
    """Something said at this height may have been lost: say it again."""
    HEARTBEAT = "heartbeat"
    """Tell the others which height is open here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timer:
    """Names a timer. One of an old height or view may still fire; the engine ignores it."""

    kind: TimerKind
    height: int
    view: int


# Events


@dataclass(frozen=True, slots=True, kw_only=True)
class HeightOpened:
    """A tip is final and durable: at start-up, after `Commit`, after a sync."""

    tip: Tip
    record: VoteRecord
    """Whatever `votes.db` holds for the next height. Never leave out what it holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TransactionsWaiting:
    """The mempool can fill a block. To be said again after each `HeightOpened` while it can."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockBuilt:
    """The answer to `BuildBlock`. No answer is an answer too: the mempool was empty."""

    block: Block


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageReceived:
    """A parsed message, of whatever sender."""

    message: Message


@dataclass(frozen=True, slots=True, kw_only=True)
class TimerFired:
    """The delay of a `SetTimer` is over."""

    timer: Timer


@dataclass(frozen=True, slots=True, kw_only=True)
class MembersSilent:
    """These members were not heard of for a while, though a quorum was: do not wait for them."""

    members: frozenset[int]
    """Indexes into the authority set; replaces what was said before."""


Event = (
    HeightOpened | TransactionsWaiting | BlockBuilt | MessageReceived | TimerFired | MembersSilent
)


# Effects


@dataclass(frozen=True, slots=True, kw_only=True)
class Persist:
    """Add `record` to `votes.db` in one transaction, and have it on disk before going on."""

    record: VoteRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Send:
    """Send to every other member. May be lost; the engine says it again."""

    message: Message


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildBlock:
    """Fill a block on `tip` from the mempool and answer `BlockBuilt`. May be asked again."""

    tip: Tip
    view: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SetTimer:
    """Start a timer, in place of a running one of the same kind."""

    timer: Timer
    delay_ms: int
    """The shell may add jitter to a rebroadcast, never to a view."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """The block is final: apply both to the ledger in one transaction, then `HeightOpened`."""

    block: Block
    certificate: Certificate


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchBlocks:
    """Others have decided heights up to `height`: fetch, verify and apply them, best effort."""

    height: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferBlock:
    """The sender of the message just received still decides `height`: send it that block."""

    height: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockRefused:
    """A proposed block is not valid, and whose fault that is: a proposer's, or a bug of ours."""

    block_hash: str
    error: LedgerError


@dataclass(frozen=True, slots=True, kw_only=True)
class Contradiction:
    """A member signed two votes that no honest member signs both. Evidence, by itself."""

    first: Vote
    second: Vote


Effect = (
    Persist
    | Send
    | BuildBlock
    | SetTimer
    | Commit
    | FetchBlocks
    | OfferBlock
    | BlockRefused
    | Contradiction
)
