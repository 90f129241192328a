"""A miner's calls to a node: where they go, and what their failures say."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import pytest
from starlette.responses import JSONResponse, Response

from miner.client import MAX_SHOWN, CoordinatorClient, is_loopback
from miner.errors import CoordinatorError, RefusedError, UnreachableError
from miner.wire import Job
from tests.fake_coordinator import API_KEY, GENESIS, FakeCoordinator

NOBODY = "http://127.0.0.1:9"


def ask(url: str) -> str:
    async def story() -> str:
        client = CoordinatorClient(url=url, api_key=API_KEY)
        try:
            return await client.genesis()
        finally:
            await client.close()

    return asyncio.run(story())


def ask_fake(node: FakeCoordinator, *, url: str = "") -> str:
    async def story() -> str:
        async with node.serving():
            return await asyncio.to_thread(ask, url or node.url)

    return asyncio.run(story())


@pytest.fixture
def proxy_variables(monkeypatch):
    """Sets every proxy variable to an address."""

    def choose(address: str) -> None:
        for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
            monkeypatch.delenv(name.upper(), raising=False)
        monkeypatch.setenv("http_proxy", address)

    return choose


def test_no_proxy_sees_what_is_meant_for_this_machine(proxy_variables):
    proxy_variables(NOBODY)
    assert ask_fake(FakeCoordinator()) == GENESIS


def test_a_node_elsewhere_is_reached_through_the_proxy(proxy_variables):
    async def story() -> None:
        node = FakeCoordinator()
        async with node.serving():
            proxy_variables(node.url)
            assert await asyncio.to_thread(ask, "http://node.invalid") == GENESIS

    asyncio.run(story())


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:8000", True),
        ("http://127.8.9.1", True),
        ("http://[::1]:8000/", True),
        ("http://LOCALHOST:8000", True),
        ("http://node.localhost", True),
        ("http://localhost.example", False),
        ("http://10.0.0.1", False),
        ("https://node.example", False),
    ],
)
def test_addresses_of_this_machine_are_known(url, expected):
    assert is_loopback(url) is expected


@contextmanager
def saying(answer: bytes) -> Iterator[str]:
    """A server that says this to its one caller, whatever it asks; its address."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(1 << 16)
            connection.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        thread.join()
        listener.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"a secret prompt\r\n\r\n",
        b"HTTP/1.1 200 OK\r\na secret prompt\r\n\r\n",
        b'HTTP/1.1 200 OK\r\nContent-Length: 29\r\n\r\n{"genesis": "a secret prompt"}',
    ],
)
def test_an_answer_that_makes_no_sense_is_not_quoted(answer):
    with saying(answer) as url, pytest.raises(CoordinatorError) as caught:
        ask(url)
    assert "secret" not in str(caught.value)


def test_a_refusal_is_one_short_line_however_much_the_node_says():
    def refuse() -> Response:
        return JSONResponse({"detail": "no\n" + "x" * 9999, "error_code": "NO"}, 400)

    node = FakeCoordinator()
    node.script["health"] = [refuse]
    with pytest.raises(RefusedError) as caught:
        ask_fake(node)
    assert "400 NO no xxx" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 2 * MAX_SHOWN


def test_a_password_in_the_address_is_not_shown():
    with pytest.raises(UnreachableError) as caught:
        ask("http://me:secret@127.0.0.1:9")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("job_id", ["", "job_1\n", "../admin", "job 1", "j" * 129])
def test_an_id_that_does_not_belong_in_a_path_is_no_job(job_id):
    offered = msgspec.json.encode({"job_id": job_id, "model": "m"})
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(offered, type=Job)
