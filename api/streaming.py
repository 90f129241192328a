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
    client = _Client(request)
    try:
        await start_answer(answer, request.id, send, close=not request.body_done)
        if request.method != "HEAD":
            await _send_pieces(answer.pieces, send, key, client)
        await send({"type": "http.response.body", "body": b"", "more_body": False})
    except asyncio.CancelledError:  # the client is lost, or the server closes
        if not client.let_go():
            await send({"type": "http.response.body", "body": b"", "more_body": False})
    except Exception as error:
        # Too late for an error answer: the connection breaks off, and the client sees that.
        log_fault(error, request)
    finally:
        client.forget()
        try:
            await answer.pieces.aclose()
        finally:
            answer.ended()


async def _send_pieces(
    pieces: AsyncGenerator[bytes, None], send: Send, key: KeyWatch, client: _Client
) -> None:
    async for piece in pieces:
        if not key.is_good():
            break
        client.begin_piece()
        await send({"type": "http.response.body", "body": piece, "more_body": True})
        client.end_piece()


class _Client:
    """Cancels the task of a stream once its client has hung up, or reads nothing any more.

    A task that waits for either of two, or a timeout, would cost more for each piece than all else
    that is done for it. So one task waits for the end, and one timer runs for the whole stream.
    """

    def __init__(self, request: Request) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._request = request
        self._loop = asyncio.get_running_loop()
        self._is_lost = False
        self._is_forgotten = False
        self._since = 0.0
        """When the piece that is being sent was begun; 0 between pieces."""
        self._gone = asyncio.ensure_future(request.wait_until_gone())
        self._gone.add_done_callback(self._hang_up)
        self._timer = self._loop.call_later(READER_TIMEOUT_S, self._look)

    def begin_piece(self) -> None:
        """Say that a piece is being sent."""
        self._since = self._loop.time()

    def end_piece(self) -> None:
        """Say that the client has taken it, or that it is in a buffer."""
        self._since = 0.0

    def let_go(self) -> bool:
        """Tell whether the client is lost, and if so let the task that was cancelled go on."""
        if self._is_lost:
            self._task.uncancel()
        return self._is_lost

    def forget(self) -> None:
        """Cancel nothing any more."""
        self._is_forgotten = True
        self._gone.cancel()
        self._timer.cancel()

    def _look(self) -> None:
        now = self._loop.time()
        if self._since and now >= self._since + READER_TIMEOUT_S:
            logger.info("request %s: the client stopped reading", self._request.id)
            self._lose()
        else:
            self._timer = self._loop.call_at((self._since or now) + READER_TIMEOUT_S, self._look)

    def _hang_up(self, gone: asyncio.Future[None]) -> None:
        if not self._is_forgotten and not gone.cancelled():
            self._lose()

    def _lose(self) -> None:
        if not self._is_lost:
            self._is_lost = True
            self._task.cancel()


def log_fault(error: Exception, request: Request) -> None:
    """Write an unexpected exception into the log, without its message and values.

    They may hold a prompt; its place does not.
    """
    place = "".join(traceback.format_tb(error.__traceback__))
    logger.error("%s in request %s:\n%s", type(error).__name__, request.id, place)
