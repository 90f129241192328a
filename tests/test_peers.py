"""The way to one other node, which may answer with anything."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx2
import pytest

from node.p2p.address import PeerError
from node.p2p.documents import MAX_STATUS_BYTES
from node.p2p.peers import Peer, PeerLink, read_status
from tests.builders import build_key

HEAD = b"HTTP/1.1 %d Fine\r\ncontent-type: application/json\r\n%b\r\n"
PIECE = b"x" * 1024


def build_link(url: str) -> PeerLink:
    peer = Peer(account=build_key("peer").account, name="peer", url=url, stated_url=url)
    return PeerLink(
        peer,
        key=build_key("own"),
        genesis_hash=bytes(32),
        returned=lambda: None,
        heard=lambda _account, _height: None,
    )


async def endless(writer: asyncio.StreamWriter) -> AsyncIterator[int]:
    """Send pieces as long as they are taken; yields how many bytes were."""
    sent = 0
    while True:
        writer.write(PIECE)
        await writer.drain()
        sent += len(PIECE)
        yield sent


@pytest.mark.parametrize(
    ("status", "failure"), [(200, "its status is too long"), (500, "answered 500: 'xxx")]
)
def test_an_answer_without_end_is_cut_off(status, failure):
    async def run() -> str | None:
        hung_up = asyncio.Event()

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(HEAD % (status, b""))
            try:
                async for sent in endless(writer):
                    assert sent < 1000 * MAX_STATUS_BYTES
            except OSError:
                hung_up.set()
            finally:
                writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            link = build_link(f"http://127.0.0.1:{port}")
            assert not await link.try_send("/p2p/messages", b"{}")
            await hung_up.wait()
            await link.close()
        return link.peer.failure

    failed = asyncio.run(run())
    assert failed is not None
    assert failed.startswith(failure)


def test_a_refusal_writes_no_lines_of_its_own_into_the_log():
    answer = httpx2.Response(403)
    with pytest.raises(PeerError) as refused:
        read_status(answer, "no\nERROR forged \x1b[2J\u202e".encode(), bytes(32))
    assert str(refused.value).isprintable()
    assert str(refused.value).isascii()


def test_an_address_that_is_none_is_a_failed_peer():
    with pytest.raises(PeerError, match="address of a node"):
        build_link("http://127.0.0.1:8001x")


def test_a_peer_that_refuses_what_it_judged_is_there():
    """It is not sent again: it would be refused again, and hold up what comes behind it."""

    async def run() -> PeerLink:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(HEAD % (400, b"content-length: 2\r\nx-aitbc-height: 7\r\n") + b"{}")
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with server:
            link = build_link(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
            link.peer.failure = "it was away"
            assert await link.try_send("/p2p/messages", b"{}")
            await link.close()
            return link

    link = asyncio.run(run())
    assert link.peer.failure is None
    assert (link.returns, link.peer.height) == (1, 7)
