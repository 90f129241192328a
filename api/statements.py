"""Statements of accounts: what one earned and spent in a period, as JSON, as CSV, and its proof.

A statement is bounded but not short, so it is read and written in a thread of its own, and only a
few at a time.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta

from api.answers import Answer, answer_json, link
from api.errors import RequestError, refuse_field
from api.ports import Views
from api.render import format_time
from api.render_statement import render_statement, write_csv
from api.requests import Request
from api.resource import Operation
from ledger.encoding import MAX_INTEGER
from ledger.errors import StatementTooLongError
from ledger.statement import MAX_STATEMENT_LINES

MAX_AT_ONCE = 4
"""Statements that are made at the same time; the next one is asked to come back."""

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
        self._running = 0

    def paths(self) -> Mapping[str, Mapping[str, Operation]]:
        """Return the operations by path."""
        handlers = {
            "/v1/accounts/{account}/statement": self.show,
            "/v1/accounts/{account}/statement.csv": self.show_csv,
            "/v1/accounts/{account}/statement/proof": self.show_proof,
        }
        return {path: {"GET": Operation(handler=handler)} for path, handler in handlers.items()}

    async def show(self, request: Request) -> Answer:
        """`GET /v1/accounts/{account}/statement`."""
        account, from_ms, to_ms = _parse(request)

        def build() -> Answer:
            statement = self._views.statement(account, from_ms=from_ms, to_ms=to_ms)
            links = {"alternate": _address(request, account, "statement.csv")}
            if statement.lines:
                links["describedby"] = _address(request, account, "statement/proof")
            return answer_json(render_statement(statement), headers=link(links))

        return await self._run(build)

    async def show_csv(self, request: Request) -> Answer:
        """`GET /v1/accounts/{account}/statement.csv`: the lines alone."""
        account, from_ms, to_ms = _parse(request)

        def build() -> Answer:
            statement = self._views.statement(account, from_ms=from_ms, to_ms=to_ms)
            return Answer(
                body=write_csv(statement),
                content_type=CSV,
                headers=(_name_file(account, "statement.csv"),),
            )

        return await self._run(build)

    async def show_proof(self, request: Request) -> Answer:
        """`GET /v1/accounts/{account}/statement/proof`: the canonical bundle, to be kept."""
        account, from_ms, to_ms = _parse(request)

        def build() -> Answer:
            bundle = self._views.statement_bundle(account, from_ms=from_ms, to_ms=to_ms)
            if bundle is None:
                raise RequestError(
                    "RECEIPT_NOT_FOUND", "this account has no final receipt in this period to prove"
                )
            return Answer(body=bundle, headers=(_name_file(account, "statement.proof.json"),))

        return await self._run(build)

    async def _run(self, build: Callable[[], Answer]) -> Answer:
        if self._running >= MAX_AT_ONCE:
            raise RequestError("SYSTEM_OVERLOADED", "too many statements are being made; try again")
        self._running += 1
        try:
            return await asyncio.to_thread(build)
        except StatementTooLongError as error:
            raise _refuse_length(error) from error
        finally:
            self._running -= 1


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
