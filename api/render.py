"""JSON of what the market shows, receipts included. Absent fields are left out, never `null`.

Times are RFC 3339 in UTC with milliseconds, except in receipts, where the reference has integer
seconds. Micros become JSON numbers digit by digit, so no amount is ever rounded.
"""

from __future__ import annotations

import msgspec

from ledger.encoding import encode_base64url
from ledger.events import format_time as format_time
from ledger.hashing import decode_tokens
from ledger.jobs import Caller, Claim, Job, Lease, Miner, MinerStanding, Queue
from ledger.metering import build_work_order
from ledger.quotas import KeyStanding
from ledger.transaction import MICROS, Signature
from ledger.views import ReceiptView

Json = dict[str, object]


def format_decimal(micros: int) -> str:
    """Return a non-negative amount with at most six decimals."""
    whole, rest = divmod(micros, MICROS)
    return f"{whole}.{rest:06d}".rstrip("0") if rest else str(whole)


def format_micros(micros: int) -> msgspec.Raw:
    """Return a non-negative amount as a JSON number with at most six decimals."""
    return msgspec.Raw(format_decimal(micros).encode())


def render_job(
    job: Job, *, readable: bool, queue: Queue | None = None, token_ids: bool = False
) -> Json:
    """Return a Job; without its text and parameters where they are not the reader's business.

    Token ids, which are many, are part of its disclosure if they are asked for.
    """
    shown: Json = {"job_id": job.job_id, "status": job.state}
    if job.status_reason:
        shown["status_reason"] = job.status_reason
    shown["model"] = job.order.model
    shown["client"] = job.client
    shown["attempt"] = job.attempt
    shown["created_at"] = format_time(job.created_at_ms)
    if job.miner_id is not None:
        shown["miner_id"] = job.miner_id
    # A job that went back to the queue remembers when its lost attempt began.
    if job.started_at_ms is not None and job.state != "pending":
        shown["started_at"] = format_time(job.started_at_ms)
    if job.completed_at_ms is not None:
        shown["completed_at"] = format_time(job.completed_at_ms)
    if job.receipt_id is not None:
        shown["receipt_id"] = job.receipt_id
    if queue is not None:
        shown["queue"] = {
            "position": queue.position,
            "eligible_miners": queue.eligible_miners,
        }
    if job.texts_purged_at_ms is not None:
        shown["texts_purged_at"] = format_time(job.texts_purged_at_ms)
    elif readable:
        shown |= render_text(job)
    if readable and job.state == "completed":
        shown["disclosure"] = _render_disclosure(job, token_ids=token_ids)
    return shown


def _render_disclosure(job: Job, *, token_ids: bool) -> Json:
    shown: Json = {
        "prompt_salt": encode_base64url(job.prompt_salt),
        "result_salt": encode_base64url(job.result_salt),
    }
    if token_ids and job.output_token_ids is not None:
        shown["output_token_ids"] = decode_tokens(job.output_token_ids)
    return shown


def render_text(job: Job) -> Json:
    """Return what of a job is its owner's business, and its miner's."""
    order = job.order
    params: Json = {
        "max_tokens": order.max_tokens,
        "temperature": format_micros(order.temperature_micros),
        "top_p": format_micros(order.top_p_micros),
        "seed": job.seed,
    }
    if order.stop:
        params["stop"] = order.stop
    text: Json = {"prompt": order.prompt, "params": params}
    if job.result is not None:
        text["result"] = job.result
    if job.finish_reason is not None:
        text["finish_reason"] = job.finish_reason
    if job.error:
        text["error"] = job.error
    return text


def render_lease(lease: Lease) -> Json:
    """Return how long a miner holds a job."""
    return {
        "attempt": lease.attempt,
        "expires_at": format_time(lease.expires_at_ms),
        "expires_in_ms": lease.expires_in_ms,
        "run_ends_in_ms": lease.run_ends_in_ms,
        "heartbeat_interval_ms": lease.heartbeat_interval_ms,
    }


def render_claim(claim: Claim) -> Json:
    """Return the job with everything its miner needs to run it and to sign the receipt."""
    return {
        **render_job(claim.job, readable=True),
        "lease": render_lease(claim.lease),
        "work_order": build_work_order(claim),
    }


def render_key(caller: Caller, standing: KeyStanding) -> Json:
    """Return what an API key may do, and what is used of it."""
    limits, usage = standing.limits, standing.usage
    known = {
        "max_pending": limits.max_pending,
        "daily_jobs": limits.daily_jobs,
        "daily_tokens": limits.daily_tokens,
    }
    return {
        "role": caller.role,
        "client": caller.client,
        "limits": {name: value for name, value in known.items() if value is not None},
        "pending_jobs": usage.pending,
        "today": {"jobs": usage.jobs, "tokens": usage.tokens},
        "resets_at": format_time(standing.resets_at_ms),
    }


def render_standing(standing: MinerStanding) -> Json:
    """Return a miner and what it does."""
    return {
        **render_miner(standing.miner),
        "active": standing.active,
        "draining": standing.miner.draining,
        "running_jobs": standing.running,
    }


def render_miner(miner: Miner) -> Json:
    """Return a registered miner."""
    shown: Json = {"miner_id": miner.miner_id, "capabilities": miner.capabilities}
    gpu = {"name": miner.gpu_name, "memory": miner.gpu_memory}
    known = {field: value for field, value in gpu.items() if value is not None}
    if known:
        shown["gpu_info"] = known
    if miner.account is not None:
        shown["public_key"] = miner.account
    if miner.audits:
        shown["audits"] = True
    shown["registered_at"] = format_time(miner.registered_at_ms)
    shown["last_seen_at"] = format_time(miner.last_seen_at_ms)
    return shown


def render_receipt(receipt: ReceiptView) -> Json:
    """Return a Receipt: the reference's fields, and where it stands on the chain."""
    payload, transaction = receipt.payload, receipt.transaction
    shown: Json = {
        "receipt_id": payload.receipt_id,
        "job_id": payload.job_id,
        "provider": payload.provider,
        "client": payload.client,
        "units": format_micros(payload.units_micros),
        "unit_type": payload.unit_type,
        "price": format_micros(payload.price_micros),
        "price_micros": payload.price_micros,
        "model": payload.model,
        "prompt_tokens": payload.prompt_tokens,
        "completion_tokens": payload.completion_tokens,
        "metered_by": payload.metered_by,
        "attempt": payload.attempt,
        "started_at": payload.started_at_ms // 1000,
        "completed_at": payload.completed_at_ms // 1000,
        "coordinator": payload.coordinator,
        "signer": "provider" if receipt.provider_signature else "coordinator",
        "transaction_id": transaction.id,
        "status": transaction.finality,
    }
    if payload.model_digest:
        shown["model_digest"] = payload.model_digest
    if receipt.miner_id is not None:
        shown["miner_id"] = receipt.miner_id
    if receipt.provider_signature:
        shown["signature"] = _render_signature(receipt.provider_signature)
    attestations = [s for s in transaction.signatures if s.role == "coordinator"]
    if attestations:
        shown["attestation"] = _render_signature(attestations[0])
    if transaction.height is not None:
        shown["block_height"] = transaction.height
    return shown


def _render_signature(signature: Signature) -> Json:
    return {"alg": "Ed25519", "key_id": signature.key_id, "sig": signature.sig}
