"""What a stranger may send before it has sent a request, over raw sockets against uvicorn."""

import asyncio
import contextlib
import socket
import subprocess
import sys

import pytest
import uvloop

from node.httphead import MAX_HEAD_BYTES, MAX_REFUSED, REFUSED_SHARE, BoundedHeadProtocol
from node.server import ACCEPTS_PER_TURN, RESERVED_FILES, VANISHED_MS, listen, share_listening
from tests.api_server import serve
from tests.live import ROOT, LiveNode

ASK = b"GET / HTTP/1.1\r\nHost: x\r\n"
LAST = ASK + b"Connection: close\r\n\r\n"
SEND = b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
WANTED = 4096
ENDLESS = b"x" * (16 << 20)


class Impatient(BoundedHeadProtocol):
    head_timeout_s = 0.2


async def measure(scope, receive, send):
    """Answers with the size of the body."""
    size, more = 0, True
    while more:
        message = await receive()
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    if scope["path"] == "/slow":
        await asyncio.sleep(3 * Impatient.head_timeout_s)
    body = b"size=%d;" % size
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture(scope="module")
def port():
    with serve(measure) as port:
        yield port


@pytest.fixture(scope="module")
def impatient():
    with serve(measure, http=Impatient) as port:
        yield port


def connect(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=20)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def receive_all(connection: socket.socket) -> bytes:
    """Everything until the server closes."""
    received = b""
    while chunk := connection.recv(65_536):
        received += chunk
    return received


def receive_until(connection: socket.socket, end: bytes) -> None:
    received = b""
    while not received.endswith(end):
        chunk = connection.recv(65_536)
        assert chunk, received
        received += chunk


def build_head(size: int) -> bytes:
    start = SEND + b"Content-Length: 3\r\nX-Long: "
    return start + b"x" * (size - len(start) - 4) + b"\r\n\r\n"


# --- the bound --------------------------------------------------------------------------------


@pytest.mark.parametrize("piece", [999, 1 << 20])
def test_a_head_may_be_as_long_as_the_bound_and_no_longer(port, piece):
    for size, status in ((MAX_HEAD_BYTES, b"200"), (MAX_HEAD_BYTES + 1, b"431")):
        with connect(port) as connection:
            request = build_head(size) + b"abc"
            for start in range(0, len(request), piece):
                connection.sendall(request[start : start + piece])
            answer = receive_all(connection)
        assert answer.startswith(b"HTTP/1.1 " + status), answer
        assert answer.endswith(b"size=3;") == (status == b"200")


@pytest.mark.parametrize(
    "start",
    [b"GET /", ASK + b"X-Long: ", ASK + b"X", ASK + b"A: b\r\n" * 9_000, b"\r\n" * 40_000],
    ids=["path", "value", "name", "many", "nothing"],
)
def test_an_endless_head_is_told_why_and_cut_off(port, start):
    with connect(port) as connection:
        connection.sendall(start + ENDLESS[: 1 << 20])
        answer = receive_all(connection)
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert b"connection: close" in answer
    assert b"at most 65536 bytes" in answer


def test_an_endless_head_after_a_request_is_told_why_and_cut_off(port):
    with connect(port) as connection:
        connection.sendall(ASK + b"\r\n")
        receive_until(connection, b"size=0;")
        connection.sendall(ASK + b"X-Long: " + ENDLESS[: 1 << 20])
        assert receive_all(connection).startswith(b"HTTP/1.1 431 ")


@pytest.mark.parametrize("frame", [b"0\r\nX-Trailer: ", b"1;x="], ids=["trailer", "extension"])
def test_a_chunked_body_may_not_hide_an_endless_head(port, frame):
    with connect(port) as connection:
        connection.sendall(SEND + b"Transfer-Encoding: chunked\r\n\r\n" + frame)
        with pytest.raises(ConnectionError):
            connection.sendall(ENDLESS)


# --- what must go on working ------------------------------------------------------------------


