"""Streams: an answer that is sent piece by piece, for as long as its client stays and reads."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import AsyncGenerator

from starlette.types import Send

from api.access import KeyWatch
from api.answers import Stream, start_answer
from api.requests import Request

READER_TIMEOUT_S = 60.0
"""A client of a stream that takes no byte for so long is dropped."""

logger = logging.getLogger("aitbc.api")


async def send_stream(answer: Stream, request: Request, send: Send, key: KeyWatch) -> None:
    """Send pieces as they come, until there are no more.

    It ends sooner if the client hangs up or reads nothing, its key is revoked, or the node ends.
    """
    request.answer = answer
    try:
        await start_answer(answer, request.id, send, close=not request.body_done)
        is_whole = request.method == "HEAD" or await _send_while_there(answer, request, send, key)
        if is_whole:
            await send({"type": "http.response.body", "body": b"", "more_body": False})
    except asyncio.CancelledError:  # the server closes
        await send({"type": "http.response.body", "body": b"", "more_body": False})
    except Exception as error:
        # Too late for an error answer: the connection breaks off, and the client sees that.
        log_fault(error, request)
    finally:
        try:
            await answer.pieces.aclose()
        finally:
            answer.ended()


async def _send_while_there(answer: Stream, request: Request, send: Send, key: KeyWatch) -> bool:
    """Send all pieces; False if the client has hung up, or reads nothing any more.

    A task of its own sends them, which waits for nothing but the next piece, and is woken without
    waking all that stands between the server and this place. Another one waits for the end.
    """
    sending = asyncio.ensure_future(_send_pieces(answer.pieces, request, send, key))
    gone = asyncio.ensure_future(request.wait_until_gone())
    both: set[asyncio.Future[None]] = {sending, gone}
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in both:
            task.cancel()
        await asyncio.wait(both)
    if sending.cancelled():
        return False
    sending.result()
    return True


async def _send_pieces(
    pieces: AsyncGenerator[bytes, None], request: Request, send: Send, key: KeyWatch
) -> None:
    """Send pieces until there are no more; cancelled if the client takes nothing for long."""
    patience = _Patience(request)
    try:
        async for piece in pieces:
            if not key.is_good():
                break
            patience.begin_piece()
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            patience.end_piece()
    finally:
        patience.end()


class _Patience:
    """Cancels the task in which a stream is sent once its client reads nothing any more.

    A timeout for each piece would cost more than all else that is done for it, so one timer runs
    for the whole stream.
    """

    def __init__(self, request: Request) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._request = request
        self._loop = asyncio.get_running_loop()
        self._since = 0.0
        """When the piece that is being sent was begun; 0 between pieces."""
        self._timer = self._loop.call_later(READER_TIMEOUT_S, self._look)

    def begin_piece(self) -> None:
        """Say that a piece is being sent."""
        self._since = self._loop.time()

    def end_piece(self) -> None:
        """Say that the client has taken it, or that it is in a buffer."""
        self._since = 0.0

    def end(self) -> None:
        """Cancel nothing any more."""
        self._timer.cancel()

    def _look(self) -> None:
        now = self._loop.time()
        if self._since and now >= self._since + READER_TIMEOUT_S:
            logger.info("request %s: the client stopped reading", self._request.id)
            self._task.cancel()
        else:
            self._timer = self._loop.call_at((self._since or now) + READER_TIMEOUT_S, self._look)


def log_fault(error: Exception, request: Request) -> None:
    """Write an unexpected exception into the log, without its message and values.

    They may hold a prompt; its place does not.
    """
    place = "".join(traceback.format_tb(error.__traceback__))
    logger.error("%s in request %s:\n%s", type(error).__name__, request.id, place)
