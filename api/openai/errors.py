"""Refusals as clients of OpenAI's API read them, beside what every refusal here says."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from api.answers import Header
from api.errors import STATUSES, ErrorBody, RequestError, build_error

NO_RETRY: Header = (b"x-should-retry", b"false")
"""Keeps OpenAI's own clients from asking again by themselves: each time would be another job."""

# Where OpenAI has a word for the same thing; else the code is ours in lower case.
_CODES: Mapping[str, str] = {
    "AUTH_INVALID_KEY": "invalid_api_key",
    "AUTH_MISSING_KEY": "invalid_api_key",
    "MODEL_NOT_FOUND": "model_not_found",
    "RATE_LIMIT_EXCEEDED": "rate_limit_exceeded",
}
_TYPES: Mapping[int, str] = {401: "authentication_error", 403: "permission_error"}


class OpenAiError(msgspec.Struct, frozen=True, kw_only=True):
    """`error` of OpenAI's answers."""

    message: str
    type: str
    param: str | None
    code: str


class OpenAiErrorBody(ErrorBody, frozen=True, kw_only=True, omit_defaults=True):
    """The JSON of a refusal."""

    error: OpenAiError


def show_openai_error(body: ErrorBody, status: int) -> OpenAiErrorBody:
    """Return a refusal in both forms."""
    error = OpenAiError(
        message=body.detail,
        type=_find_type(status),
        param=body.errors[0].path if body.errors else None,
        code=_CODES.get(body.error_code, body.error_code.lower()),
    )
    return OpenAiErrorBody(error=error, **msgspec.structs.asdict(body))


def show_late_error(error: RequestError, request_id: str) -> OpenAiErrorBody:
    """Return the same for the middle of a stream, where there is no status any more."""
    return show_openai_error(build_error(error, request_id), STATUSES[error.code])


def _find_type(status: int) -> str:
    if status >= 500:
        return "server_error"
    if status == 429:
        return "rate_limit_error"
    return _TYPES.get(status, "invalid_request_error")
