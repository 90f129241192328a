"""Request bodies: JSON into the market's own types, or a refusal that names the field.

Unknown fields are ignored and `null` counts as absent where a field is optional: clients generated
from the reference, or from a later version of it, must go on working. A number without a fraction
is an integer however it is spelled (`256.0`), as in JSON Schema. Decimal fields become micros by
their shortest decimal form, rounded half to even.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal
from functools import lru_cache
from typing import Annotated, Any, Literal, TypeVar, get_args

import msgspec

from api.errors import FieldError, RequestError, refuse_field
from api.requests import MAX_BODY_BYTES
from api.wording import reword
from ledger.encoding import MAX_INTEGER
from ledger.events import EVENT_TYPES, EventType
from ledger.jobs import FinishReason, JobOrder, Registration, Report
from ledger.payloads import MAX_ANSWER_TOKENS, MAX_MEAN_GAP_MICROS, Ending, Verdict
from ledger.transaction import MICROS, Signature

T = TypeVar("T")

MAX_RESULT_BYTES = 4 << 20
MAX_REPORT_BODY_BYTES = 3 * MAX_RESULT_BYTES + 2 * MAX_BODY_BYTES
"""A result of MAX_RESULT_BYTES with every character beyond ASCII escaped, and its token ids."""
MAX_TOKENS = 8192
MAX_STOPS = 4
MAX_BATCH_JOBS = 100
MAX_REASON_CHARS = 500
MAX_OBJECTS = 20_000
"""Objects and arrays in one body. The smallest has two bytes, and costs a hundred times as much."""
MAX_VALUES = 150_000
"""Members and items in one body; the ids of a long answer are most of what honest ones have."""

DEFAULT_MAX_TOKENS = 256
DEFAULT_TEMPERATURE = 0.7
DEFAULT_TOP_P = 0.9

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_PLACE = re.compile(r"(?P<message>.*?)(?: - at `\$\.?(?P<path>.*)`)?", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(.*)`")
# Up to the next sign of a value that stands in no string. It never goes back, so it is fast.
_NEXT_VALUE = re.compile(rb'(?:"(?:[^"\\]++|\\.)*+"|[^"{\[,])*+([{\[,])', re.DOTALL)

_NAME = r"\A[A-Za-z0-9][A-Za-z0-9_.:@-]{0,127}\Z"
_LINE = r"\A[^\x00-\x1f\x7f]*\Z"
_DIGEST = r"\A([0-9a-f]{64})?\Z"
_SAMPLER = r"\A[a-z0-9.-]{0,64}\Z"
_FULL_DIGEST = r"\A[0-9a-f]{64}\Z"
_METHOD = r"\A[a-z0-9.-]{1,64}\Z"
_PATTERNS = {
    _NAME: "1 to 128 letters, digits and _.:@-, of which the first is a letter or digit",
    _LINE: "no control characters",
    _DIGEST: "64 lower-case hex digits",
    _FULL_DIGEST: "64 lower-case hex digits",
    _METHOD: "1 to 64 lower-case letters, digits, dots and hyphens",
    _SAMPLER: "at most 64 lower-case letters, digits, dots and hyphens",
}

Number = int | float
UnitType = Literal["gpu_seconds", "tokens"]
MinerName = Annotated[str, msgspec.Meta(pattern=_NAME)]
Line = Annotated[str, msgspec.Meta(max_length=128, pattern=_LINE)]
ModelLine = Annotated[str, msgspec.Meta(min_length=1, max_length=128, pattern=_LINE)]
StopText = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
Tokens = Annotated[int, msgspec.Meta(ge=0, le=MAX_INTEGER)]
TokenId = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]


class ParamsBody(msgspec.Struct):
    """`JobRequest.params`."""

    max_tokens: Number | None = None
    temperature: Number | None = None
    top_p: Number | None = None
    seed: Number | None = None
    stop: Annotated[list[StopText], msgspec.Meta(max_length=MAX_STOPS)] | None = None


class JobRequestBody(msgspec.Struct):
    """`POST /v1/jobs`."""

    prompt: str
    model: ModelLine | None = None
    params: ParamsBody | None = None


class BatchBody(msgspec.Struct):
    """`POST /v1/jobs/batch`."""

    jobs: Annotated[list[JobRequestBody], msgspec.Meta(min_length=1, max_length=MAX_BATCH_JOBS)]


class MinerBody(msgspec.Struct):
    """Who speaks: release."""

    miner_id: MinerName


class ClaimBody(MinerBody):
    """`POST /v1/jobs/{job_id}/claim`."""

    heartbeat: bool | None = None


class HeartbeatBody(MinerBody):
    """`POST /v1/jobs/{job_id}/heartbeat`."""

    wait: Annotated[int, msgspec.Meta(ge=0, le=MAX_INTEGER)] | None = None


class TextBody(MinerBody):
    """`POST /v1/jobs/{job_id}/text`."""

    offset: Annotated[int, msgspec.Meta(ge=0, le=MAX_INTEGER)]
    text: str


class FailureBody(MinerBody):
    """`POST /v1/jobs/{job_id}/fail`."""

    reason: Annotated[str, msgspec.Meta(max_length=MAX_REASON_CHARS)] | None = None
    retryable: bool | None = None


class SignatureBody(msgspec.Struct):
    """`Signature`."""

    key_id: Annotated[str, msgspec.Meta(max_length=90)]
    sig: Annotated[str, msgspec.Meta(max_length=86)]
    alg: Literal["Ed25519"] = "Ed25519"


class JobResultBody(MinerBody):
    """`JobResult`."""

    result: str
    completed_at: str | None = None
    completed_at_ms: Annotated[int, msgspec.Meta(ge=0, le=MAX_INTEGER)] | None = None
    unit_type: UnitType | None = None
    units: Number | None = None
    prompt_tokens: Tokens | None = None
    completion_tokens: Tokens | None = None
    output_token_ids: Annotated[list[TokenId], msgspec.Meta(max_length=100_000)] | None = None
    model_digest: Annotated[str, msgspec.Meta(pattern=_DIGEST)] | None = None
    sampler: Annotated[str, msgspec.Meta(pattern=_SAMPLER)] | None = None
    finish_reason: FinishReason | None = None
    signature: SignatureBody | None = None


class ReleaseBody(MinerBody):
    """`POST /v1/audits/{audit_id}/release`."""

    reason: Annotated[str, msgspec.Meta(max_length=MAX_REASON_CHARS)] | None = None


class AuditReportBody(MinerBody):
    """`AuditReport`."""

    model_digest: Annotated[str, msgspec.Meta(pattern=_FULL_DIGEST)]
    method: Annotated[str, msgspec.Meta(pattern=_METHOD)]
    prompt_tokens: Tokens
    tokens: Annotated[int, msgspec.Meta(ge=1, le=MAX_ANSWER_TOKENS)]
    exact_tokens: Annotated[int, msgspec.Meta(ge=0, le=MAX_ANSWER_TOKENS)]
    outside_tokens: Annotated[int, msgspec.Meta(ge=0, le=MAX_ANSWER_TOKENS)]
    max_gap_micros: Tokens
    mean_gap_micros: Annotated[int, msgspec.Meta(ge=0, le=MAX_MEAN_GAP_MICROS)]
    ending: Ending
    text_matches: bool
    verdict: Verdict
    audited_at_ms: Annotated[int, msgspec.Meta(ge=0, le=MAX_INTEGER)]
    signature: SignatureBody


class WebhookBody(msgspec.Struct):
    """`POST /v1/webhooks`."""

    url: str
    events: Annotated[list[EventType], msgspec.Meta(min_length=1, max_length=16)] | None = None


class GpuBody(msgspec.Struct):
    """`MinerRegistration.gpu_info`."""

    name: Line | None = None
    memory: Line | None = None


class RegistrationBody(MinerBody):
    """`MinerRegistration`."""

    capabilities: Annotated[list[Line], msgspec.Meta(max_length=64)]
    gpu_info: GpuBody | None = None
    public_key: Annotated[str, msgspec.Meta(max_length=90)] | None = None
    proof: SignatureBody | None = None
    audits: bool | None = None


def parse_order(body: bytes, *, default_model: str) -> JobOrder:
    """Parse `JobRequest`."""
    return _order(decode_body(body, JobRequestBody), "", default_model)


def parse_batch(body: bytes, *, default_model: str) -> tuple[JobOrder, ...]:
    """Parse `BatchRequest`."""
    jobs = decode_body(body, BatchBody).jobs
    return tuple(_order(job, f"jobs[{i}].", default_model) for i, job in enumerate(jobs))


def _order(given: JobRequestBody, place: str, default_model: str) -> JobOrder:
    params = given.params or ParamsBody()
    stop = tuple(params.stop or ())
    refuse_nul(f"{place}prompt", given.prompt)
    for index, text in enumerate(stop):
        refuse_nul(f"{place}params.stop[{index}]", text)
    return JobOrder(
        prompt=given.prompt,
        model=default_model if given.model is None else given.model,
        max_tokens=parse_integer(
            f"{place}params.max_tokens",
            params.max_tokens,
            default=DEFAULT_MAX_TOKENS,
            low=1,
            high=MAX_TOKENS,
        ),
        temperature_micros=parse_micros(
            f"{place}params.temperature",
            params.temperature,
            default=DEFAULT_TEMPERATURE,
            low=0,
            high=2,
        ),
        top_p_micros=parse_micros(
            f"{place}params.top_p", params.top_p, default=DEFAULT_TOP_P, low=1 / MICROS, high=1
        ),
        seed=None
        if params.seed is None
        else parse_integer(f"{place}params.seed", params.seed, default=0, low=0, high=MAX_INTEGER),
        stop=stop,
    )


def parse_report(body: bytes) -> Report:
    """Parse `JobResult` and what a signing miner adds to it."""
    given = decode_body(body, JobResultBody)
    refuse_nul("result", given.result)
    if len(given.result.encode()) > MAX_RESULT_BYTES:
        raise RequestError(
            "VALIDATION_BODY_TOO_LARGE", f"result: expected at most {MAX_RESULT_BYTES} bytes"
        )
    completed_at_ms = given.completed_at_ms
    # Without a signature the coordinator's clock counts, and `completed_at` may say anything.
    if given.signature and completed_at_ms is None and given.completed_at is not None:
        completed_at_ms = _parse_time("completed_at", given.completed_at)
    tokens = given.output_token_ids
    return Report(
        miner_id=given.miner_id,
        result=given.result,
        completed_at_ms=completed_at_ms,
        unit_type=given.unit_type,
        units_micros=None
        if given.units is None
        else parse_micros("units", given.units, default=0, low=0, high=MAX_INTEGER // MICROS),
        prompt_tokens=given.prompt_tokens,
        completion_tokens=given.completion_tokens,
        output_token_ids=None if tokens is None else tuple(tokens),
        model_digest=given.model_digest or "",
        sampler=given.sampler or "",
        finish_reason=given.finish_reason,
        signature=_signature(given.signature),
    )


def parse_registration(body: bytes) -> Registration:
    """Parse `MinerRegistration` and the key a miner may bring."""
    given = decode_body(body, RegistrationBody)
    if (given.public_key is None) != (given.proof is None):
        raise refuse_field("proof", "expected public_key and proof together, or neither")
    if given.proof and given.proof.key_id != given.public_key:
        raise refuse_field("proof.key_id", "expected the public_key that is registered")
    gpu = given.gpu_info or GpuBody()
    return Registration(
        miner_id=given.miner_id,
        capabilities=tuple(given.capabilities),
        gpu_name=gpu.name,
        gpu_memory=gpu.memory,
        account=given.public_key,
        proof=given.proof.sig if given.proof else None,
        audits=bool(given.audits),
    )


def parse_webhook(body: bytes) -> tuple[str, tuple[EventType, ...]]:
    """Parse `WebhookRequest` into a URL, which the market judges, and what is to be told."""
    given = decode_body(body, WebhookBody)
    return given.url, tuple(dict.fromkeys(given.events or EVENT_TYPES))


def decode_body(body: bytes, kind: type[T]) -> T:
    """Decode JSON into `kind`.

    Raises:
        RequestError: VALIDATION_MALFORMED_JSON, or VALIDATION_FAILED with the path of the field.
    """
    _check_complexity(body)
    try:
        value = msgspec.json.decode(body, type=kind)
        # msgspec lets the last of several equal keys win; another reader might take the first.
        _structure.decode(body.decode())
    except msgspec.ValidationError as error:
        raise _locate(str(error)) from None
    except _RepeatedKeyError as error:
        raise refuse_field(str(error), "expected this key once") from None
    except RecursionError:
        raise RequestError("VALIDATION_MALFORMED_JSON", "body: nested too deeply") from None
    except ValueError:
        raise RequestError(
            "VALIDATION_MALFORMED_JSON", "body: expected one JSON object in UTF-8"
        ) from None
    return value


def _check_complexity(body: bytes) -> None:
    """Refuse a body of so many small parts that reading it would hold all others up."""
    if body.count(b"{") + body.count(b"[") <= MAX_OBJECTS and body.count(b",") <= MAX_VALUES:
        return
    # Some of these stand in texts.
    objects = values = place = 0
    while found := _NEXT_VALUE.match(body, place):
        place = found.end()
        if found[1] == b",":
            values += 1
        else:
            objects += 1
        if objects > MAX_OBJECTS or values > MAX_VALUES:
            raise RequestError(
                "VALIDATION_MALFORMED_JSON",
                f"body: expected at most {MAX_OBJECTS} objects and arrays with {MAX_VALUES} values",
            )


class _RepeatedKeyError(ValueError):
    pass


def _refuse_repeated_keys(pairs: Iterable[tuple[str, Any]]) -> None:
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            raise _RepeatedKeyError(key)
        seen.add(key)


_CHOICES: Mapping[str, tuple[str, ...]] = {
    "alg": ("Ed25519",),
    "ending": get_args(Ending),
    "events": EVENT_TYPES,
    "finish_reason": get_args(FinishReason),
    "unit_type": get_args(UnitType),
    "verdict": get_args(Verdict),
}
"""What a field of this name may be, at whatever place."""

_structure = json.JSONDecoder(object_pairs_hook=_refuse_repeated_keys, parse_int=len)


def _locate(text: str) -> RequestError:
    match = _PLACE.fullmatch(text)
    assert match is not None, "the pattern fits every text"
    message, path = match["message"], match["path"] or ""
    if missing := _MISSING.fullmatch(message):
        path = f"{path}.{missing[1]}" if path else missing[1]
        return refuse_field(path, "this field is required")
    choices = _CHOICES.get(path.rpartition(".")[2].partition("[")[0])
    message = reword(message, patterns=_PATTERNS, choices=choices)
    if path:
        return refuse_field(path, message)
    return RequestError("VALIDATION_FAILED", f"body: {message}", errors=(FieldError("$", message),))


def parse_integer(path: str, value: Number | None, *, default: int, low: int, high: int) -> int:
    """Return an integer within its bounds, `default` for None. Raises RequestError."""
    if value is None:
        return default
    if not low <= value <= high or value != int(value):
        raise refuse_field(path, f"expected an integer in {low}..{high}")
    return int(value)


def parse_micros(
    path: str, value: Number | None, *, default: float, low: float, high: float
) -> int:
    """Return a number within its bounds in micros, `default` for None. Raises RequestError."""
    given = default if value is None else value
    if not low <= given <= high:
        raise refuse_field(path, f"expected a number in {Decimal(repr(low)):f}..{high:g}")
    return _to_micros(repr(given))


@lru_cache(maxsize=256)
def _to_micros(number: str) -> int:
    """Few numbers are asked for again and again."""
    return int((Decimal(number) * MICROS).to_integral_value(ROUND_HALF_EVEN))


def _parse_time(path: str, text: str) -> int:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise refuse_field(path, "expected a time such as 2026-01-31T12:00:00.000Z")
    return (moment - _EPOCH) // timedelta(milliseconds=1)


def _signature(given: SignatureBody | None) -> Signature | None:
    if given is None:
        return None
    return Signature(key_id=given.key_id, role="provider", sig=given.sig)


def refuse_nul(path: str, text: str) -> None:
    """Raise RequestError if a text holds NUL."""
    # SQLite and C readers would end the text here, and show another one than was signed.
    if "\0" in text:
        raise refuse_field(path, "expected no NUL character")
