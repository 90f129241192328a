"""An account: what it is, what it earned and spent, and by which receipts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from starlette.requests import Request
from starlette.responses import Response

from explorer_ui.audits import AuditSummary, summarize_audits
from explorer_ui.errors import NotFoundError, PageError, parse_day
from explorer_ui.explain import Explanation, explain
from explorer_ui.export import Exports
from explorer_ui.paging import Slice, read_slice
from explorer_ui.receiptlist import JSON_TYPE, describe_slice
from explorer_ui.site import SECURITY_HEADERS, Address, Frame, Site
from explorer_ui.sources import Views
from ledger.encoding import encode
from ledger.views import AccountView, HeadView, ReceiptFilter

Side = Literal["client", "provider"]

_DOCUMENTS = {"json": "statement", "csv": "statement.csv", "proof": "statement/proof"}


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountPage:
    """An account with a page of its receipts."""

    account: AccountView
    side: Side
    """Which of its receipts are listed: those it earned by, or those it spent by."""
    slice: Slice
    audits: AuditSummary
    """What others found who replayed its answers."""
    role: str
    """In words: `a miner and a client`; empty where nothing of it is final."""


class Accounts:
    """Serves `/accounts/…`."""

    def __init__(self, *, site: Site, views: Views, exports: Exports) -> None:
        self._site = site
        self._views = views
        self._exports = exports

    async def page(self, request: Request) -> Response:
        """Answer `/accounts/{account}`, with `as` the side whose receipts are listed."""
        head = self._views.head()
        tag = self._site.tag(request, head)
        if (unchanged := self._site.unchanged(request, tag)) is not None:
            return unchanged
        account = self._find(request, head)
        side = _parse_side(request, account)
        page = AccountPage(
            account=account,
            side=side,
            slice=read_slice(self._views, request, _build_filter(account.account, side)),
            audits=summarize_audits(self._views, account.account),
            role=_name_role(account),
        )
        frame = Frame(
            title="Account",
            json_path=f"/accounts/{account.account}.json",
            csv_path=f"/accounts/{account.account}.csv",
            feed_path=f"/feeds/accounts/{account.account}.atom",
            data_query={"as": side},
        )
        return self._site.page("account.html", request, frame=frame, page=page, head=head, tag=tag)

    async def data(self, request: Request) -> Response:
        """Answer `/accounts/{account}.json`."""
        head = self._views.head()
        tag = self._site.tag(request, head)
        if (unchanged := self._site.unchanged(request, tag)) is not None:
            return unchanged
        account = self._find(request, head)
        side = _parse_side(request, account)
        page = read_slice(self._views, request, _build_filter(account.account, side))
        totals = self._views.audit_totals(account.account)
        body = encode({"account": account, "audits": totals, "as": side, **describe_slice(page)})
        return self._site.answer(request, body, JSON_TYPE, tag)

    async def table(self, request: Request) -> Response:
        """Answer `/accounts/{account}.csv`: all its final receipts of one side."""
        account = self._find(request, self._views.head())
        wanted = _build_filter(account.account, _parse_side(request, account))
        return await self._exports.answer(request, wanted, name="receipts.csv")

    async def statement(self, request: Request) -> Response:
        """Answer `/accounts/{account}/statement`: 303 to the API's document of a period.

        A form sends every field it has; the API takes no empty ones.
        """
        account = self._find(request, self._views.head())
        document = _DOCUMENTS.get(request.query_params.get("form", "json"))
        if document is None:
            raise PageError(
                Explanation(
                    finding="A statement comes as “json”, “csv” or “proof”.",
                    advice="Choose one of them on the account's page.",
                )
            )
        days = {name: parse_day(request, name) for name in ("from", "to")}
        given = {name: day.isoformat() for name, day in days.items() if day is not None}
        location = Address(request)(f"/v1/accounts/{account.account}/{document}", **given)
        return Response(status_code=303, headers=SECURITY_HEADERS | {"Location": location})

    def _find(self, request: Request, head: HeadView) -> AccountView:
        key = request.path_params["key"]
        account = self._views.account(key)
        if account is None:
            raise NotFoundError(explain(key, head))
        return account


def _parse_side(request: Request, account: AccountView) -> Side:
    given = request.query_params.get("as", "")
    if given == "client":
        return "client"
    if given == "provider" or account.earned_receipts or not account.spent_receipts:
        return "provider"
    return "client"


def _build_filter(account: str, side: Side) -> ReceiptFilter:
    if side == "client":
        return ReceiptFilter(client=account)
    return ReceiptFilter(provider=account)


def _name_role(account: AccountView) -> str:
    roles = {
        "an authority": account.authority is not None,
        "a former authority": account.former_authority is not None,
        "a coordinator": account.coordinates or account.coordinated_receipts > 0,
        "a miner": account.earned_receipts > 0 or bool(account.miners),
        "an auditor": account.is_auditor,
        "a client": account.spent_receipts > 0,
    }
    *others, last = ["", *(role for role, is_one in roles.items() if is_one)]
    return f"{', '.join(others[1:])} and {last}" if others[1:] else last
