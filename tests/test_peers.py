"""The way to one other node, which may answer with anything."""

from __future__ import annotations

import asyncio
import contextlib
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


def test_a_peer_that_does_not_answer_holds_up_no_other():
    async def run() -> list[bytes]:
        told: asyncio.Queue[bytes] = asyncio.Queue()
        is_asked = asyncio.Event()

        async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            is_asked.set()
            await reader.read()
            writer.close()

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(asyncio.IncompleteReadError):
                while True:
                    await reader.readuntil(b"\r\n\r\n")
                    told.put_nowait(await reader.readexactly(1))
                    writer.write(HEAD % (400, b"content-length: 2\r\n") + b"{}")
            writer.close()

        async with (
            await asyncio.start_server(hang, "127.0.0.1", 0) as silent,
            await asyncio.start_server(answer, "127.0.0.1", 0) as good,
        ):
            ports = [server.sockets[0].getsockname()[1] for server in (silent, good)]
            links = [build_link(f"http://127.0.0.1:{port}") for port in ports]
            tasks = [asyncio.create_task(link.deliver()) for link in links]
            links[0].put(b"0")
            await is_asked.wait()
            for message in (b"1", b"2", b"3"):
                for link in links:
                    link.put(message)
            heard = [await told.get() for _ in range(3)]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for link in links:
                await link.close()
        return heard

    assert asyncio.run(run()) == [b"1", b"2", b"3"]
