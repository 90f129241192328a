"""Jobs: the life of an order on one coordinator, from submission to the facts of its receipt.

    submit -> pending -> running -> completed (one receipt)
                 |          |-> pending     lease lost, released, retryable failure
                 |          |-> failed      third attempt, hard failure
                 |-> failed                 queued too long
    pending, running -> cancelled

Pure rules: who may do what in which state, which miner fits which job, and what the receipt says.
The clock and all random bytes are arguments. The coordinator stores what is decided here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from ledger.encoding import encode_base64url
from ledger.errors import MarketError
from ledger.hashing import build_receipt_id, hash_text, hash_tokens
from ledger.transaction import MICROS, ReceiptPayload, Signature

JobState = Literal["cancelled", "completed", "failed", "pending", "running"]
KeyRole = Literal["admin", "client", "miner"]
UnitType = Literal["gpu_seconds", "tokens"]

MAX_ATTEMPTS = 3
TEMPLATE_TOKENS = 256
"""Tokens that a model's chat template may add to a prompt."""
SPECIAL_TOKENS = 16
"""Output tokens that may leave no byte of text."""
CLOCK_TOLERANCE_MS = 2_000
JOB_ID_BYTES = 16

# A miner that lists only words like these, and no model, takes any model.
GENERIC_CAPABILITIES = frozenset(
    {"ai", "compute", "cpu", "cuda", "gpu", "inference", "llm", "text", "text-generation"}
)

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_ULID_LENGTH = 26


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOrder:
    """What a client asks for, validated."""

    prompt: str
    model: str
    max_tokens: int
    temperature_micros: int
    top_p_micros: int
    seed: int | None = None
    """None lets the coordinator draw one."""
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """Unit prices in micros, frozen into a job when it is submitted."""

    tokens: int
    gpu_seconds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
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
    receipt_id: str | None = None

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """A miner's hold on a job."""

    attempt: int
    expires_at_ms: int
    expires_in_ms: int
    heartbeat_interval_ms: int
    """0 where the lease is as long as the job may run, and no heartbeats are expected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What a miner gets when it claims a job."""

    job: Job
    lease: Lease
    terms: Mapping[str, object]
    """Every receipt field that the coordinator fixes; the miner adds what it measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
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
    signature: Signature | None = None


def build_job_id(*, now_ms: int, entropy: bytes) -> bytes:
    """Return a ULID as 16 bytes: 48 bits of time, 80 random bits (10 bytes of `entropy`)."""
    return now_ms.to_bytes(6, "big") + entropy[:10]


def format_job_id(job_id: bytes) -> str:
    """Return `job_` and the ULID in Crockford's base32."""
    number = int.from_bytes(job_id, "big")
    digits = [_CROCKFORD[(number >> 5 * i) & 31] for i in reversed(range(_ULID_LENGTH))]
    return "job_" + "".join(digits)


def parse_job_id(text: str) -> bytes | None:
    """Return the 16 bytes of a job id, or None if `text` is not one."""
    digits = text.removeprefix("job_")
    if len(text) != len("job_") + _ULID_LENGTH or len(digits) != _ULID_LENGTH:
        return None
    number = 0
    for digit in digits:
        value = _CROCKFORD.find(digit)
        if value < 0:
            return None
        number = number << 5 | value
    return number.to_bytes(JOB_ID_BYTES, "big") if number < 1 << 8 * JOB_ID_BYTES else None


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


def serves_model(capabilities: Sequence[str], model: str) -> bool:
    """Tell whether a miner with these capabilities takes jobs for `model`."""
    served = list_served_models(capabilities)
    return served is None or normalize_model(model) in served


def check_claimable(job: Job, miner_id: str) -> None:
    """Raise unless `miner_id` may take `job`. A miner that holds it already may again."""
    if job.state == "pending" or (job.state == "running" and job.miner_id == miner_id):
        return
    raise _state_error(job, otherwise="JOB_ALREADY_CLAIMED")


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


def build_terms(
    job: Job, *, provider: str, coordinator: str, genesis_hash: bytes
) -> dict[str, object]:
    """Return the receipt fields that are fixed when a job is claimed."""
    assert job.started_at_ms is not None, "only a claimed job has terms"
    genesis = genesis_hash.hex()
    return {
        "v": 1,
        "type": "receipt",
        "genesis": genesis,
        "receipt_id": build_receipt_id(genesis=genesis, coordinator=coordinator, job_id=job.job_id),
        "job_id": job.job_id,
        "attempt": job.attempt,
        "client": job.client,
        "provider": provider,
        "coordinator": coordinator,
        "model": job.order.model,
        "prompt_digest": hash_text(job.prompt_salt, job.order.prompt).hex(),
        "max_tokens": job.order.max_tokens,
        "temperature_micros": job.order.temperature_micros,
        "top_p_micros": job.order.top_p_micros,
        "seed": job.seed,
        "started_at_ms": job.started_at_ms,
    }


