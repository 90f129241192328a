"""A job's event stream as a client reads it: connect, read, come back where it broke off.

The node need not be trusted: an event is bounded, and nothing is waited for beyond the time given.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from api.following import BEAT_S
from node.restclient import RequestFailedError, RestClient

MAX_EVENT_BYTES = 4 << 20
SILENCE_S = 3 * BEAT_S
"""A stream that is silent for so long is dead."""
RETRY_S = 1.0
_TOO_MANY_REQUESTS = 429
_SERVER_ERROR = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEvent:
    """One event of a job: `status`, `token` or `receipt` with its JSON."""

    name: str
    id: str
    data: dict[str, Any]


def follow_job(
    client: RestClient,
    job_id: str,
    *,
    timeout_s: float,
    now: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[JobEvent]:
    """Yield a job's events to the end, over as many connections as it takes.

    Raises:
        RequestFailedError: the node refuses, or the job goes on after `timeout_s`.
    """
    deadline = now() + timeout_s
    position, state = "", "unknown"
    while True:
        try:
            silence_s = min(SILENCE_S, max(deadline - now(), RETRY_S))
            with client.stream_events(job_id, position, silence_s=silence_s) as chunks:
                if chunks is None:
                    return
                for event in parse_events(chunks):
                    if event is not None:
                        position = event.id
                        if event.name == "status":
                            state = event.data.get("status", state)
                        yield event
                    # Another comment could come too late: ask anew, for a shorter time.
                    if now() + (BEAT_S if event is None else 0) >= deadline:
                        break
        except RequestFailedError as error:
            if not _may_try_again(error):
                raise
        if now() >= deadline:
            raise RequestFailedError(
                f"job {job_id} is still {state} after {timeout_s:.0f} s; "
                "it is not lost, ask for it later"
            )
        sleep(min(RETRY_S, deadline - now()))


def _may_try_again(error: RequestFailedError) -> bool:
    status = error.status
    return status is None or status == _TOO_MANY_REQUESTS or status >= _SERVER_ERROR


def parse_events(chunks: Iterable[bytes]) -> Iterator[JobEvent | None]:
    """Yield whole events from the bytes of a stream, None for a sign of life.

    Raises:
        RequestFailedError: it is none.
    """
    rest = b""
    for chunk in chunks:
        *blocks, rest = (rest + chunk).split(b"\n\n")
        for block in blocks:
            if block.startswith(b":"):
                yield None
            elif (event := _parse_event(block)) is not None:
                yield event
        if len(rest) > MAX_EVENT_BYTES:
            raise RequestFailedError(f"an event has more than {MAX_EVENT_BYTES} bytes", status=0)


def _parse_event(block: bytes) -> JobEvent | None:
    fields = dict(line.split(b": ", 1) for line in block.split(b"\n") if b": " in line)
    if b"event" not in fields:
        return None
    try:
        return JobEvent(
            name=fields[b"event"].decode(),
            id=fields[b"id"].decode("ascii"),
            data=msgspec.json.decode(fields[b"data"], type=dict[str, Any]),
        )
    except (KeyError, ValueError, RecursionError) as error:
        raise RequestFailedError("the node's event stream makes no sense", status=0) from error
