"""A job's events as a stream: its state, its text while it grows, its receipt.

The state of a stream is the client's position (position.py), so a stream that breaks off goes on
anywhere: what comes next follows from the position and from the job as it is then.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Mapping

import msgspec

from api.access import ApiMode, may_read
from api.answers import BEAT, UNBUFFERED, Answer, Stream
from api.following import BEAT_S
from api.jobs import parse_job
from api.ports import JobWatch, Market
from api.position import Position, TextMark, parse_position
from api.render import Json, render_job, render_receipt
from api.requests import Request
from api.resource import ApiSettings, Operation
from api.waiting import Places
from ledger.jobs import ENDED, Caller, Job, Progress, Queue
from ledger.views import ReceiptView

RETRY = b"retry: 1000\n\n"
"""Milliseconds until a client comes back to a stream that broke off."""
FINALITY_WAIT_S = 600.0
"""How long a stream stays for a receipt that does not become final."""
MAX_TOKEN_CHARS = 8 << 10
"""Of the text in one event, which each reader that is slow has in memory, and which all who follow
one job are given in one turn of the event loop."""

_TEXTS = frozenset({"prompt", "result"})


class EventEndpoints:
    """`/v1/jobs/{job_id}/events`."""

    def __init__(self, market: Market, settings: ApiSettings, places: Places) -> None:
        self._market = market
        self._mode = settings.mode
        self._places = places
        self._glance = _Glance(market)

    def paths(self) -> Mapping[str, Mapping[str, Operation]]:
        """Return the operations by path."""
        return {"/v1/jobs/{job_id}/events": {"GET": Operation(handler=self.follow)}}

    async def follow(self, request: Request) -> Answer | Stream:
        """`GET /v1/jobs/{job_id}/events`; 204 tells a client that it has seen the last one."""
        job = self._market.job(parse_job(request))
        position = parse_position(request.last_event_id)
        if position.is_end_of(job):
            return Answer(status=204)
        free = self._places.take(request.caller, request.payer)
        last_token = self._glance.last_token
        reader = EventReader(
            job, position, caller=request.caller, mode=self._mode, last_token=last_token
        )
        pieces = self._pieces(job.job_id, reader)
        return Stream(pieces=pieces, headers=(UNBUFFERED,), ended=free)

    async def _pieces(self, job_id: str, reader: EventReader) -> AsyncGenerator[bytes, None]:
        pulse = Pulse()
        yield RETRY
        with self._market.watch(job_id, text=False) as watch:
            while True:
                for piece in pulse.count(self._read_job(job_id, reader, watch)):
                    yield piece
                if reader.has_ended:
                    break
                if not await watch.wait(pulse.left_s):
                    return
        receipt_id = self._market.job(job_id).receipt_id
        if receipt_id is None:
            return
        pulse.end_after(FINALITY_WAIT_S)
        with self._market.watch_blocks() as watch:
            while not reader.is_final:
                receipt = self._market.receipt(receipt_id)
                for piece in pulse.count(reader.read_receipt(receipt)):
                    yield piece
                if reader.is_final or pulse.is_over or not await watch.wait(pulse.left_s):
                    return

    def _read_job(self, job_id: str, reader: EventReader, watch: JobWatch) -> Iterator[bytes]:
        # Nothing of this is held while the stream waits: the texts may be long, and streams many.
        progress = self._glance.read(job_id)
        # Streams of those who get no text must cost its miner nothing with each piece.
        watch.wants_text = reader.may_get_text(progress.job)
        is_waiting = progress.job.state == "pending"
        queue = self._market.queue(progress.job) if is_waiting else None
        yield from reader.read_job(progress, queue)


class LastToken:
    """The event of text that was made last: who follows the same job is mostly told the same."""

    def __init__(self) -> None:
        self._made: tuple[object, bytes, TextMark] | None = None

    def recall(self, key: object) -> tuple[bytes, TextMark] | None:
        """Return the event and the mark behind it, if it was made from this `key`."""
        return self._made[1:] if self._made is not None and self._made[0] == key else None

    def remember(self, key: object, event: bytes, mark: TextMark) -> None:
        """Keep an event and the mark behind it. `key` is all of what it was made from."""
        self._made = key, event, mark

    def forget(self) -> None:
        """Hold nobody's text any more."""
        self._made = None


class _Glance:
    """How far a job is, read once for all of its followers that are woken in one turn of the loop.

    They are woken one after another, so it holds one job, and no longer than the turn: texts may be
    long. News that came after the read wakes everybody again, in a later turn.
    """

    def __init__(self, market: Market) -> None:
        self._market = market
        self._known: tuple[str, Progress] | None = None
        self.last_token = LastToken()
        """What the followers share, as long as the progress."""

    def read(self, job_id: str) -> Progress:
        """Return the progress of a job. Raises MarketError JOB_NOT_FOUND."""
        if self._known is None or self._known[0] != job_id:
            if self._known is None:
                asyncio.get_running_loop().call_soon(self._forget)
            self._known = job_id, self._market.progress(job_id)
        return self._known[1]

    def _forget(self) -> None:
        self._known = None
        self.last_token.forget()


