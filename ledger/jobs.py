"""Jobs: the life of an order on one coordinator, from submission to the facts of its receipt.

    submit -> pending -> running -> completed (one receipt)
                 |          |-> pending     lease lost, released, retryable failure
                 |          |-> failed      third attempt, hard failure
                 |-> failed                 queued too long
    pending, running -> cancelled

Pure rules: who may do what in which state, and which miner fits which job. The clock and all random
bytes are arguments. The coordinator stores what is decided here; what the receipt of a completed
job says is decided in `metering.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import msgspec

from ledger.errors import MarketError
from ledger.transaction import Signature

JobState = Literal["cancelled", "completed", "failed", "pending", "running"]
KeyRole = Literal["admin", "client", "miner"]
UnitType = Literal["gpu_seconds", "tokens"]
FinishReason = Literal["length", "stop"]

ENDED: frozenset[JobState] = frozenset({"cancelled", "completed", "failed"})
"""States that a job never leaves."""

MAX_ATTEMPTS = 3
JOB_ID_BYTES = 16

# A miner that lists only words like these, and no model, takes any model.
GENERIC_CAPABILITIES = frozenset(
    {"ai", "compute", "cpu", "cuda", "gpu", "inference", "llm", "text", "text-generation"}
)

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_ULID_SHIFTS = range(125, -1, -5)
_ULID = re.compile(f"[0-7][{_CROCKFORD}]{{25}}")
_TO_BASE_32 = str.maketrans(_CROCKFORD, "0123456789abcdefghijklmnopqrstuv")
"""From the digits of a ULID to those that `int` reads."""
_CACHED_ULIDS = 4096
"""The id of a job is written and read about ten times while the job lives."""


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Who makes a request, as far as an API key tells."""

    key: str
    """Prefix of the API key; empty for a caller without one."""
    client: str
    """Name under which this caller's receipts are written."""
    role: KeyRole | None
    """None without a key."""

    @property
    def is_admin(self) -> bool:
        """Admins see and do everything."""
        return self.role == "admin"


class JobOrder(msgspec.Struct, frozen=True, kw_only=True):
    """What a client asks for, validated."""

    prompt: str
    model: str
    max_tokens: int
    temperature_micros: int
    top_p_micros: int
    seed: int | None = None
    """None lets the coordinator draw one."""
    stop: tuple[str, ...] = ()