def test_only_the_head_counts_not_the_body(port):
    size = 5 << 20
    with connect(port) as connection:
        connection.sendall(SEND + b"Content-Length: %d\r\n\r\n" % size + b"x" * size)
        assert receive_all(connection).endswith(b"size=%d;" % size)


def test_a_body_in_many_small_chunks_is_not_taken_for_a_head(port):
    chunks = 50_000
    with connect(port) as connection:
        connection.sendall(SEND + b"Transfer-Encoding: chunked\r\n\r\n")
        connection.sendall(b"1\r\nx\r\n" * chunks + b"0\r\n\r\n")
        assert receive_all(connection).endswith(b"size=%d;" % chunks)


def test_many_pipelined_requests_are_no_long_head(port):
    request = ASK + b"X-Long: " + b"x" * 1000 + b"\r\n\r\n"
    with connect(port) as connection:
        connection.sendall(request * 200 + LAST)
        assert receive_all(connection).count(b"size=0;") == 201


# --- the deadline -----------------------------------------------------------------------------


@pytest.mark.parametrize("sent", [b"", b"\r\n", b"G", ASK], ids=["none", "empty", "byte", "lines"])
def test_a_head_that_does_not_come_closes_the_connection(impatient, sent):
    with connect(impatient) as connection:
        connection.sendall(sent)
        assert receive_all(connection) == b""


def test_a_head_sent_drop_by_drop_gets_no_more_time(impatient):
    with connect(impatient) as connection:
        connection.sendall(ASK + b"X-Long: ")
        connection.settimeout(Impatient.head_timeout_s / 10)  # the time between two drops
        assert any(hangs_up_on(connection, b"x") for _ in range(1000))


def hangs_up_on(connection: socket.socket, drop: bytes) -> bool:
    try:
        connection.sendall(drop)
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


def test_a_later_head_has_the_same_deadline(impatient):
    with connect(impatient) as connection:
        connection.sendall(ASK + b"\r\n")
        receive_until(connection, b"size=0;")
        connection.sendall(b"G")
        assert receive_all(connection) == b""


def test_an_idle_connection_is_kept_and_a_slow_answer_awaited(impatient):
    with connect(impatient) as kept, connect(impatient) as slow:
        kept.sendall(ASK + b"\r\n")
        receive_until(kept, b"size=0;")
        slow.sendall(LAST.replace(b"/ ", b"/slow ", 1))
        with connect(impatient) as silent:
            assert receive_all(silent) == b""  # the deadline is over for the others as well
        kept.sendall(LAST)
        assert receive_all(kept).endswith(b"size=0;")
        assert receive_all(slow).endswith(b"size=0;")


# --- how many ---------------------------------------------------------------------------------


class Crowded(BoundedHeadProtocol):
    min_idle_s = -1.0
    """Idle is whoever was answered, even if the loop's clock has not gone on since."""


@pytest.fixture(params=[BoundedHeadProtocol])
def two_places(request):
    options = {"limit_concurrency": 2, "http": request.param}
    with serve(measure, **options) as port, contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(connect(port))


def test_who_comes_when_all_are_at_work_is_told_when_to_try_again_and_they_work_on(two_places):
    first, second = two_places(), two_places()
    for busy in (first, second):
        busy.sendall(SEND.replace(b"Connection: close", b"Content-Length: 2") + b"\r\nx")
    third = two_places()
    third.sendall(LAST)
    refusal = receive_all(third).lower()
    assert refusal.startswith(b"http/1.1 503 ")
    assert b"retry-after: " in refusal
    for busy in (first, second):
        busy.sendall(b"x")
        receive_until(busy, b"size=2;")
        busy.sendall(LAST)
        assert receive_all(busy).endswith(b"size=0;")


def test_who_was_answered_just_now_keeps_the_place(two_places):
    """The next request of a busy client is on its way, and might not be safe to send again."""
    for connection in (one := two_places(), other := two_places()):
        connection.sendall(ASK + b"\r\n")
        receive_until(connection, b"size=0;")
    third = two_places()
    third.sendall(LAST)
    assert receive_all(third).startswith(b"HTTP/1.1 503 ")
    for connection in (one, other):
        connection.sendall(LAST)
        assert receive_all(connection).endswith(b"size=0;")


