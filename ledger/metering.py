"""What the receipt of a job says: the terms fixed at its claim, and what may be billed for it.

The coordinator fixes every field it can when a job is claimed (`build_terms`). The miner adds what
it measured and signs. From the miner's report the coordinator builds the same payload again
(`build_receipt`), within what text and time allow; a signature over anything else does not verify.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from ledger.encoding import encode_base64url
from ledger.errors import InvalidFieldError, MarketError
from ledger.hashing import build_receipt_id, hash_text, hash_tokens
from ledger.jobs import Claim, Job, Report, UnitType
from ledger.transaction import MICROS, ReceiptPayload

TEMPLATE_TOKENS = 256
"""Tokens that a model's chat template may add to a prompt."""
SPECIAL_TOKENS = 16
"""Output tokens that may leave no byte of text."""
CLOCK_TOLERANCE_MS = 2_000


def build_terms(job: Job, *, coordinator: str, genesis_hash: bytes) -> dict[str, object]:
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
        "provider": job.provider,
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
    job: Job, report: Report, *, terms: Mapping[str, object], now_ms: int, max_run_ms: int
) -> ReceiptPayload:
    """Return what the receipt of this report says; the miner must have signed just this.

    A result may come late, after the job went back to the queue, but no more than `max_run_ms` is
    paid for: a miner could give a job up, and deliver it when hours have passed.

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
        "completed_at_ms": _completion_time(job, report, now_ms, max_run_ms=max_run_ms),
    }
    measured |= _meter(
        job, report, measured["completed_at_ms"], result_bytes, max_run_ms=max_run_ms
    )
    try:
        return msgspec.convert({**terms, **measured}, ReceiptPayload)
    except msgspec.ValidationError as error:
        raise MarketError("VALIDATION_FAILED", f"report: {error}") from error


def _digest_tokens(job: Job, report: Report) -> str:
    if (report.prompt_tokens is None) != (report.completion_tokens is None):
        field = "prompt_tokens" if report.prompt_tokens is None else "completion_tokens"
        raise InvalidFieldError(field, "expected prompt_tokens and completion_tokens, or neither")
    if report.output_token_ids is None:
        return ""
    if report.completion_tokens != len(report.output_token_ids):
        raise InvalidFieldError(
            "completion_tokens",
            f"expected {len(report.output_token_ids)}, the number of output_token_ids, got "
            f"{report.completion_tokens}",
        )
    return hash_tokens(job.result_salt, report.output_token_ids).hex()


def _completion_time(job: Job, report: Report, now_ms: int, *, max_run_ms: int) -> int:
    assert job.started_at_ms is not None, "only a claimed job is completed"
    if report.signature is None:
        return max(now_ms, job.started_at_ms)
    if report.completed_at_ms is None:
        raise InvalidFieldError("completed_at_ms", "a signed report must carry it")
    latest_ms = now_ms + CLOCK_TOLERANCE_MS
    if now_ms < job.started_at_ms:
        # Our clock was set back since the claim, and cannot say how long the job ran.
        latest_ms = job.started_at_ms + max_run_ms
    if not job.started_at_ms <= report.completed_at_ms <= latest_ms:
        raise InvalidFieldError(
            "completed_at_ms",
            f"expected between started_at_ms {job.started_at_ms} and {latest_ms}, got "
            f"{report.completed_at_ms}; count from started_at_ms",
        )
    return report.completed_at_ms


def _meter(
    job: Job, report: Report, completed_at_ms: object, result_bytes: int, *, max_run_ms: int
) -> dict[str, object]:
    assert isinstance(completed_at_ms, int)
    assert job.started_at_ms is not None
    elapsed_micros = min(completed_at_ms - job.started_at_ms, max_run_ms) * 1000
    reported = report.completion_tokens is not None
    prompt_tokens, completion_tokens = report.prompt_tokens or 0, report.completion_tokens or 0
    unit_type = report.unit_type or ("tokens" if reported else "gpu_seconds")
    if unit_type == "tokens":
        if not reported:
            raise InvalidFieldError(
                "completion_tokens",
                "expected prompt_tokens and completion_tokens, as unit_type is tokens",
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
            raise InvalidFieldError(field, f"expected at most {limit}, got {got}")
    if unit_type == "gpu_seconds" and units > elapsed_micros:
        raise InvalidFieldError(
            "units", f"expected at most the {elapsed_micros / MICROS} seconds that the job ran"
        )
    if unit_type == "tokens" and report.units_micros not in {None, units}:
        raise InvalidFieldError(
            "units", f"expected {units // MICROS}, the sum of both token counts"
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
