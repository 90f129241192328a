"""Sources of blocks: other nodes, none of which is trusted with anything but time.

A source that breaks a rule or stalls is at fault: it is left alone for a while, twice as long after
each further fault, and the next one is asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import httpx2

from ledger.block import Limits
from ledger.errors import LedgerError
from node.p2p.blocks import PATH
from node.p2p.frames import (
    GENESIS_HEADER,
    HEIGHT_HEADER,
    FrameSplitter,
    frame_timeout_s,
    max_frame_bytes,
)

HEAD_TIMEOUT_S = 10.0
"""What the head of an answer may take, on top of the time it was asked to wait."""
FIRST_PAUSE_S = 1.0
MAX_PAUSE_S = 60.0
MAX_URL_LENGTH = 256
MAX_ERROR_LENGTH = 300

_HEIGHT = re.compile(r"[0-9]{1,15}")


class PeerError(LedgerError):
    """The other node is at fault: it answers wrongly, slowly or not at all."""


class SyncSource:
    """One node to read from, and how it behaved."""

    def __init__(self, url: str) -> None:
        self.url = parse_url(url)
        self.retry_at_s = 0.0
        """Not asked before this moment of the loop's clock."""
        self.is_known = False
        """Whether it has answered well since it was last at fault."""
        self._faults = 0

    def note_fault(self, now_s: float) -> None:
        """Leave it alone for a while."""
        self.is_known = False
        self.retry_at_s = now_s + min(FIRST_PAUSE_S * 2**self._faults, MAX_PAUSE_S)
        self._faults = min(self._faults + 1, 16)

    def note_success(self) -> None:
        """Forget its faults."""
        self.is_known = True
        self._faults = 0


def parse_url(text: str) -> str:
    """Return the address of a node without its last slash.

    Raises:
        PeerError: not `http://host` or `https://host`, with a port and a path perhaps.
    """
    try:
        parts = urlsplit(text)
        plain = parts.scheme in {"http", "https"} and bool(parts.hostname)
        plain = plain and (parts.port is None or parts.port > 0)
    except ValueError:
        plain = False
    # What stands before an @ is a password, which would end up in logs and on pages.
    if "@" in text:
        raise PeerError("address of a node: expected http(s)://host:port without user or password")
    if not plain or parts.query or parts.fragment or not text.isascii():
        raise PeerError(f"address of a node: expected http(s)://host:port, got {text[:80]!r}")
    if len(text) > MAX_URL_LENGTH or not text.isprintable():
        raise PeerError(f"address of a node: expected at most {MAX_URL_LENGTH} characters")
    return text.rstrip("/")


class BlockAnswer:
    """The answer of a source: what it says of itself, and its frames."""

    def __init__(self, response: httpx2.Response, *, genesis_hash: bytes, limits: Limits) -> None:
        _check_head(response, genesis_hash)
        self.height = _read_height(response)
        """What the source says its newest final height is."""
        self._response = response
        self._splitter = FrameSplitter(max_frame_bytes(limits))

    async def frames(self) -> AsyncIterator[list[bytes]]:
        """Yield frames as they arrive.

        Raises:
            PeerError: the stream breaks off or stalls.
            InvalidMessageError: it is not made of frames.
        """
        now = asyncio.get_running_loop().time
        chunks = self._response.aiter_raw()
        began = now()
        while True:
            # The time is that of the whole frame, so a trickle of bytes gains nothing.
            patience_s = frame_timeout_s(self._splitter.wanted_bytes)
            try:
                async with asyncio.timeout_at(began + patience_s):
                    chunk = await anext(chunks, None)
            except TimeoutError:
                raise PeerError(f"stream: no whole frame within {patience_s:.0f} s") from None
            if chunk is None:
                break
            if frames := self._splitter.feed(chunk):
                yield frames
                began = now()
        self._splitter.close()


@contextlib.asynccontextmanager
async def ask_for_blocks(
    client: httpx2.AsyncClient,
    source: SyncSource,
    *,
    first: int,
    wait_ms: int,
    limit: int,
    genesis_hash: bytes,
    limits: Limits,
) -> AsyncIterator[BlockAnswer]:
    """Ask a source for at most `limit` blocks from height `first` on.

    Raises:
        PeerError: it cannot be reached, refuses, or has another chain.
    """
    query = {"from": str(first), "wait_ms": str(wait_ms), "limit": str(limit)}
    request = client.build_request("GET", source.url + PATH, params=query)
    try:
        async with asyncio.timeout(wait_ms / 1000 + HEAD_TIMEOUT_S):
            response = await client.send(request, stream=True)
    except TimeoutError:
        raise PeerError("it does not answer in time") from None
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise PeerError(f"it cannot be reached: {type(error).__name__}") from error
    try:
        yield BlockAnswer(response, genesis_hash=genesis_hash, limits=limits)
    except (httpx2.HTTPError, httpx2.StreamError) as error:
        raise PeerError(f"its answer breaks off: {type(error).__name__}") from error
    finally:
        await response.aclose()


def _check_head(response: httpx2.Response, genesis_hash: bytes) -> None:
    if response.status_code != httpx2.codes.OK:
        raise PeerError(f"it answers {response.status_code} to a request for blocks")
    genesis = response.headers.get(GENESIS_HEADER, "")
    if genesis != genesis_hash.hex():
        raise PeerError(
            f"it has another chain: expected genesis {genesis_hash.hex()[:16]}…, "
            f"got {genesis[:16]!r}…"
        )
    if response.headers.get("content-encoding", "identity") != "identity":
        raise PeerError("its answer is compressed, which was not asked for")


def _read_height(response: httpx2.Response) -> int:
    text = response.headers.get(HEIGHT_HEADER, "")
    if not _HEIGHT.fullmatch(text):
        raise PeerError(f"{HEIGHT_HEADER}: expected a height, got {text[:20]!r}")
    return int(text)
