"""The case of an audit: a receipt and what its owner knows, checked before anything is replayed.

Whoever gave the texts may have erred or lied: only those whose digests stand in the receipt are
replayed. The stop sequences are in no digest: whoever gives them decides whether an answer ended
early, so the claim about an end that rests on them says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import msgspec

from ledger.chat import parse_chat
from ledger.errors import InvalidProofError
from ledger.proof import Claim, Disclosure, judge_disclosure, parse_bundle, parse_disclosure
from ledger.transaction import ReceiptPayload
from miner.audit.replay import Answer
from miner.sampling import SAMPLER, SamplingParams
from miner.tokenizer import ChatTokenizer, Message
from miner.wire import JobParams

NEEDED: Final = ("prompt", "result", "output_token_ids")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is audited, with all that is needed to replay it."""

    receipt: ReceiptPayload
    shown: Disclosure
    stop: tuple[str, ...]
    """The job's stop sequences."""


def parse_case(bundle: bytes, disclosure: bytes) -> Case:
    """Read a case from a proof bundle and what `GET /v1/jobs/{id}` gives to the job's owner.

    Raises:
        InvalidProofError: one of the two is none, or lacks something.
    """
    receipt = parse_bundle(bundle).envelope.payload
    assert isinstance(receipt, ReceiptPayload), "parse_bundle lets no other type through"
    case = Case(receipt=receipt, shown=parse_disclosure(disclosure), stop=_read_stop(disclosure))
    missing = [name for name in NEEDED if getattr(case.shown, name) is None]
    if missing:
        raise InvalidProofError(
            f"disclosure: without {', '.join(missing)} nothing can be replayed; GET /v1/jobs/"
            f"{receipt.job_id} gives them to the job's owner until its texts are purged"
        )
    return case


class _Job(msgspec.Struct):
    params: JobParams = JobParams()


def _read_stop(disclosure: bytes) -> tuple[str, ...]:
    try:
        return msgspec.json.decode(disclosure, type=_Job).params.stop_sequences
    except ValueError as error:
        raise InvalidProofError(f"disclosure: params: {error}") from error


def check_case(case: Case, *, model_digest: str) -> tuple[Claim, ...]:
    """Judge whether texts and model are those of the receipt; replay only if nothing fails.

    `model_digest` is the auditor's. That it differs from the receipt's is no failure of the
    receipt, but what is measured then is another claim.
    """
    receipt = case.receipt
    return (
        *judge_disclosure(receipt, case.shown),
        _check_sampler(receipt),
        _check_model(receipt, model_digest),
    )


def _check_sampler(receipt: ReceiptPayload) -> Claim:
    if receipt.sampler == SAMPLER and receipt.model_digest:
        return Claim(name="sampler", status="verified", detail=f"{SAMPLER}: it can be repeated")
    said = f"{receipt.sampler or 'none'}, model digest {receipt.model_digest or 'none'}"
    detail = f"expected {SAMPLER} and a model digest, got sampler {said}: nothing can be repeated"
    return Claim(name="sampler", status="failed", detail=detail)


def _check_model(receipt: ReceiptPayload, model_digest: str) -> Claim:
    if receipt.model_digest == model_digest:
        return Claim(name="model_digest", status="verified", detail=f"yours too: {model_digest}")
    detail = (
        f"yours is {model_digest}, the receipt names {receipt.model_digest}: what follows says "
        "whether yours gives this answer"
    )
    return Claim(name="model_digest", status="not_applicable", detail=detail)


def build_answer(case: Case, tokenizer: ChatTokenizer) -> Answer:
    """What is replayed of a case.

    Raises:
        JobError: the model's chat template refuses the conversation.
    """
    receipt, shown = case.receipt, case.shown
    assert shown.prompt is not None, "see Case"
    assert shown.result is not None, "see Case"
    assert shown.output_token_ids is not None, "see Case"
    messages = [Message(role=turn.role, content=turn.content) for turn in parse_chat(shown.prompt)]
    return Answer(
        job_id=receipt.job_id,
        model_digest=receipt.model_digest,
        prompt_token_ids=tuple(tokenizer.encode_chat(messages)),
        token_ids=shown.output_token_ids,
        result=shown.result,
        params=SamplingParams(
            max_tokens=receipt.max_tokens,
            temperature_micros=receipt.temperature_micros,
            top_p_micros=receipt.top_p_micros,
            seed=receipt.seed,
        ),
        stop=case.stop,
    )