def build_receipt(
    job: Job, report: Report, *, terms: Mapping[str, object], now_ms: int
) -> ReceiptPayload:
    """Return what the receipt of this report says; the miner must have signed just this.

    Without a signature nothing of the miner's clock or meter is believed: the coordinator writes
    its own time, and counts seconds where no tokens are reported.

    Raises:
        MarketError: VALIDATION_FAILED, the report is not possible.
    """
    result_bytes = len(report.result.encode())
    measured = {
        "model_digest": report.model_digest,
        "sampler": report.sampler,
        "result_digest": hash_text(job.result_salt, report.result).hex(),
        "tokens_digest": _digest_tokens(job, report),
        "completed_at_ms": _completion_time(job, report, now_ms),
    }
    measured |= _meter(job, report, measured["completed_at_ms"], result_bytes)
    try:
        return msgspec.convert({**terms, **measured}, ReceiptPayload)
    except msgspec.ValidationError as error:
        raise MarketError("VALIDATION_FAILED", f"report: {error}") from error


def _digest_tokens(job: Job, report: Report) -> str:
    if report.output_token_ids is None:
        return ""
    if report.completion_tokens not in {None, len(report.output_token_ids)}:
        raise MarketError(
            "VALIDATION_FAILED",
            f"completion_tokens: expected {len(report.output_token_ids)}, the number of "
            f"output_token_ids, got {report.completion_tokens}",
        )
    return hash_tokens(job.result_salt, report.output_token_ids).hex()


def _completion_time(job: Job, report: Report, now_ms: int) -> int:
    assert job.started_at_ms is not None, "only a claimed job is completed"
    if report.signature is None:
        return max(now_ms, job.started_at_ms)
    if report.completed_at_ms is None:
        raise MarketError("VALIDATION_FAILED", "completed_at_ms: a signed report must carry it")
    if not job.started_at_ms <= report.completed_at_ms <= now_ms + CLOCK_TOLERANCE_MS:
        raise MarketError(
            "VALIDATION_FAILED",
            f"completed_at_ms: expected between started_at_ms {job.started_at_ms} and now "
            f"{now_ms}, got {report.completed_at_ms}; count from started_at_ms",
        )
    return report.completed_at_ms


def _meter(
    job: Job, report: Report, completed_at_ms: object, result_bytes: int
) -> dict[str, object]:
    assert isinstance(completed_at_ms, int)
    assert job.started_at_ms is not None
    elapsed_micros = (completed_at_ms - job.started_at_ms) * 1000
    reported = report.prompt_tokens is not None and report.completion_tokens is not None
    prompt_tokens, completion_tokens = report.prompt_tokens or 0, report.completion_tokens or 0
    unit_type = report.unit_type or ("tokens" if reported else "gpu_seconds")
    if unit_type == "tokens":
        if not reported:
            raise MarketError(
                "VALIDATION_FAILED", "tokens: expected prompt_tokens and completion_tokens"
            )
        units = (prompt_tokens + completion_tokens) * MICROS
        unit_price = job.prices.tokens
    else:
        units = report.units_micros if report.units_micros is not None else elapsed_micros
        unit_price = job.prices.gpu_seconds
    _check_meter(job, report, unit_type, units, elapsed_micros, result_bytes)
    by_provider = reported or report.units_micros is not None
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "unit_type": unit_type,
        "units_micros": units,
        "price_micros": units * unit_price // MICROS,
        "metered_by": "provider" if by_provider else "coordinator",
    }


def _check_meter(
    job: Job,
    report: Report,
    unit_type: UnitType,
    units: int,
    elapsed_micros: int,
    result_bytes: int,
) -> None:
    """A miner cannot bill more than text and time allow."""
    prompt_limit = len(job.order.prompt.encode()) + TEMPLATE_TOKENS
    # A stop sequence is generated, but is not part of the result.
    stop_bytes = max((len(stop.encode()) for stop in job.order.stop), default=0)
    completion_limit = min(job.order.max_tokens, result_bytes + stop_bytes + SPECIAL_TOKENS)
    bounds = (
        ("prompt_tokens", report.prompt_tokens or 0, prompt_limit),
        ("completion_tokens", report.completion_tokens or 0, completion_limit),
    )
    for field, got, limit in bounds:
        if got > limit:
            raise MarketError("VALIDATION_FAILED", f"{field}: expected at most {limit}, got {got}")
    if unit_type == "gpu_seconds" and units > elapsed_micros:
        raise MarketError(
            "VALIDATION_FAILED",
            f"units: expected at most the {elapsed_micros / MICROS} seconds that the job ran",
        )
    if unit_type == "tokens" and report.units_micros not in {None, units}:
        raise MarketError(
            "VALIDATION_FAILED", f"units: expected {units // MICROS}, the sum of both token counts"
        )


def build_work_order(claim: Claim) -> dict[str, object]:
    """Return the JSON part of a claim from which a miner builds and signs its receipt."""
    prices = claim.job.prices
    return {
        "prompt_salt": encode_base64url(claim.job.prompt_salt),
        "result_salt": encode_base64url(claim.job.result_salt),
        "unit_prices_micros": {"tokens": prices.tokens, "gpu_seconds": prices.gpu_seconds},
        "receipt": dict(claim.terms),
    }
