"""Events: what a client's server is told about its jobs. Thin: names and states, never a text.

The payload is canonical JSON of a few hundred bytes. An event's message id is the same for every
attempt to deliver it, and for every webhook that hears it: receivers know repetitions by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Literal, get_args

from ledger.encoding import encode
from ledger.jobs import format_job_id, format_ulid

EventType = Literal["job.completed", "job.failed", "job.cancelled", "receipt.final"]
EVENT_TYPES: tuple[EventType, ...] = get_args(EventType)
_CACHED_SECONDS = 1024
"""What is told now happened in few different seconds."""
PING = "webhook.ping"
"""The type of the test event, which every webhook hears."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that has happened, as it is sent."""

    type: str
    message_id: str
    """Letters, digits and `_` only: it is signed together with a time, and a dot is between."""
    payload: bytes


def format_time(time_ms: int) -> str:
    """Return RFC 3339 in UTC, such as `2026-01-31T12:00:00.000Z`."""
    seconds, millis = divmod(time_ms, 1000)
    return f"{_format_second(seconds)}.{millis:03d}Z"


@lru_cache(maxsize=_CACHED_SECONDS)
def _format_second(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}"


def build_job_event(
    kind: EventType, job_id: bytes, *, reason: str, at_ms: int, **place: str | int
) -> Event:
    """Return an event of a job; `place` says where its receipt is, if it has one."""
    status = "completed" if kind == "receipt.final" else kind.removeprefix("job.")
    data = {"job_id": format_job_id(job_id), "status": status, "status_reason": reason, **place}
    message_id = f"msg_{format_ulid(job_id)}_{kind.rpartition('.')[2]}"
    return _build(kind, message_id, at_ms, data)


def build_ping(name: bytes, webhook: str, *, at_ms: int) -> Event:
    """Return the test event of a webhook; `name` is a ULID of its own."""
    return _build(PING, f"msg_{format_ulid(name)}_ping", at_ms, {"webhook": webhook})


def _build(kind: str, message_id: str, at_ms: int, data: dict[str, str | int]) -> Event:
    payload = encode({"type": kind, "timestamp": format_time(at_ms), "data": data})
    return Event(type=kind, message_id=message_id, payload=payload)
