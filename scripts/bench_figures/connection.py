"""An HTTP client that costs little beside what it measures: one kept connection, no redirects.

It takes what uvicorn sends to such requests: HTTP/1.1 with a Content-Length.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter

MAX_HEAD_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One response."""

    status: int
    body: bytes
    """As sent, perhaps compressed."""
    first_byte_ms: float
    """From the request's start until the answer's head was here."""
    tag: str
    """Its entity tag, empty if it has none."""


class Connection:
    """One connection to a node on this machine."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        headers: Mapping[str, str],
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._headers = "".join(f"{name}: {value}\r\n" for name, value in headers.items())

    @classmethod
    async def open(cls, port: int, headers: Mapping[str, str]) -> Connection:
        """Connect to a port of the loopback; `headers` go with every request."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=MAX_HEAD_BYTES)
        return cls(reader, writer, {"Host": f"127.0.0.1:{port}", **headers})

    async def request(self, method: str, path: str, body: bytes = b"") -> Answer:
        """Send one request and return the whole answer, whatever its status."""
        head = f"{method} {path} HTTP/1.1\r\n{self._headers}"
        if body:
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        began = perf_counter()
        self._writer.write(f"{head}\r\n".encode() + body)
        answer_head = await self._reader.readuntil(b"\r\n\r\n")
        first_byte_ms = (perf_counter() - began) * 1000
        length = _find_header(answer_head.lower(), b"content-length: ") or b"0"
        return Answer(
            status=int(answer_head[9:12]),
            body=await self._reader.readexactly(int(length)),
            first_byte_ms=first_byte_ms,
            tag=_find_header(answer_head, b"etag: ").decode(),
        )

    async def expect(self, status: int, method: str, path: str, body: bytes = b"") -> Answer:
        """As `request`; any other status ends the benchmark, since it would not measure it."""
        answer = await self.request(method, path, body)
        if answer.status != status:
            raise RuntimeError(f"{method} {path}: {answer.status} {answer.body[:500]!r}")
        return answer

    async def close(self) -> None:
        """Close the connection."""
        self._writer.close()
        await self._writer.wait_closed()


def _find_header(head: bytes, name: bytes) -> bytes:
    return head.partition(b"\r\n" + name)[2].partition(b"\r\n")[0]
