"""The other nodes: where they are, what they said last, and the queues of what they are to hear.

A peer is a member of the authority set with an address. Messages to it go one after another, in
order, from a bounded queue; what does not fit is dropped from the front, since the engine repeats
what is still needed. A peer that does not answer is tried again after a pause that grows to
`MAX_BACKOFF_S`, and the log speaks of it twice: when it is lost and when it is back.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import httpx2

from ledger.encoding import MAX_INTEGER
from ledger.errors import LedgerError
from ledger.keys import KeyPair
from node.p2p.address import MESSAGES_PATH, PeerError, parse_url
from node.p2p.documents import MAX_STATUS_BYTES, Status, parse_status
from node.p2p.frames import HEIGHT_HEADER
from node.p2p.stamp import build_stamp

MAX_QUEUED_MESSAGES = 64
MAX_REFUSAL_BYTES = 300
"""What is kept of a refusal's text."""
MAX_HEIGHT_DIGITS = 16
MIN_BACKOFF_S = 0.1
MAX_BACKOFF_S = 2.0
CONNECT_TIMEOUT_S = 2.0
ANSWER_TIMEOUT_S = 15.0
"""A message is answered once it is dealt with, and a full block takes a moment."""
EXCHANGE_TIMEOUT_S = 60.0
"""Of one request and its answer together, however slowly they drip."""

logger = logging.getLogger(__name__)


class PeerRefusedError(PeerError):
    """A peer judged what we sent and refused it. It will not do better a second time."""


@dataclass(kw_only=True)
class Peer:
    """One other node. Written in the event loop alone; other threads may read."""

    account: str
    name: str
    url: str
    """The address in use."""
    stated_url: str
    """That of the authority set."""
    height: int = 0
    """Of its newest final block, as it said last."""
    release: str = ""
    """Of its software, as it said last."""
    failure: str | None = None
    """Why it cannot be reached; None while it can."""


class PeerLink:
    """The way to one peer: its queue, its connection, its pauses."""

    def __init__(
        self,
        peer: Peer,
        *,
        key: KeyPair,
        genesis_hash: bytes,
        returned: Callable[[], None],
        heard: Callable[[str, int], None],
    ) -> None:
        """`returned()`: the peer answers again; `heard(account, height)`: it says its height.

        Raises:
            PeerError: its address is none.
        """
        self.peer = peer
        self._returned = returned
        self._heard = heard
        self._key = key
        self._genesis_hash = genesis_hash
        self._queue: deque[bytes] = deque(maxlen=MAX_QUEUED_MESSAGES)
        self._filled = asyncio.Event()
        self._backoff_s = MIN_BACKOFF_S
        self.returns = 0
        """How often the peer answered again after it had not."""
        self._refusal = ""
        """The last one, which the log knows already."""
        self._client = open_client(peer.url)

    def put(self, message: bytes) -> None:
        """Queue a consensus message."""
        self._queue.append(message)
        self._filled.set()

    async def close(self) -> None:
        """Close the connection."""
        await self._client.aclose()

    async def deliver(self) -> None:
        """Send what is queued, for ever."""
        while True:
            await self._filled.wait()
            self._filled.clear()
            while self._queue:
                if not await self.try_send(MESSAGES_PATH, self._queue.popleft()):
                    await self.pause()

    async def try_send(self, path: str, body: bytes) -> bool:
        """Send one body; returns whether the peer has dealt with it."""
        try:
            status = await self._send(path, body)
        except PeerRefusedError as error:
            self._note_answer()
            self._note_refusal(str(error))
            return True
        except PeerError as error:
            if self.peer.failure is None:
                logger.warning("peer %s at %s: %s", self.peer.name, self.peer.url, error)
            self.peer.failure = str(error)
            return False
        self._note_answer()
        self._note_height(status.height)
        self.peer.release = status.release
        return True

    def _note_answer(self) -> None:
        if self.peer.failure is not None:
            logger.info("peer %s at %s answers again", self.peer.name, self.peer.url)
            self.returns += 1
            self._returned()
        self.peer.failure, self._backoff_s = None, MIN_BACKOFF_S

    def _note_refusal(self, text: str) -> None:
        """Tell the log of it once; the peer repeats itself as we do."""
        if self._refusal != text:
            logger.warning("peer %s at %s: %s", self.peer.name, self.peer.url, text)
        self._refusal = text

    def _note_height(self, height: int) -> None:
        self.peer.height = height
        self._heard(self.peer.account, height)

    async def pause(self) -> None:
        """Wait before the next attempt."""
        await asyncio.sleep(self._backoff_s)
        self._backoff_s = min(2 * self._backoff_s, MAX_BACKOFF_S)

    async def _send(self, path: str, body: bytes) -> Status:
        headers = build_stamp(
            self._key,
            genesis_hash=self._genesis_hash,
            recipient=self.peer.account,
            path=path,
            body=body,
        )
        headers["content-type"] = "application/json"
        request = self._client.build_request("POST", path, content=body, headers=headers)
        answer, data = await exchange(self._client, request)
        if answer.is_error and (height := answer.headers.get(HEIGHT_HEADER, "")).isdecimal():
            # Who was put out of the set while away learns only from refusals that it is behind.
            self._note_height(min(int(height[:MAX_HEIGHT_DIGITS]), MAX_INTEGER))
        return read_status(answer, data, self._genesis_hash)


def open_client(url: str) -> httpx2.AsyncClient:
    """Return a client for the node at `url`.

    Raises:
        PeerError: it is no address.
    """
    try:
        return httpx2.AsyncClient(
            base_url=parse_url(url),
            timeout=httpx2.Timeout(ANSWER_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
            # Compressed bytes could be a thousand times as many once they are taken apart.
            headers={"accept-encoding": "identity"},
            trust_env=False,
        )
    except httpx2.InvalidURL as error:
        raise PeerError(f"its address is none: {error}") from error


async def exchange(
    client: httpx2.AsyncClient, request: httpx2.Request
) -> tuple[httpx2.Response, bytes]:
    """Send a request and return the answer with its bytes: none is longer than a status.

    Raises:
        PeerError: no answer, or one without end.
    """
    data = bytearray()
    try:
        async with asyncio.timeout(EXCHANGE_TIMEOUT_S):
            answer = await client.send(request, stream=True)
            try:
                async for piece in answer.aiter_raw():
                    data += piece
                    if len(data) > MAX_STATUS_BYTES:
                        break
            finally:
                await answer.aclose()
    except (httpx2.HTTPError, OSError) as error:
        raise PeerError(f"no answer ({type(error).__name__})") from error
    return answer, bytes(data)


def read_status(answer: httpx2.Response, data: bytes, genesis_hash: bytes) -> Status:
    """Return the status that an answer carries.

    Raises:
        PeerRefusedError: the node judged what it got and refused it.
        PeerError: it takes nothing, is something else, or is of another network.
    """
    if answer.status_code != httpx2.codes.OK:
        # Spelled out, so that nobody writes lines of its own into our log.
        text = ascii(data[:MAX_REFUSAL_BYTES].decode(errors="replace"))
        is_judged = answer.status_code == httpx2.codes.BAD_REQUEST
        kind = PeerRefusedError if is_judged else PeerError
        raise kind(f"answered {answer.status_code}: {text}")
    if len(data) > MAX_STATUS_BYTES:
        raise PeerError("its status is too long")
    try:
        status = parse_status(data)
    except LedgerError as error:
        raise PeerError(str(error)) from error
    if status.genesis != genesis_hash.hex():
        raise PeerError(f"it belongs to another network, {status.genesis[:16]}…")
    return status
