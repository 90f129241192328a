"""The list of receipts, narrowed by model, miner, client and time, and the same as data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime

from starlette.requests import Request
from starlette.responses import Response

from explorer_ui.errors import PageError, parse_day, parse_name
from explorer_ui.explain import Explanation
from explorer_ui.export import Exports
from explorer_ui.lines import build_line
from explorer_ui.paging import Slice, read_slice
from explorer_ui.site import Frame, Site
from explorer_ui.sources import Views
from ledger.encoding import encode
from ledger.views import ReceiptFilter, StatsView

JSON_TYPE = "application/json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The filters of a list as given; empty where open."""

    model: str
    miner: str
    client: str
    first_day: date | None
    """Of UTC, by the time of the receipt's block."""
    end_day: date | None
    """Exclusive."""

    @property
    def query(self) -> dict[str, str]:
        """The parameters that choose the same again."""
        return {
            "model": self.model,
            "miner": self.miner,
            "client": self.client,
            "from": self.first_day.isoformat() if self.first_day else "",
            "to": self.end_day.isoformat() if self.end_day else "",
        }

    @property
    def is_narrow(self) -> bool:
        """Whether any filter narrows the list."""
        return any(self.query.values())

    def build_filter(self) -> ReceiptFilter:
        """Return what to ask the ledger for."""
        return ReceiptFilter(
            model=self.model or None,
            provider=self.miner or None,
            client=self.client or None,
            from_ms=_find_midnight(self.first_day),
            to_ms=_find_midnight(self.end_day),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiptsPage:
    """One page of the list of receipts."""

    slice: Slice
    choice: Choice
    stats: StatsView


class ReceiptList:
    """Serves `/receipts` and its twins."""

    def __init__(
        self, *, site: Site, views: Views, exports: Exports, clock_ms: Callable[[], int]
    ) -> None:
        self._site = site
        self._views = views
        self._exports = exports
        self._clock_ms = clock_ms

    async def page(self, request: Request) -> Response:
        """Answer `/receipts`, newest first."""
        head = self._views.head()
        tag = self._site.tag(request, head)
        if (unchanged := self._site.unchanged(request, tag)) is not None:
            return unchanged
        choice = _parse_choice(request)
        page = ReceiptsPage(
            slice=read_slice(self._views, request, choice.build_filter()),
            choice=choice,
            stats=self._views.stats(self._clock_ms()),
        )
        frame = Frame(
            title="Receipts",
            section="receipts",
            json_path="/receipts.json",
            csv_path="/receipts.csv",
            feed_path="/feeds/receipts.atom",
            data_query=choice.query,
        )
        return self._site.page("receipts.html", request, frame=frame, page=page, head=head, tag=tag)

    async def data(self, request: Request) -> Response:
        """Answer `/receipts.json`: a page of the list; `older` and `newer` lead on."""
        tag = self._site.tag(request, self._views.head())
        if (unchanged := self._site.unchanged(request, tag)) is not None:
            return unchanged
        page = read_slice(self._views, request, _parse_choice(request).build_filter())
        body = encode(describe_slice(page))
        return self._site.answer(request, body, JSON_TYPE, tag)

    async def table(self, request: Request) -> Response:
        """Answer `/receipts.csv`: the whole list, as far as it is final."""
        wanted = _parse_choice(request).build_filter()
        return await self._exports.answer(request, wanted, name="receipts.csv")


def describe_slice(page: Slice) -> dict[str, object]:
    """Return a page of receipts as data."""
    return {
        "receipts": [build_line(receipt) for receipt in page.receipts],
        "newer": page.newer,
        "older": page.older,
    }


def _parse_choice(request: Request) -> Choice:
    model, miner, client = (parse_name(request, name) for name in ("model", "miner", "client"))
    first, end = parse_day(request, "from"), parse_day(request, "to")
    if first is not None and end is not None and first >= end:
        raise PageError(
            Explanation(
                finding="The period ends before it begins.",
                advice="It goes from the first day up to, but without, the last one: 2026-01-01 to "
                "2026-02-01 is January.",
            )
        )
    return Choice(model=model, miner=miner, client=client, first_day=first, end_day=end)


def _find_midnight(day: date | None) -> int | None:
    if day is None:
        return None
    midnight = datetime(day.year, day.month, day.day, tzinfo=UTC)
    return max(0, int(midnight.timestamp()) * 1000)
