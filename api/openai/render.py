"""Completions and models in OpenAI's form, whole and in chunks.

Fields that OpenAI declares as nullable are `null` here, since its clients expect them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from api.render import Json, format_micros
from ledger.jobs import FinishReason, Job, ServedModel
from ledger.transaction import ReceiptPayload

OWNER = "aitbc"
DONE = b"data: [DONE]\n\n"


class Face(Protocol):
    """One kind of completions."""

    def whole(self, job: Job, receipt: ReceiptPayload) -> Json:
        """Return the answer of a completed job."""

    def opening(self) -> Json | None:
        """Return the choice that opens a stream, if there is one."""

    def piece(self, text: str) -> Json:
        """Return the choice that adds text."""

    def ending(self, reason: FinishReason) -> Json:
        """Return the choice that ends a stream."""

    def chunk(self, job: Job, choices: Sequence[Json]) -> Json:
        """Return a chunk of a stream."""


@dataclass(frozen=True, slots=True)
class ChatFace:
    """`/v1/chat/completions`."""

    def whole(self, job: Job, receipt: ReceiptPayload) -> Json:
        """See `Face`."""
        message = {"role": "assistant", "content": job.result, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None}
        choice["finish_reason"] = find_finish_reason(job, receipt)
        return _complete(_head(job, "chatcmpl", "chat.completion"), choice, job, receipt)

    def opening(self) -> Json:
        """See `Face`."""
        return _delta({"role": "assistant", "content": ""})

    def piece(self, text: str) -> Json:
        """See `Face`."""
        return _delta({"content": text})

    def ending(self, reason: FinishReason) -> Json:
        """See `Face`."""
        return _delta({}, reason)

    def chunk(self, job: Job, choices: Sequence[Json]) -> Json:
        """See `Face`."""
        return _head(job, "chatcmpl", "chat.completion.chunk") | {"choices": choices}


@dataclass(frozen=True, slots=True)
class CompletionFace:
    """`/v1/completions`."""

    def whole(self, job: Job, receipt: ReceiptPayload) -> Json:
        """See `Face`."""
        choice = _text(job.result or "", find_finish_reason(job, receipt))
        return _complete(_head(job, "cmpl", "text_completion"), choice, job, receipt)

    def opening(self) -> None:
        """See `Face`."""

    def piece(self, text: str) -> Json:
        """See `Face`."""
        return _text(text)

    def ending(self, reason: FinishReason) -> Json:
        """See `Face`."""
        return _text("", reason)

    def chunk(self, job: Job, choices: Sequence[Json]) -> Json:
        """See `Face`."""
        return _head(job, "cmpl", "text_completion") | {"choices": choices}


def find_finish_reason(job: Job, receipt: ReceiptPayload) -> FinishReason:
    """Return why an answer ended: its miner's word, or what the count of tokens says."""
    if job.finish_reason is not None:
        return job.finish_reason
    return "length" if receipt.completion_tokens >= job.order.max_tokens else "stop"


def render_usage(receipt: ReceiptPayload) -> Json:
    """Return the tokens that a receipt bills."""
    return {
        "prompt_tokens": receipt.prompt_tokens,
        "completion_tokens": receipt.completion_tokens,
        "total_tokens": receipt.prompt_tokens + receipt.completion_tokens,
    }


def render_evidence(job: Job, receipt: ReceiptPayload) -> Json:
    """Return what OpenAI has no field for: who answered, and what proves it."""
    return {
        "job_id": job.job_id,
        "receipt_id": receipt.receipt_id,
        "provider": receipt.provider,
        "price": format_micros(receipt.price_micros),
        "price_micros": receipt.price_micros,
        "seed": job.seed,
    }


def render_fingerprint(receipt: ReceiptPayload) -> str | None:
    """Return what stands for the model's files, if the miner told their digest."""
    return f"fp_{receipt.model_digest[:16]}" if receipt.model_digest else None


def render_model(model: ServedModel) -> Json:
    """Return one model."""
    return {
        "id": model.name,
        "object": "model",
        "created": model.since_ms // 1000,
        "owned_by": OWNER,
    }


def encode_event(value: object) -> bytes:
    """Return one event of a stream."""
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


def _head(job: Job, prefix: str, kind: str) -> Json:
    return {
        "id": f"{prefix}-{job.job_id.removeprefix('job_')}",
        "object": kind,
        "created": job.created_at_ms // 1000,
        "model": job.order.model,
    }


def _complete(head: Json, choice: Json, job: Job, receipt: ReceiptPayload) -> Json:
    return head | {
        "choices": [choice],
        "usage": render_usage(receipt),
        "system_fingerprint": render_fingerprint(receipt),
        "aitbc": render_evidence(job, receipt),
    }


def _delta(delta: Json, reason: FinishReason | None = None) -> Json:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}


def _text(text: str, reason: FinishReason | None = None) -> Json:
    return {"index": 0, "text": text, "logprobs": None, "finish_reason": reason}
