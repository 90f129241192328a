"""Lists as CSV, written while they are read: of any length, in little memory.

Rows are read and written a page at a time in a thread, the next page when the client has taken the
one before. Between two pages nothing is held, so a slow client holds up nobody.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from starlette.requests import Request
from starlette.responses import Response

from explorer_ui.lines import COLUMNS, build_line, write_csv, write_lines
from explorer_ui.site import SECURITY_HEADERS
from explorer_ui.sources import Views
from explorer_ui.streaming import HeldStream, Places
from ledger.views import MAX_PAGE, ReceiptFilter, ReceiptView

MAX_EXPORTS = 8
"""At the same time; the next one is asked to come back."""
MAX_EXPORTS_PER_CLIENT = 2
CSV_TYPE = "text/csv; charset=utf-8; header=present"


class Exports:
    """Writes receipts of a node as CSV."""

    def __init__(self, views: Views) -> None:
        self._views = views
        self._places = Places(total=MAX_EXPORTS, per_client=MAX_EXPORTS_PER_CLIENT)

    async def answer(self, request: Request, wanted: ReceiptFilter, *, name: str) -> Response:
        """Answer with all final receipts that a filter lets through, newest first.

        Raises:
            HistoryMissingError: the filter has a period, and blocks are missing.
        """
        headers = SECURITY_HEADERS | {"Cache-Control": "no-store"}
        give_back = self._places.take(request)
        if give_back is None:
            headers["Retry-After"] = "10"
            return Response("too many lists are being written; try again\n", 503, headers)
        try:
            first = await asyncio.to_thread(self._read, wanted, None)
        except BaseException:
            give_back()
            raise
        headers["Content-Disposition"] = f'attachment; filename="{name}"'
        pieces = self._pieces(wanted, first)
        return HeldStream(pieces, headers=headers, media_type=CSV_TYPE, give_back=give_back)

    async def _pieces(
        self, wanted: ReceiptFilter, first: tuple[bytes, int | None]
    ) -> AsyncIterator[bytes]:
        yield write_csv([COLUMNS])
        piece, before = first
        while before is not None:
            if piece:
                yield piece
            piece, before = await asyncio.to_thread(self._read, wanted, before)

    def _read(self, wanted: ReceiptFilter, before: int | None) -> tuple[bytes, int | None]:
        """Return the next receipts as they are sent, and the last one's cursor; None at the end."""
        rows = self._views.receipts(wanted, limit=MAX_PAGE, before=before)
        if not rows:
            return b"", None
        return write_lines(map(build_line, _choose_final(rows))), rows[-1].transaction.cursor


def _choose_final(rows: list[ReceiptView]) -> list[ReceiptView]:
    # One that waits may be final before the end, and would be in the file twice.
    return [row for row in rows if row.transaction.finality == "final"]
