"""Answers that stream: however they end, what they began is ended too."""

import asyncio
import logging
import socket
import threading

import pytest
from starlette.applications import Starlette
from starlette.routing import Route

from api import streaming
from api.answers import Stream
from api.requests import BodyRoom
from api.resource import ApiSettings, Operation, Resource
from tests.api_server import serve
from tests.asgi_stream import Opener

LIMIT_S = 20


class Source:
    """A stream that a test feeds, and what became of it."""

    def __init__(self) -> None:
        self.pieces: asyncio.Queue[bytes | Exception | None] = asyncio.Queue()
        self.log: list[str] = []

    async def _read(self):
        self.log.append("begun")
        try:
            while (piece := await self.pieces.get()) is not None:
                if isinstance(piece, Exception):
                    raise piece
                yield piece
        finally:
            self.log.append("closed")

    async def handle(self, _request) -> Stream:
        return Stream(pieces=self._read(), ended=lambda: self.log.append("ended"))


def build_app(handler) -> Starlette:
    one = Resource(
        {"GET": Operation(handler=handler)},
        keys=None,
        settings=ApiSettings(mode="dev", version="0", default_model="m"),
        make_request_id=lambda: "req-1",
        room=BodyRoom(),
    )
    return Starlette(routes=[Route("/", one)])


def run(scenario) -> None:
    async def bounded():
        source = Source()
        client = Opener(build_app(source.handle))
        async with asyncio.timeout(LIMIT_S):
            try:
                await scenario(source, client)
            finally:
                await client.close()

    asyncio.run(bounded())


def test_pieces_are_sent_as_they_come_and_the_end_is_one():
    async def scenario(source, client):
        stream = await client("/")
        assert stream.headers["content-type"] == "text/event-stream"
        assert "content-length" not in stream.headers
        for piece in ("one", "two"):
            await source.pieces.put(piece.encode())
            await stream.read()
            assert stream.text.endswith(piece)
        await source.pieces.put(None)
        assert await stream.read_all() == "onetwo"
        await stream.task
        assert source.log == ["begun", "closed", "ended"]

    run(scenario)


@pytest.mark.parametrize("pieces", [0, 2])
def test_a_client_that_hangs_up_ends_the_stream_at_once(pieces):
    async def scenario(source, client):
        stream = await client("/")
        for _ in range(pieces):
            await source.pieces.put(b"x")
            await stream.read()
        await stream.hang_up()
        assert source.log in (["begun", "closed", "ended"], ["ended"])

    run(scenario)


def test_a_server_that_closes_ends_the_stream_with_a_proper_end():
    async def scenario(source, client):
        stream = await client("/")
        await source.pieces.put(b"x")
        await stream.read()
        stream.task.cancel()
        assert await stream.read_all() == "x"
        await stream.task
        assert source.log == ["begun", "closed", "ended"]

    run(scenario)


def test_a_failure_in_the_middle_breaks_the_answer_off_and_is_logged_without_its_words(caplog):
    async def scenario(source, client):
        stream = await client("/")
        await source.pieces.put(b"x")
        await stream.read()
        await source.pieces.put(ValueError("a prompt"))
        await stream.task
        assert stream._sent.empty(), "no end: the client must not take it for whole"
        assert source.log == ["begun", "closed", "ended"]

    with caplog.at_level(logging.INFO, "aitbc"):
        run(scenario)
    assert "ValueError in request req-1" in caplog.text
    assert "a prompt" not in caplog.text


def test_a_head_request_begins_nothing_and_ends_what_it_took():
    async def scenario(source, client):
        answer = await client("/", method="HEAD")
        assert (answer.status, await answer.read_all()) == (200, "")
        await answer.task
        assert source.log == ["ended"]

    run(scenario)


def test_a_client_that_reads_nothing_is_dropped(monkeypatch):
    monkeypatch.setattr(streaming, "READER_TIMEOUT_S", 0.01)

    async def scenario(source, client):
        stream = await client("/")
        stream.may_send.clear()
        await source.pieces.put(b"x")
        await stream.task
        assert source.log == ["begun", "closed", "ended"]

    run(scenario)


def test_a_server_that_closes_gets_rid_of_a_client_that_reads_nothing():
    async def scenario(source, client):
        stream = await client("/")
        stream.may_send.clear()
        await source.pieces.put(b"x")
        for _ in range(5):
            await asyncio.sleep(0)
        assert source.log == ["begun"]
        stream.task.cancel()
        await asyncio.sleep(0)
        stream.task.cancel()  # a server cancels what is left once more when its loop ends
        with pytest.raises(asyncio.CancelledError):
            await stream.task
        assert source.log == ["begun", "closed", "ended"]

    run(scenario)


# --- on a real server ---------------------------------------------------------------------------


class Endless:
    """A stream without end, and whether it was closed."""

    def __init__(self, piece: bytes, *, pauses: bool) -> None:
        self._piece, self._pauses = piece, pauses
        self.closed, self.ended = threading.Event(), threading.Event()

    async def _read(self):
        try:
            while True:
                yield self._piece
                if self._pauses:
                    await asyncio.Event().wait()
        finally:
            self.closed.set()

    async def handle(self, _request) -> Stream:
        return Stream(pieces=self._read(), ended=self.ended.set)


def connect(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S)
    connection.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    return connection


def test_a_connection_that_is_closed_ends_the_stream():
    source = Endless(b"x", pauses=True)
    with serve(build_app(source.handle)) as port:
        with connect(port) as connection:
            assert connection.recv(1_000)
        assert source.closed.wait(LIMIT_S)
        assert source.ended.wait(LIMIT_S)


def test_a_connection_whose_buffers_stay_full_is_dropped(monkeypatch):
    monkeypatch.setattr(streaming, "READER_TIMEOUT_S", 0.2)
    source = Endless(b"x" * 65_536, pauses=False)
    with serve(build_app(source.handle)) as port, connect(port):
        assert source.closed.wait(LIMIT_S)
        assert source.ended.wait(LIMIT_S)
