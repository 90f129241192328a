"""Statements of accounts: what one earned and spent in a period, as JSON, as CSV, and its proof.

A statement has as many lines as there are: it is read and written a piece at a time, in a thread,
each when the client has taken the one before. Its proof is one document, and bounded.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial

from api.answers import JSON, Answer, Stream, link
from api.errors import RequestError, refuse_field
from api.ports import Views
from api.render import format_time
from api.requests import Request
from api.resource import Handler, Operation
from api.statement_stream import write_csv, write_json
from api.waiting import Places
from ledger.encoding import MAX_INTEGER
from ledger.errors import StatementTooLongError
from ledger.statement import MAX_STATEMENT_LINES
from ledger.views import StatementView

MAX_AT_ONCE = 16
"""Statements that are made at the same time, half of them for callers without a key."""

CSV = b"text/csv; charset=utf-8; header=present"

_ACCOUNT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:@-]{0,127}")
_MOMENT = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
    r"(?:T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,3})?(?:Z|[+-][0-9]{2}:[0-9]{2}))?"
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class StatementEndpoints:
    """`/v1/accounts`: reads that anybody may do, of final receipts only."""

    def __init__(self, views: Views) -> None:
        self._views = views
        self._places = Places(MAX_AT_ONCE)

    def paths(self) -> Mapping[str, Mapping[str, Operation]]:
        """Return the operations by path."""
        handlers: dict[str, Handler] = {
            "/v1/accounts/{account}/statement": self.show,
            "/v1/accounts/{account}/statement.csv": self.show_csv,
            "/v1/accounts/{account}/statement/proof": self.show_proof,
        }
        return {path: {"GET": Operation(handler=handler)} for path, handler in handlers.items()}

    async def show(self, request: Request) -> Stream:
        """`GET /v1/accounts/{account}/statement`."""
        account = parse_account(request)

        def begin(statement: StatementView) -> Stream:
            links = {"alternate": _address(request, account, "statement.csv")}
            if not statement.is_empty:
                links["describedby"] = _address(request, account, "statement/proof")
            return Stream(
                pieces=write_json(self._views, statement),
                content_type=JSON,
                headers=link(links),
            )

        return await self._stream(request, begin)

    async def show_csv(self, request: Request) -> Stream:
        """`GET /v1/accounts/{account}/statement.csv`: the lines alone."""
        account = parse_account(request)
        name = _name_file(account, "statement.csv")
        return await self._stream(
            request,
            lambda statement: Stream(
                pieces=write_csv(self._views, statement), content_type=CSV, headers=(name,)
            ),
        )

    async def show_proof(self, request: Request) -> Answer:
        """`GET /v1/accounts/{account}/statement/proof`: the canonical bundle, to be kept."""
        account, from_ms, to_ms = _parse(request)
        read = partial(self._views.statement_bundle, account, from_ms=from_ms, to_ms=to_ms)
        with self._places.hold(request.caller, request.payer):
            try:
                bundle = await asyncio.to_thread(read)
            except StatementTooLongError as error:
                raise _refuse_length(error) from error
        if bundle is None:
            raise RequestError(
                "RECEIPT_NOT_FOUND", "this account has no final receipt in this period to prove"
            )
        return Answer(body=bundle, headers=(_name_file(account, "statement.proof.json"),))

    async def _stream(self, request: Request, begin: Callable[[StatementView], Stream]) -> Stream:
        """Begin a stream, whose place is held until it ends."""
        account, from_ms, to_ms = _parse(request)
        free = self._places.take(request.caller, request.payer)
        try:
            statement = await asyncio.to_thread(
                self._views.statement, account, from_ms=from_ms, to_ms=to_ms
            )
        except BaseException:
            free()
            raise
        return replace(begin(statement), ended=free)


def parse_account(request: Request) -> str:
    """Return the account in the path.

    Raises:
        RequestError: VALIDATION_FAILED, it can be none.
    """
    account = request.path_id
    if not _ACCOUNT.fullmatch(account):
        raise refuse_field(
            "account",
            "expected a client, an account or a miner's name: a letter or digit, then at most 127 "
            "letters, digits and _ . : @ -",
        )
    return account


def _parse(request: Request) -> tuple[str, int, int]:
    """Return the account and the period [from_ms, to_ms); what is not given stays open."""
    account = parse_account(request)
    from_ms, to_ms = _parse_moment(request, "from", 0), _parse_moment(request, "to", MAX_INTEGER)
    if from_ms >= to_ms:
        raise refuse_field("to", "expected a time after from")
    return account, from_ms, to_ms


def _parse_moment(request: Request, name: str, default: int) -> int:
    """Return a date (its midnight in UTC) or a time as Unix milliseconds; at least 0."""
    text = request.text(name)
    if text is None:
        return default
    refusal = refuse_field(
        name, "expected a date or time of RFC 3339, such as 2026-01-31 or 2026-01-31T12:00:00.000Z"
    )
    if not _MOMENT.fullmatch(text):
        raise refusal
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise refusal from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0, (moment - _EPOCH) // timedelta(milliseconds=1))


def _refuse_length(error: StatementTooLongError) -> RequestError:
    if error.fits_until_ms is None:
        return refuse_field(
            "from", f"one block holds more than {MAX_STATEMENT_LINES} lines of this account"
        )
    return refuse_field(
        "to",
        f"the period has more than {MAX_STATEMENT_LINES} lines, choose a shorter one: "
        f"to={format_time(error.fits_until_ms)} still fits",
    )


def _address(request: Request, account: str, document: str) -> str:
    """Return the address of another document of the same account and period."""
    return request.address(f"/v1/accounts/{account}/{document}").removesuffix("?")


def _name_file(account: str, suffix: str) -> tuple[bytes, bytes]:
    # Colons have no place in the file names of some systems.
    name = account.replace(":", "_")
    return b"content-disposition", f'attachment; filename="{name}.{suffix}"'.encode()
