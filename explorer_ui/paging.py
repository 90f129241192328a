"""Pages of a list of receipts: where one begins, and what leads on from it.

A page goes on from a row, not from a number of rows, so it holds the same receipts whatever comes
in above it. Going up past the top shows the newest page whole.
"""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request

from explorer_ui.errors import parse_position
from explorer_ui.sources import Views
from ledger.views import ReceiptFilter, ReceiptView

PAGE_ROWS = 25


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """A page of receipts and its neighbours."""

    receipts: list[ReceiptView]
    newest: bool
    """Whether it begins at the top."""
    newer: int | None
    """`after` of the page above, None at the top and on a page without rows."""
    older: int | None
    """`before` of the page below, None at the end."""


def read_slice(views: Views, request: Request, wanted: ReceiptFilter) -> Slice:
    """Return the page that an address names by `before` or `after`."""
    before, after = parse_position(request, "before"), parse_position(request, "after")
    if after is not None:
        # One more than is shown tells whether there is anything above.
        rows = views.receipts(wanted, limit=PAGE_ROWS + 1, after=after)
        if len(rows) > PAGE_ROWS:
            return _cut(rows[1:], newest=False, is_last=False)
        before = None
    rows = views.receipts(wanted, limit=PAGE_ROWS + 1, before=before)
    shown = rows[:PAGE_ROWS]
    return _cut(shown, newest=before is None, is_last=len(rows) == len(shown))


def _cut(rows: list[ReceiptView], *, newest: bool, is_last: bool) -> Slice:
    cursors = [row.transaction.cursor for row in rows]
    return Slice(
        receipts=rows,
        newest=newest,
        newer=cursors[0] if cursors and not newest else None,
        older=cursors[-1] if cursors and not is_last else None,
    )
