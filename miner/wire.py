"""What a node's answers hold, as far as a miner reads them. Unknown fields are ignored."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from ledger.encoding import Hex32

MAX_PROMPT_CHARACTERS = 4 << 20
MAX_STOP_SEQUENCES = 64

Milliseconds = Annotated[int, msgspec.Meta(ge=1, le=86_400_000)]
Text = Annotated[str, msgspec.Meta(max_length=MAX_PROMPT_CHARACTERS)]
Identifier = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_.:@-]{1,128}\Z")]


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of /health."""

    genesis: Hex32


class JobParams(msgspec.Struct, frozen=True, kw_only=True):
    """The part of a job's params that its receipt does not hold."""

    stop: str | Annotated[tuple[str, ...], msgspec.Meta(max_length=MAX_STOP_SEQUENCES)] | None = (
        None
    )

    @property
    def stop_sequences(self) -> tuple[str, ...]:
        """One or many, as a tuple."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else self.stop


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A job as offered: its prompt and params are nobody's business but who claims it."""

    job_id: Identifier
    model: str


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """For how long the job is ours."""

    heartbeat_interval_ms: Milliseconds
    run_ends_in_ms: Annotated[int, msgspec.Meta(ge=0)] | None = None
    """Until the attempt is over, however many heartbeats come; None if the node does not say."""


class TextAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to a piece of text."""

    received: Annotated[int, msgspec.Meta(ge=0)]


class UnitPrices(msgspec.Struct, frozen=True, kw_only=True):
    """Price of one unit in micros."""

    tokens: Annotated[int, msgspec.Meta(ge=0, le=10**12)]


class WorkOrder(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a receipt needs that the coordinator decides."""

    prompt_salt: str
    result_salt: str
    unit_prices_micros: UnitPrices
    receipt: dict[str, Any]
    """The receipt payload's fields that are fixed already."""


class ClaimedJob(Job, frozen=True, kw_only=True):
    """A job that is now ours."""

    prompt: Text
    params: JobParams = JobParams()
    lease: Lease
    work_order: WorkOrder


class ErrorAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A refusal."""

    detail: str = ""
    error_code: Annotated[str, msgspec.Meta(pattern=r"^[A-Z0-9_]{0,64}\Z")] = ""