@pytest.mark.parametrize("two_places", [Crowded], indirect=True)
def test_an_idle_connection_gives_its_place_to_a_new_one(two_places):
    idle, busy = two_places(), two_places()
    idle.sendall(ASK + b"\r\n")
    receive_until(idle, b"size=0;")
    busy.sendall(SEND.replace(b"Connection: close", b"Content-Length: 2") + b"\r\nx")
    third = two_places()
    third.sendall(LAST)
    assert receive_all(third).endswith(b"size=0;")
    assert receive_all(idle) == b""
    busy.sendall(b"x")
    receive_until(busy, b"size=2;")


def test_connections_far_above_the_limit_are_closed_unheard(two_places):
    for _ in range(2 + 2 // REFUSED_SHARE):
        two_places()
    with contextlib.suppress(ConnectionError):
        assert receive_all(two_places()) == b""


@pytest.mark.parametrize(
    ("soft", "hard", "expected"),
    [
        (64, 300, (300, (300 - RESERVED_FILES) * 2 // 3)),
        (300, 300, (300, (300 - RESERVED_FILES) * 2 // 3)),
        (1024, 8192, (8192, WANTED)),
        (1024, 4500, (4500, 4500 - RESERVED_FILES - MAX_REFUSED)),
    ],
)
def test_connections_fit_under_the_file_limit_which_is_raised_first(soft, hard, expected):
    code = (
        "from resource import *; from node.server import bound_connections;"
        f"setrlimit(RLIMIT_NOFILE, ({soft}, {hard})); count = bound_connections({WANTED});"
        "print((getrlimit(RLIMIT_NOFILE)[0], count))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(expected)


def test_a_client_that_vanished_holds_its_connection_for_a_minute():
    with listen("127.0.0.1", 0) as listening, connect(listening.getsockname()[1]):
        listening.settimeout(20)
        accepted, _ = listening.accept()
        with accepted:
            told = accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
    assert told == VANISHED_MS == 60_000


def test_a_turn_of_the_event_loop_takes_many_new_connections():
    turns, taken = [0], []

    class Taker(asyncio.Protocol):
        def connection_made(self, transport):
            taken.append(turns[0])
            transport.abort()

    async def take_all(sockets):
        servers = [await asyncio.get_running_loop().create_server(Taker, sock=s) for s in sockets]
        async with asyncio.timeout(20):
            while len(taken) < ACCEPTS_PER_TURN:
                turns[0] += 1
                await asyncio.sleep(0)
        for server in servers:
            server.close()

    with listen("127.0.0.1", 0) as listening, contextlib.ExitStack() as stack:
        port = listening.getsockname()[1]
        for _ in range(ACCEPTS_PER_TURN):
            stack.enter_context(connect(port))
        uvloop.run(take_all(share_listening(listening)))
    assert len(set(taken)) <= 3


# --- the node itself --------------------------------------------------------------------------


def test_a_node_refuses_an_endless_head_and_ends_under_a_half_sent_body(tmp_path):
    live = LiveNode(tmp_path / "data")
    live.start()
    port = int(live.url.rsplit(":", 1)[1])
    with connect(port) as waiting:
        try:
            with connect(port) as connection:
                connection.sendall(ASK + b"X-Long: " + ENDLESS[: 1 << 20])
                assert receive_all(connection).startswith(b"HTTP/1.1 431 ")
            waiting.sendall(
                b"POST /v1/miners/register HTTP/1.1\r\nHost: localhost\r\n"
                b"Content-Type: application/json\r\nExpect: 100-continue\r\n"
                b"Content-Length: 100\r\n\r\n{"
            )
            receive_until(waiting, b"100 Continue\r\n\r\n")
        finally:
            assert live.stop() == 0
        answer = receive_all(waiting)
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"SYSTEM_SHUTTING_DOWN" in answer
    assert "Traceback" not in (live.data.root / "node.log").read_text()