class Prices(msgspec.Struct, frozen=True, kw_only=True):
    """Unit prices in micros, frozen into a job when it is submitted."""

    tokens: int
    gpu_seconds: int


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One job with everything its coordinator knows about it. Private."""

    id: bytes
    state: JobState
    status_reason: str
    client: str
    owner: str
    """Prefix of the API key that submitted it."""
    order: JobOrder
    seed: int
    prompt_salt: bytes
    result_salt: bytes
    prices: Prices
    created_at_ms: int
    started_at_ms: int | None = None
    completed_at_ms: int | None = None
    attempt: int = 0
    miner_id: str | None = None
    provider: str | None = None
    """Whom the receipt of this attempt names: that miner's account, or its name without a key."""
    claimed_by: str | None = None
    """Prefix of the API key under which that miner works; empty without one."""
    lease_expires_at_ms: int | None = None
    """Set while running."""
    heartbeat: bool = False
    """Whether the miner renews its lease by heartbeats."""
    excluded_miner: str | None = None
    """Lost the last attempt, so it is offered this job last."""
    result: str | None = None
    error: str | None = None
    """Why the last miner gave up, in its words. As private as the result."""
    output_token_ids: bytes | None = None
    """Of the result, as its digest covers them: 4 bytes each, little-endian. As private as it."""
    receipt_id: str | None = None
    finish_reason: FinishReason | None = None
    """Why the answer ended, in its miner's words: at max_tokens, or by itself."""
    texts_purged_at_ms: int | None = None
    """When its texts were removed; then the prompt is empty and there is no result."""

    @property
    def job_id(self) -> str:
        """The id as the API spells it."""
        return format_job_id(self.id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Miner:
    """A registered miner."""

    miner_id: str
    account: str | None
    """None for a miner without a key: its receipts carry the coordinator's signature only."""
    capabilities: tuple[str, ...]
    gpu_name: str | None
    gpu_memory: str | None
    owner: str
    """Prefix of the API key that registered it; empty without one."""
    registered_at_ms: int
    last_seen_at_ms: int
    draining: bool = False
    """It finishes what it runs and gets no more, until it registers again."""
    audits: bool = False
    """Whether it replays answers of other miners."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MinerStanding:
    """A miner as others see it."""

    miner: Miner
    active: bool
    """Whether it was heard of lately."""
    running: int
    """Jobs that it runs now, counted to a thousand."""
    completed: int = 0
    """Attempts of its that ended with a result."""
    lost: int = 0
    """Attempts that ended without one: failed, given back, or their lease ran out."""


class Submission(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a request to submit jobs."""

    jobs: tuple[Job, ...]
    """In the order of the request."""
    is_replay: bool = False
    """Whether an earlier request with the same Idempotency-Key made them."""
    queue: Queue | None = None
    """Where the job stands, if it is a new one and the only one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """A model that active miners name."""

    name: str
    """As `normalize_model` writes it."""
    miners: int
    since_ms: int
    """When the first of them registered."""


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """A miner's hold on a job."""

    attempt: int
    expires_at_ms: int
    expires_in_ms: int
    run_ends_in_ms: int
    """Until the attempt is over, however many heartbeats come."""
    heartbeat_interval_ms: int
    """0 where the lease is as long as the job may run, and no heartbeats are expected."""


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """What a miner gets when it claims a job."""

    job: Job
    lease: Lease
    terms: Mapping[str, object]
    """Every receipt field that the coordinator fixes; the miner adds what it measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a job is."""

    job: Job
    text: str
    """Of a running job, what its miner has told of this attempt; of a completed one, the result."""


class Queue(msgspec.Struct, frozen=True, kw_only=True):
    """Where a pending job stands."""

    position: int
    """1 is next; a long queue is counted to about a thousand."""
    eligible_miners: int
    """Active miners that could serve it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """A miner's own description of itself."""

    miner_id: str
    capabilities: tuple[str, ...]
    gpu_name: str | None = None
    gpu_memory: str | None = None
    account: str | None = None
    proof: str | None = None
    """Signature by `account` over `build_registration_message`."""
    audits: bool = False
    """Whether it is willing to replay answers of other miners."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a miner says it did. Everything but the result may be missing."""

    miner_id: str
    result: str
    completed_at_ms: int | None = None
    unit_type: UnitType | None = None
    units_micros: int | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    output_token_ids: tuple[int, ...] | None = None
    model_digest: str = ""
    sampler: str = ""
    finish_reason: FinishReason | None = None
    """For whoever asked; no part of the receipt."""
    signature: Signature | None = None


def build_job_id(*, now_ms: int, entropy: bytes) -> bytes:
    """Return a ULID as 16 bytes: 48 bits of time, 80 random bits (10 bytes of `entropy`)."""
    return now_ms.to_bytes(6, "big") + entropy[:10]


def format_job_id(job_id: bytes) -> str:
    """Return `job_` and the ULID in Crockford's base32."""
    return "job_" + format_ulid(job_id)


def parse_job_id(text: str) -> bytes | None:
    """Return the 16 bytes of a job id, or None if `text` is not one."""
    return parse_ulid(text.removeprefix("job_")) if text.startswith("job_") else None


@lru_cache(maxsize=_CACHED_ULIDS)
def format_ulid(name: bytes) -> str:
    """Return 16 bytes as a ULID in Crockford's base32."""
    number = int.from_bytes(name, "big")
    return "".join([_CROCKFORD[(number >> shift) & 31] for shift in _ULID_SHIFTS])


@lru_cache(maxsize=_CACHED_ULIDS)
def parse_ulid(digits: str) -> bytes | None:
    """Return the 16 bytes of a ULID, or None if `digits` is not one."""
    if not _ULID.fullmatch(digits):
        return None
    return int(digits.translate(_TO_BASE_32), 32).to_bytes(JOB_ID_BYTES, "big")


def build_registration_message(*, genesis_hash: bytes, miner_id: str, account: str) -> bytes:
    """Return what a miner signs to show that it holds the key it registers."""
    return f"aitbc/miner-registration/v1\n{genesis_hash.hex()}\n{miner_id}\n{account}\n".encode()


def normalize_model(model: str) -> str:
    """Return the form under which models are matched: lower case, `:latest` is no tag."""
    return model.strip().lower().removesuffix(":latest")


def list_served_models(capabilities: Sequence[str]) -> frozenset[str] | None:
    """Return the normalized models that these capabilities name, or None for any model."""
    words = {word.strip().lower() for word in capabilities}
    models = {normalize_model(word.removeprefix("model:")) for word in words}
    if "*" in models:
        return None
    named = models - GENERIC_CAPABILITIES
    return frozenset(named) if named or not models else None


def check_claimable(job: Job, miner_id: str) -> None:
    """Raise unless `miner_id` may take `job`. A miner that holds it already may again."""
    if job.state == "pending" or (job.state == "running" and job.miner_id == miner_id):
        return
    raise _state_error(job, otherwise="JOB_ALREADY_CLAIMED")


def check_not_draining(miner: Miner) -> None:
    """Raise if `miner` takes no new jobs."""
    if miner.draining:
        raise MarketError(
            "MINER_DRAINING", f"miner {miner.miner_id} is draining; it takes jobs once registered"
        )


def check_held(job: Job, miner_id: str) -> None:
    """Raise unless `miner_id` runs `job` now."""
    if job.state == "running" and job.miner_id == miner_id:
        return
    raise _state_error(job, otherwise="JOB_LEASE_LOST")


def check_completable(job: Job, miner_id: str) -> None:
    """Raise unless `miner_id` may still deliver `job`.

    A lease that ran out does not matter as long as nobody else claimed the job since.
    """
    requeued = job.state == "pending" and job.excluded_miner == miner_id
    if requeued or (job.state == "running" and job.miner_id == miner_id):
        return
    raise _state_error(job, otherwise="JOB_LEASE_LOST")


def check_cancellable(job: Job) -> None:
    """Raise if `job` has ended otherwise. A cancelled job may be cancelled again."""
    if job.state in {"completed", "failed"}:
        raise _state_error(job, otherwise="JOB_ALREADY_COMPLETED")


def _state_error(job: Job, *, otherwise: str) -> MarketError:
    codes = {
        "cancelled": "JOB_ALREADY_CANCELLED",
        "completed": "JOB_ALREADY_COMPLETED",
        "failed": "JOB_ALREADY_COMPLETED",
    }
    holder = f", held by miner {job.miner_id}" if job.state == "running" else ""
    return MarketError(codes.get(job.state, otherwise), f"job {job.job_id} is {job.state}{holder}")
