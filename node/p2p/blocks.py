"""`GET /p2p/blocks?from=H`: the chain's final blocks from height H on, as frames.

Followers and members that fell behind read here. The bytes are those of ledger.db, read in steps
so short that nothing else in the event loop waits for them. An answer ends after so many blocks,
bytes or seconds, always between two frames; whoever wants more asks again. Above the tip a caller
may wait for the next block.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
from starlette.datastructures import QueryParams
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from explorer_ui import ClosingError, HeadWatch
from ledger.block import hash_genesis
from ledger.errors import InvalidMessageError
from ledger.store.chain import ChainStore
from ledger.store.reading import find_missing
from node.p2p.address import BLOCKS_PATH
from node.p2p.frames import (
    GENESIS_HEADER,
    HEIGHT_HEADER,
    LENGTH_BYTES,
    SEPARATOR,
    frame_timeout_s,
)

MAX_WAIT_MS = 30_000
MAX_REQUESTS = 256
"""Answers under way and callers that wait, together; one more is refused with 503."""
MAX_BLOCKS = 10_000
MAX_BYTES = 32 << 20
"""An answer ends after the block that makes it longer than this."""
MAX_SECONDS = 20.0
"""An answer ends after the block that makes it last longer than this."""
STEP_BYTES = 128 * 1024
"""Read and sent at a time; then the event loop has its turn."""
STEP_ROWS = 64
RETRY_AFTER_S = 2
_UNAVAILABLE = 503

_NUMBER = re.compile(r"[0-9]{1,15}")


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockRequest:
    """What a caller asked for."""

    first: int
    wait_ms: int
    limit: int


def build_block_route(chain: ChainStore, head: HeadWatch) -> Route:
    """Return the route of the block stream."""
    return Route(BLOCKS_PATH, BlockStream(chain, head), methods=["GET"])


def parse_block_request(query: QueryParams) -> BlockRequest:
    """Parse the query of a request.

    Raises:
        InvalidMessageError: a parameter is missing or out of bounds.
    """
    return BlockRequest(
        first=_number(query, "from", None, 1, 10**15 - 1),
        wait_ms=_number(query, "wait_ms", 0, 0, MAX_WAIT_MS),
        limit=_number(query, "limit", MAX_BLOCKS, 1, MAX_BLOCKS),
    )


def _number(query: QueryParams, name: str, default: int | None, low: int, high: int) -> int:
    text = query.get(name)
    if text is None and default is not None:
        return default
    if text is None or not _NUMBER.fullmatch(text) or not low <= int(text) <= high:
        raise InvalidMessageError(f"{name}: expected an integer from {low} to {high}")
    return int(text)


class BlockStream:
    """The endpoint, as an ASGI application."""

    def __init__(self, chain: ChainStore, head: HeadWatch) -> None:
        self._chain = chain
        self._head = head
        self._genesis = hash_genesis(chain.genesis).hex().encode()
        self._requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        try:
            request = parse_block_request(QueryParams(scope["query_string"]))
        except InvalidMessageError as error:
            await _refuse(send, 400, "VALIDATION_FAILED", str(error))
            return
        if self._requests >= MAX_REQUESTS:
            await _refuse(send, 503, "SYSTEM_OVERLOADED", "too many callers read blocks")
            return
        self._requests += 1
        gone = asyncio.create_task(_wait_until_gone(receive))
        try:
            await self._answer(request, send, gone)
        except ClosingError:
            await _refuse(send, 503, "SYSTEM_SHUTTING_DOWN", "this node is shutting down")
        finally:
            self._requests -= 1
            gone.cancel()

    async def _answer(self, request: BlockRequest, send: Send, gone: asyncio.Task[None]) -> None:
        if self._read_height(request.first) < request.first and request.wait_ms:
            await self._wait(request, gone)
        headers = (
            (b"content-type", b"application/octet-stream"),
            (b"cache-control", b"no-store"),
            (b"x-content-type-options", b"nosniff"),
            (GENESIS_HEADER.encode(), self._genesis),
            (HEIGHT_HEADER.encode(), str(self._read_height(request.first)).encode()),
        )
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        # A caller that stops reading is dropped in the middle of its answer.
        with contextlib.suppress(TimeoutError):
            await self._send_blocks(request, send, gone)
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _wait(self, request: BlockRequest, gone: asyncio.Task[None]) -> None:
        """Wait until the first block wanted is there, the time is over, or the caller has left."""
        waiting = asyncio.ensure_future(self._head.wait(request.first - 1))
        try:
            done, _ = await asyncio.wait(
                {waiting, gone},
                timeout=request.wait_ms / 1000,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if waiting in done:
                waiting.result()
        finally:
            waiting.cancel()

    async def _send_blocks(
        self, request: BlockRequest, send: Send, gone: asyncio.Task[None]
    ) -> None:
        now = asyncio.get_running_loop().time
        sent_bytes, ends_at, deadline = 0, now() + MAX_SECONDS, now() + frame_timeout_s(0)
        step = bytearray()
        for height in range(request.first, request.first + request.limit):
            frame = read_frame(self._chain.database.reader, height)
            if frame is None or sent_bytes >= MAX_BYTES or now() >= ends_at:
                break
            sent_bytes += frame.size_bytes
            deadline = now() + frame_timeout_s(frame.size_bytes)
            for piece in frame.pieces:
                step += piece
                if len(step) >= STEP_BYTES:
                    await _send_step(send, step, deadline)
                if gone.done():
                    return
        await _send_step(send, step, deadline)

    def _read_height(self, first: int) -> int:
        """Return up to which height there are blocks from `first` on, or from below it."""
        reader = self._chain.database.reader
        (newest,) = reader.execute("SELECT coalesce(max(height), 0) FROM blocks").fetchone()
        missing = find_missing(reader)
        if missing and first <= missing[-1]:
            return missing[0] - 1
        return max(newest, missing[-1]) if missing else int(newest)


@dataclass(frozen=True, slots=True)
class StoredFrame:
    """A frame that is read from ledger.db piece by piece."""

    size_bytes: int
    """With its prefix."""
    pieces: Iterator[bytes]


def read_frame(connection: sqlite3.Connection, height: int) -> StoredFrame | None:
    """Return the frame of the block at `height`, or None above the tip."""
    row = connection.execute(
        "SELECT first_leaf, transactions, size_bytes, CAST(header AS BLOB),"
        " CAST(certificate AS BLOB) FROM blocks WHERE height = ?",
        (height,),
    ).fetchone()
    if row is None:
        return None
    first_leaf, count, envelopes_bytes, header, certificate = row
    head = header + SEPARATOR + certificate
    size_bytes = len(head) + count + envelopes_bytes
    head = size_bytes.to_bytes(LENGTH_BYTES, "big") + head
    return StoredFrame(
        LENGTH_BYTES + size_bytes, _read_pieces(connection, head, first_leaf, first_leaf + count)
    )


def _read_pieces(
    connection: sqlite3.Connection, head: bytes, first_leaf: int, end_leaf: int
) -> Iterator[bytes]:
    # Each query ends before the next piece is asked for: no read stays open while a caller is slow.
    yield head
    for leaf in range(first_leaf, end_leaf, STEP_ROWS):
        rows = connection.execute(
            "SELECT CAST(envelope AS BLOB) FROM transactions WHERE leaf >= ? AND leaf < ?"
            " ORDER BY leaf",
            (leaf, min(leaf + STEP_ROWS, end_leaf)),
        ).fetchall()
        yield b"".join(SEPARATOR + row[0] for row in rows)


async def _send_step(send: Send, step: bytearray, deadline: float) -> None:
    async with asyncio.timeout_at(deadline):
        await send({"type": "http.response.body", "body": bytes(step), "more_body": True})
        step.clear()
        # A server with room in its buffers does not wait, and then nobody else had a turn.
        await asyncio.sleep(0)


async def _wait_until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _refuse(send: Send, status: int, code: str, detail: str) -> None:
    body = msgspec.json.encode({"detail": detail, "error_code": code})
    headers = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]
    if status == _UNAVAILABLE:
        headers.append((b"retry-after", str(RETRY_AFTER_S).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
