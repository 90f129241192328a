"""A miner's half of a receipt: check the coordinator's half, fill in the rest, sign all of it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from ledger.encoding import decode_base64url, decode_hash
from ledger.errors import EncodingError
from ledger.hashing import SALT_BYTES, hash_text, hash_tokens
from ledger.jobs import build_registration_message
from ledger.keys import KeyPair
from ledger.transaction import MICROS, ReceiptPayload, sign_payload
from miner.engine import Completion
from miner.errors import BadAnswerError
from miner.sampling import SAMPLER, SamplingParams
from miner.wire import ClaimedJob


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedOrder:
    """A work order whose fixed fields are what this miner is willing to sign."""

    prompt_salt: bytes
    result_salt: bytes
    params: SamplingParams
    client: str
    """Who asked."""
    started_at_ms: int
    token_price_micros: int
    fields: dict[str, Any]


def check_order(job: ClaimedJob, *, genesis: str, account: str) -> CheckedOrder:
    """Refuse a work order that is for another chain, miner, model, job or prompt.

    Raises:
        BadAnswerError: it is, or it lacks something.
    """
    order, fields = job.work_order, job.work_order.receipt
    expected = {
        "genesis": genesis,
        "job_id": job.job_id,
        "provider": account,
        "model": job.model,
        "type": "receipt",
    }
    for name, value in expected.items():
        if fields.get(name) != value:
            raise BadAnswerError(
                f"work order: {name}: expected {value!r}, got {fields.get(name)!r:.100}"
            )
    try:
        prompt_salt = decode_base64url(order.prompt_salt, size_bytes=SALT_BYTES)
        result_salt = decode_base64url(order.result_salt, size_bytes=SALT_BYTES)
        fixed = msgspec.convert({name: fields.get(name) for name in _USED}, _FixedFields)
    except (EncodingError, msgspec.ValidationError) as error:
        raise BadAnswerError(f"work order: {error}") from error
    if fixed.prompt_digest != hash_text(prompt_salt, job.prompt).hex():
        raise BadAnswerError("work order: its prompt_digest is of another prompt")
    return CheckedOrder(
        prompt_salt=prompt_salt,
        result_salt=result_salt,
        params=SamplingParams(
            max_tokens=fixed.max_tokens,
            temperature_micros=fixed.temperature_micros,
            top_p_micros=fixed.top_p_micros,
            seed=fixed.seed,
        ),
        client=fixed.client,
        started_at_ms=fixed.started_at_ms,
        token_price_micros=order.unit_prices_micros.tokens,
        fields=fields,
    )


class _FixedFields(msgspec.Struct, frozen=True, kw_only=True):
    prompt_digest: str
    client: str
    max_tokens: int
    temperature_micros: int
    top_p_micros: int
    seed: int
    started_at_ms: int


_USED: Final = tuple(field.name for field in msgspec.structs.fields(_FixedFields))


def build_receipt(
    order: CheckedOrder, completion: Completion, *, model_digest: str, elapsed_ms: int
) -> ReceiptPayload:
    """The whole payload, as the coordinator will rebuild it.

    Raises:
        BadAnswerError: the coordinator's fields do not make a valid payload.
    """
    tokens = completion.prompt_tokens + completion.completion_tokens
    filled = {
        "model_digest": model_digest,
        "result_digest": hash_text(order.result_salt, completion.text).hex(),
        "tokens_digest": hash_tokens(order.result_salt, completion.token_ids).hex(),
        "sampler": SAMPLER,
        "prompt_tokens": completion.prompt_tokens,
        "completion_tokens": completion.completion_tokens,
        "unit_type": "tokens",
        "units_micros": tokens * MICROS,
        "price_micros": tokens * order.token_price_micros,
        "completed_at_ms": order.started_at_ms + elapsed_ms,
        "metered_by": "provider",
    }
    try:
        return msgspec.convert(order.fields | filled, ReceiptPayload)
    except msgspec.ValidationError as error:
        raise BadAnswerError(f"work order: {error}") from error


def build_result(
    payload: ReceiptPayload, completion: Completion, *, miner_id: str, key: KeyPair
) -> dict[str, Any]:
    """The body that hands in a job, its receipt signed."""
    signature = sign_payload(payload, key, "provider")
    completed = datetime.fromtimestamp(payload.completed_at_ms / 1000, UTC)
    return {
        "miner_id": miner_id,
        "result": completion.text,
        "completed_at": completed.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "completed_at_ms": payload.completed_at_ms,
        "unit_type": payload.unit_type,
        "units": payload.units_micros // MICROS,
        "prompt_tokens": payload.prompt_tokens,
        "completion_tokens": payload.completion_tokens,
        "output_token_ids": list(completion.token_ids),
        "model_digest": payload.model_digest,
        "sampler": payload.sampler,
        "finish_reason": completion.finish_reason,
        "signature": {"alg": "Ed25519", "key_id": signature.key_id, "sig": signature.sig},
    }


def build_registration(
    *,
    genesis: str,
    miner_id: str,
    key: KeyPair,
    models: list[str],
    gpu_info: dict[str, str] | None,
    audits: bool = False,
) -> dict[str, Any]:
    """The body that registers a miner, with proof that it holds the key."""
    message = build_registration_message(
        genesis_hash=decode_hash(genesis), miner_id=miner_id, account=key.account
    )
    proof = {"alg": "Ed25519", "key_id": key.account, "sig": key.sign(message)}
    body: dict[str, Any] = {
        "miner_id": miner_id,
        "capabilities": models,
        "public_key": key.account,
        "proof": proof,
    }
    body |= {"audits": True} if audits else {}
    return body | ({"gpu_info": gpu_info} if gpu_info else {})
