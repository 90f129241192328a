"""What schemathesis is told about this API, loaded into its process.

Three kinds of failures are dropped, each only where this API promises what was answered:

- The reference bounds hardly any field of a request, a superset may not bound them either, and so a
  value that is out of range is valid by the document. It is refused with a 400 that names the
  field, or the rule of a signed whole that is broken.
- `null` counts as absent where a field is optional. The served document says so; the reference does
  not, and a body is taken that is valid but for its nulls.
- A job that was just made is there, though a request about it that names an unknown miner is
  answered with MINER_NOT_FOUND.

Everything else that schemathesis finds is a failure.
"""

from __future__ import annotations

import itertools
from typing import Any

import schemathesis
from requests.structures import CaseInsensitiveDict
from schemathesis.core.failures import AcceptedNegativeData
from schemathesis.core.jsonschema import make_validator
from schemathesis.openapi.checks import EnsureResourceAvailability, RejectedPositiveData

from api.errors import STATUSES

SIGNED_WHOLES = frozenset(
    {
        "RECEIPT_MISMATCH",
        "RECEIPT_INVALID_SIGNATURE",
        "TRANSACTION_INVALID",
        "TRANSACTION_TYPE_REFUSED",
    }
)


@schemathesis.hook
def map_query(context, query):
    """Wait for nothing: a long poll does what the document says, only later."""
    if query and str(query.get("wait", "")).lstrip("+").isdigit():
        return {**query, "wait": 0}
    return query


_numbers = itertools.count()


@schemathesis.hook
def before_call(context, case, kwargs) -> None:
    """Never repeat an Idempotency-Key: with another body nothing else would be looked at."""
    key = (case.headers or {}).get("Idempotency-Key")
    if key:
        case.headers["Idempotency-Key"] = f"{key}{next(_numbers)}"


@schemathesis.hook
def filter_failure(context, failure, case, response) -> bool:
    """Keep a failure, unless the answer is what this API promises."""
    if isinstance(failure, RejectedPositiveData):
        return not explains(response)
    if isinstance(failure, AcceptedNegativeData):
        return not is_valid_without_nulls(case)
    if isinstance(failure, EnsureResourceAvailability):
        return not misses_another(case, response)
    return True


def explains(response: Any) -> bool:
    """Tell whether a 400 names the field that is out of bounds, or the rule that is broken."""
    error = read_error(response) if response.status_code == 400 else {}
    return error.get("error_code") in SIGNED_WHOLES or bool(error.get("errors"))


def misses_another(case: Any, response: Any) -> bool:
    """Tell whether a 404 is about something else than what the address names."""
    named = {f"{name.removesuffix('_id').upper()}_NOT_FOUND" for name in case.path_parameters or ()}
    return read_error(response).get("error_code") not in named | {None, "PATH_NOT_FOUND"}


def is_valid_without_nulls(case: Any) -> bool:
    """Tell whether the nulls of a body are all that its schema has against it."""
    body = case.operation.get_body_for_media_type(case.media_type)
    given = drop_nulls(case.body)
    if body is None or given == case.body:
        return False
    validator = case.operation.schema.adapter.jsonschema_validator_cls
    return make_validator(body.validation_schema, validator).is_valid(given)


def drop_nulls(value: Any) -> Any:
    """Return JSON without the fields that are null."""
    if isinstance(value, dict):
        return {name: drop_nulls(field) for name, field in value.items() if field is not None}
    return value


def read_error(response: Any) -> dict[str, Any]:
    """Return the JSON object of a refusal, or an empty one."""
    if not CaseInsensitiveDict(response.headers).get("content-type"):
        return {}
    try:
        body = response.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


@schemathesis.check
def refusals_are_errors(ctx, response, case) -> None:
    """Every answer has a request id; every refusal names a code that belongs to its status."""
    given = response.headers.get("x-request-id")
    assert given, "the answer has no X-Request-Id"
    if response.status_code < 400 or case.method == "HEAD":
        return
    error = read_error(response)
    code = error.get("error_code")
    assert code in STATUSES, f"error_code {code!r} is not documented"
    assert STATUSES[code] == response.status_code, f"{code} was sent as {response.status_code}"
    assert error["request_id"] == given[0], "request_id is not the X-Request-Id"
    assert error["detail"], "detail is empty"
    assert code != "VALIDATION_FAILED" or error["errors"], "no field is named"
