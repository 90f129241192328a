"""Statements as they are sent: a piece at a time, each read when the client took the one before.

Nothing is held between two pieces, so a statement of any length costs a slow client's node no more
than a short one. All of it is final, so the pieces fit together whatever happens meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence

from api.ports import Views
from api.render_statement import (
    CSV_COLUMNS,
    Noun,
    render_head,
    render_lines,
    render_shares,
    write_lines,
    write_rows,
)
from ledger.views import StatementLineView, StatementView

PIECE_LINES = 500
PIECE_SHARES = 5_000
"""All receipts are sorted for each piece of these, so there are many in one."""

Write = Callable[[Sequence[StatementLineView]], bytes]
NOUNS: tuple[Noun, ...] = ("model", "counterparty")


async def write_json(views: Views, statement: StatementView) -> AsyncGenerator[bytes, None]:
    """Yield a statement as one JSON document."""
    yield render_head(statement)
    for noun in NOUNS:
        yield f',"by_{noun}":['.encode()
        comma, name = b"", ""
        while shares := await asyncio.to_thread(
            views.statement_shares, statement, noun, after=name, limit=PIECE_SHARES
        ):
            yield comma + render_shares(shares, noun)
            if len(shares) < PIECE_SHARES:
                break
            comma, name = b",", shares[-1].name
        yield b"]"
    yield b',"lines":['
    comma, after = b"", -1
    while (read := await _read(views, statement, after, render_lines)) is not None:
        piece, after = read
        yield comma + piece
        comma = b","
    yield b"]}"


async def write_csv(views: Views, statement: StatementView) -> AsyncGenerator[bytes, None]:
    """Yield the lines of a statement as CSV."""
    yield write_rows([CSV_COLUMNS])
    after = -1
    while (read := await _read(views, statement, after, write_lines)) is not None:
        piece, after = read
        yield piece


async def _read(
    views: Views, statement: StatementView, after: int, write: Write
) -> tuple[bytes, int] | None:
    """Return the lines above a leaf as they are sent, and the last one's leaf; None at the end."""

    def read() -> tuple[bytes, int] | None:
        lines = views.statement_lines(statement, after=after, limit=PIECE_LINES)
        return (write(lines), lines[-1].line.leaf) if lines else None

    return await asyncio.to_thread(read)
