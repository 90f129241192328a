"""Every refusal of the REST face: a closed set of codes, each with its HTTP status.

    RequestError        the request itself is wrong; raised in this package
    MarketError         the market refuses it (ledger.errors); its code is looked up here
    DatabaseBusyError   too many writes wait (ledger.store); SYSTEM_OVERLOADED
    StoreError          the disk refuses (ledger.store); SYSTEM_STORAGE_FAILED

The body of every refusal is `{"detail", "error_code", "request_id"}`, with `errors` (a path and a
message each) where fields are to blame and `expected` where a signature is. A `detail` may change;
an `error_code` may not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import msgspec
from msgspec.structs import replace

from api.answers import Answer, Header, answer_json
from ledger.errors import InvalidFieldError, MarketError

STATUSES: Mapping[str, int] = MappingProxyType(
    {
        "AUTH_MISSING_KEY": 401,
        "AUTH_INVALID_KEY": 401,
        "AUTH_INSUFFICIENT_SCOPE": 403,
        "JOB_NOT_FOUND": 404,
        "JOB_ALREADY_CLAIMED": 409,
        "JOB_ALREADY_COMPLETED": 409,
        "JOB_ALREADY_CANCELLED": 409,
        "JOB_LEASE_LOST": 409,
        "JOB_RESULT_CONFLICT": 409,
        "JOB_FAILED": 502,
        "JOB_TIMEOUT": 504,
        "AUDIT_NOT_FOUND": 404,
        "AUDIT_NOT_ELIGIBLE": 403,
        "AUDIT_ALREADY_CLAIMED": 409,
        "AUDIT_ALREADY_COMPLETED": 409,
        "AUDIT_EXPIRED": 409,
        "AUDIT_LEASE_LOST": 409,
        "AUDIT_MISMATCH": 400,
        "MODEL_NOT_FOUND": 404,
        "MINER_NOT_FOUND": 404,
        "MINER_ALREADY_REGISTERED": 409,
        "MINER_DRAINING": 409,
        "IDEMPOTENCY_MISMATCH": 409,
        "RECEIPT_NOT_FOUND": 404,
        "RECEIPT_PENDING": 409,
        "RECEIPT_MISMATCH": 400,
        "RECEIPT_INVALID_SIGNATURE": 400,
        "TRANSACTION_NOT_FOUND": 404,
        "TRANSACTION_INVALID": 400,
        "TRANSACTION_TYPE_REFUSED": 400,
        "WEBHOOK_NOT_FOUND": 404,
        "MINER_LIMIT_REACHED": 409,
        "WEBHOOK_LIMIT_REACHED": 409,
        "WEBHOOK_DISABLED": 409,
        "CHECKPOINT_NOT_FOUND": 404,
        "TILE_NOT_FOUND": 404,
        "TREE_SIZE_NOT_FOUND": 404,
        "PATH_NOT_FOUND": 404,
        "METHOD_NOT_ALLOWED": 405,
        "VALIDATION_FAILED": 400,
        "VALIDATION_MALFORMED_JSON": 400,
        "VALIDATION_BODY_TIMEOUT": 408,
        "VALIDATION_BODY_TOO_LARGE": 413,
        "VALIDATION_MEDIA_TYPE": 415,
        "NODE_IS_FOLLOWER": 421,
        "RATE_LIMIT_EXCEEDED": 429,
        "QUOTA_EXCEEDED": 429,
        "SYSTEM_INTERNAL_ERROR": 500,
        "HISTORY_MISSING": 503,
        "SYSTEM_OVERLOADED": 503,
        "SYSTEM_STORAGE_FAILED": 503,
        "SYSTEM_SHUTTING_DOWN": 503,
    }
)

RETRY_AFTER_S: Mapping[int, int] = MappingProxyType({429: 1, 503: 2})
_CHALLENGES: Mapping[str, str] = MappingProxyType(
    {
        "AUTH_MISSING_KEY": 'Bearer realm="aitbc"',
        "AUTH_INVALID_KEY": 'Bearer realm="aitbc", error="invalid_token"',
    }
)


class FieldError(msgspec.Struct, frozen=True):
    """What is wrong with one field or parameter."""

    path: str
    """Such as `params.max_tokens` or `stop[0]`; `$` is the whole body."""
    message: str


class ErrorBody(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The JSON of every refusal."""

    detail: str
    error_code: str
    request_id: str
    errors: tuple[FieldError, ...] = ()
    expected: Mapping[str, object] | None = None


ErrorForm = Callable[[ErrorBody, int], object]
"""Makes the JSON of a refusal and its status; for paths whose clients expect another form."""


class RequestError(Exception):
    """The caller's request is refused before the market sees it."""

    def __init__(
        self,
        code: str,
        message: str,
        *,
        errors: tuple[FieldError, ...] = (),
        headers: tuple[Header, ...] = (),
    ) -> None:
        super().__init__(message)
        self.code = code
        self.errors = errors
        self.headers = headers


class ClientGoneError(Exception):
    """The client hung up in the middle of its request; nobody waits for an answer."""


def refuse_field(path: str, message: str) -> RequestError:
    """Return the refusal of one field or parameter."""
    return RequestError(
        "VALIDATION_FAILED", f"{path}: {message}", errors=(FieldError(path, message),)
    )


def _list_faults(error: RequestError | MarketError) -> tuple[FieldError, ...]:
    if isinstance(error, RequestError):
        return error.errors
    return (FieldError(error.field, error.reason),) if isinstance(error, InvalidFieldError) else ()


def build_error(error: RequestError | MarketError, request_id: str) -> ErrorBody:
    """Return what is said of a refused request."""
    return ErrorBody(
        detail=str(error),
        error_code=error.code,
        request_id=request_id,
        errors=_list_faults(error),
        expected=error.expected if isinstance(error, MarketError) else None,
    )


def show_error(body: ErrorBody, _status: int) -> object:
    """The form of every path that has none of its own."""
    return body


def answer_error(
    error: RequestError | MarketError, request_id: str, form: ErrorForm = show_error
) -> Answer:
    """Return the answer to a refused request. An unknown code is a fault of ours, a KeyError."""
    status = STATUSES[error.code]
    body = form(build_error(error, request_id), status)
    headers = list(error.headers if isinstance(error, RequestError) else ())
    if error.code in _CHALLENGES:
        headers.append((b"www-authenticate", _CHALLENGES[error.code].encode()))
    if isinstance(error, MarketError) and error.retry_after_s is not None:
        headers.append((b"retry-after", str(error.retry_after_s).encode()))
    if status in RETRY_AFTER_S and all(name != b"retry-after" for name, _ in headers):
        headers.append((b"retry-after", str(RETRY_AFTER_S[status]).encode()))
    answer = answer_json(body, status=status, headers=tuple(headers))
    return replace(answer, error_code=error.code)