class EventReader:
    """One client of a job's events: what it has, and what is new to it."""

    def __init__(
        self,
        job: Job,
        position: Position,
        *,
        caller: Caller,
        mode: ApiMode,
        last_token: LastToken | None = None,
    ) -> None:
        self._job_id = job.job_id
        self._last_token = last_token or LastToken()
        self._caller = caller
        self._mode = mode
        self._attempt = position.attempt
        self._state = position.state
        self._salt = job.result_salt
        self._mark = TextMark(job.result_salt, position)
        self._is_proved = position.chars == 0
        """Whether the marked text is known to be the beginning of the attempt's."""
        self._receipt = position.receipt

    def may_get_text(self, job: Job) -> bool:
        """Tell whether this caller reads the text of a job as it is now."""
        return may_read(self._caller, job, mode=self._mode)

    @property
    def has_ended(self) -> bool:
        """Whether the job had ended when it was read last."""
        return self._state in ENDED

    @property
    def is_final(self) -> bool:
        """Whether the final receipt was sent."""
        return self._receipt == "final"

    def read_job(self, progress: Progress, queue: Queue | None) -> Iterator[bytes]:
        """Yield what is new of a job: a new attempt before its text, the end after the text."""
        job = progress.job
        is_readable = self.may_get_text(job)
        is_new = (self._attempt, self._state) != (job.attempt, job.state)
        if self._attempt != job.attempt:
            self._attempt = job.attempt
            self._mark, self._is_proved = TextMark(self._salt), True
        if job.state == "completed":
            if is_readable and job.result is not None:
                self._is_proved = False  # the result counts, not what was told of it
                yield from self._read_text(job.result)
        elif is_new:
            yield self._read_status(job, queue, is_readable=is_readable)
        if job.state == "running" and is_readable and len(progress.text) >= self._mark.chars:
            yield from self._read_text(progress.text)
        if job.state == "completed" and is_new:
            yield self._read_status(job, queue, is_readable=is_readable)

    def _read_status(self, job: Job, queue: Queue | None, *, is_readable: bool) -> bytes:
        self._state = job.state
        shown = render_job(job, readable=is_readable, queue=queue)
        # The prompt is the client's own, and the result comes as text.
        return self._event("status", {k: v for k, v in shown.items() if k not in _TEXTS})

    def _read_text(self, text: str) -> Iterator[bytes]:
        if not self._is_proved:
            found = self._mark.find(text)
            self._is_proved, self._mark = found is not None, found or self._mark
        is_reset = not self._is_proved
        if is_reset:
            self._mark, self._is_proved = TextMark(self._salt), True
        while is_reset or len(text) > self._mark.chars:
            offset = self._mark.chars
            yield self._read_token(text[offset : offset + MAX_TOKEN_CHARS], is_reset=is_reset)
            is_reset = False

    def _read_token(self, piece: str, *, is_reset: bool) -> bytes:
        attempt, state, mark = self._attempt, self._state, self._mark
        place = mark.chars, mark.digest, self._receipt
        key = self._job_id, attempt, state, place, piece, is_reset
        known = self._last_token.recall(key)
        if known is not None:
            event, self._mark = known
            return event
        told: Json = {"attempt": attempt, "offset": mark.chars, "text": piece}
        self._mark = mark.beyond(piece)
        event = self._event("token", told | ({"reset": True} if is_reset else {}))
        self._last_token.remember(key, event, self._mark)
        return event

    def read_receipt(self, receipt: ReceiptView | None) -> Iterator[bytes]:
        """Yield the receipt if it is another than the client has."""
        if receipt is not None and receipt.transaction.finality != self._receipt:
            self._receipt = receipt.transaction.finality
            yield self._event("receipt", render_receipt(receipt))

    def _event(self, name: str, data: Json) -> bytes:
        position = Position(
            attempt=self._attempt,
            state=self._state,
            chars=self._mark.chars,
            digest=self._mark.digest,
            receipt=self._receipt,
        )
        return b"event: %s\nid: %s\ndata: %s\n\n" % (
            name.encode(),
            str(position).encode(),
            msgspec.json.encode(data),
        )


class Pulse:
    """When a stream must give a sign of life, and when it has waited long enough."""

    def __init__(self) -> None:
        self._now = asyncio.get_running_loop().time
        self._said_at = self._now()
        self._ends_at = float("inf")

    def end_after(self, seconds: float) -> None:
        """Be over in so many seconds from now."""
        self._ends_at = self._now() + seconds

    @property
    def is_over(self) -> bool:
        """Whether it is over."""
        return self._now() >= self._ends_at

    @property
    def left_s(self) -> float:
        """How long nothing need be said."""
        now = self._now()
        return max(min(self._said_at + BEAT_S, self._ends_at) - now, 0)

    def count(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        """Yield the pieces, or a sign of life if there is none and it is time for one."""
        said = False
        for piece in pieces:
            said = True
            yield piece
        if not said and self._now() >= self._said_at + BEAT_S:
            said = True
            yield BEAT
        if said:
            self._said_at = self._now()
