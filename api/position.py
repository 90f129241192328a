"""Positions: how much of a job's events a client has, in one short word.

    attempt.state.chars.digest.receipt      1.running.118.5f3a9c0e81d2b746.none

The id of every event is the position after it. It names no place in a log, so it means the same
after a restart of the node and on a stream that nobody has served yet. The digest tells whether the
text that the client has is the beginning of the one that there is now.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, cast

from blake3 import blake3

from ledger.jobs import ENDED, Job, JobState

POSITION_DOMAIN = b"aitbc/position/v1\n"
DIGEST_BYTES = 8

ReceiptStage = Literal["none", "pending", "final"]

_POSITION = re.compile(
    r"([0-9]{1,9})\.(new|pending|running|completed|failed|cancelled)"
    r"\.([0-9]{1,9})\.([0-9a-f]{16})\.(none|pending|final)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """What a client has seen of a job."""

    attempt: int = 0
    state: JobState | Literal["new"] = "new"
    """Of the last status; `new` before the first."""
    chars: int = 0
    """Unicode code points of the attempt's text."""
    digest: str = "0" * 2 * DIGEST_BYTES
    """Of that text; zeros where there is none."""
    receipt: ReceiptStage = "none"

    def __str__(self) -> str:
        """Return the id of the event that leads here."""
        return f"{self.attempt}.{self.state}.{self.chars}.{self.digest}.{self.receipt}"

    def is_end_of(self, job: Job) -> bool:
        """Tell whether nothing can follow."""
        is_over = self.state != "completed" or self.receipt == "final"
        return is_over and self.state in ENDED and self.state == job.state


START = Position()


def parse_position(text: str | None) -> Position:
    """Return the position that an event's id names; START for none, and for what is none."""
    match = _POSITION.fullmatch(text or "")
    if match is None:
        return START
    attempt, state, chars, digest, receipt = match.groups()
    return Position(
        attempt=int(attempt),
        state=cast("JobState", state),
        chars=int(chars),
        digest=digest,
        receipt=cast("ReceiptStage", receipt),
    )


class TextMark:
    """How far into a text a client is, with a digest that tells nothing to who lacks the salt.

    A mark never changes, so clients at the same place may share one.
    """

    __slots__ = ("_hasher", "_salt", "chars", "digest")

    def __init__(
        self, salt: bytes, position: Position = START, *, hasher: blake3 | None = None
    ) -> None:
        """`hasher`: has taken the text before; None: the mark is found in a text first."""
        self._salt = salt
        self._hasher = hasher or blake3(POSITION_DOMAIN + salt)
        self.chars = position.chars
        self.digest = position.digest if position.chars else START.digest

    def beyond(self, piece: str) -> TextMark:
        """Return the mark behind a piece of text that follows."""
        hasher = self._hasher.copy()
        hasher.update(piece.encode())
        chars, digest = self.chars + len(piece), hasher.hexdigest(DIGEST_BYTES)
        return TextMark(self._salt, Position(chars=chars, digest=digest), hasher=hasher)

    def find(self, text: str) -> TextMark | None:
        """Return this mark in a text, from where `beyond` may go on; None if it is not there."""
        if len(text) < self.chars:
            return None
        found = TextMark(self._salt)
        if self.chars:
            found = found.beyond(text[: self.chars])
        return found if found.digest == self.digest else None
