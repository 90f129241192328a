"""Hostile input on every path: always a documented refusal, never a failure of ours."""

import json
import socket
import time

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from api.app import OPENAPI_FILE
from api.errors import STATUSES
from tests.api_node import ROLES, ApiNode
from tests.api_server import serve

DOCUMENT = yaml.safe_load(OPENAPI_FILE.read_text(encoding="utf-8"))
OPERATIONS = [
    (method.upper(), path, {int(status) for status in operation["responses"]})
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
]
WITH_BODY = [
    (method, path, statuses)
    for method, path, statuses in OPERATIONS
    if "requestBody" in DOCUMENT["paths"][path][method.lower()]
]
FIELDS = sorted(
    {
        name
        for schema in DOCUMENT["components"]["schemas"].values()
        for name in schema.get("properties", {})
    }
)
JSON_TYPE = {"Content-Type": "application/json"}

HOSTILE_TEXTS = (
    *("", "\0", "a\0b", "\x1b[31m", "\u202e", "\u200b", "\ufeff", "\uffff", "😀" * 50),
    *("<script>alert(1)</script>", "' OR 1=1 --", "{{7*7}}", "%s%n", "../../etc/passwd"),
    *("x" * 100_000, "ait1" + "q" * 58, "job_" + "Z" * 26, "rcp_" + "2" * 26, "\r\nX: y", "null"),
)
HOSTILE_VALUES = (
    *HOSTILE_TEXTS,
    *(None, True, False, -1, 0, 2**31, 2**53, 2**63, 2**65, -(2**65), 10**400, 1.5, -0.0, 1e308),
    *([], {}, [[]], {"": {"": {}}}, [None], ["a", 1], {"__proto__": 1}, {"$ref": "#"}),
)


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    node = ApiNode(tmp_path_factory.mktemp("hostile"))
    yield node
    node.close()


@pytest.fixture(scope="module")
def client(node):
    with node.client("dev", "admin") as client:
        yield client


def expect_documented(answer, statuses: set[int]) -> None:
    assert answer.status_code in statuses, answer.text
    if answer.status_code >= 400:
        body = answer.json()
        assert STATUSES[body["error_code"]] == answer.status_code
        assert isinstance(body["detail"], str)
        assert body["request_id"] == answer.headers["X-Request-Id"]


def fill(path: str, value: str = "x") -> str:
    for name in ("job_id", "miner_id", "receipt_id", "account"):
        path = path.replace(f"{{{name}}}", value)
    return path


@pytest.fixture(scope="module")
def running(client):
    """A path id for each kind: with a running job the endpoints get past their first check."""
    client.post("/v1/miners/register", json={"miner_id": "m1", "capabilities": ["*"]})
    job = client.post("/v1/jobs", json={"prompt": "p"}).json()["job_id"]
    client.post(f"/v1/jobs/{job}/claim", json={"miner_id": "m1"}).raise_for_status()
    return job


@pytest.mark.parametrize(("method", "path", "statuses"), WITH_BODY)
def test_no_value_in_any_field_makes_an_endpoint_fail(client, running, method, path, statuses):
    valid = {"prompt": "p", "miner_id": "m1", "result": "r", "capabilities": ["*"]}
    place = fill(path, running)
    for field in (*valid, "params", "signature", "units", "completed_at", "gpu_info", "proof"):
        for value in HOSTILE_VALUES:
            body = json.dumps({**valid, field: value}).encode()
            expect_documented(
                client.request(method, place, content=body, headers=JSON_TYPE), statuses
            )


JSON = st.recursive(
    st.sampled_from(HOSTILE_VALUES) | st.text() | st.integers() | st.floats(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=3)
    ),
    max_leaves=6,
)
BODIES = (
    st.binary(max_size=60)
    | st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=6).map(
        lambda v: json.dumps(v).encode()
    )
    | JSON.map(lambda v: json.dumps(v).encode())
)
ASCII = st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="?#/\\")


@settings(max_examples=150)
@given(operation=st.sampled_from(WITH_BODY), body=BODIES)
def test_no_body_makes_an_endpoint_fail(client, running, operation, body):
    method, path, statuses = operation
    answer = client.request(method, fill(path, running), content=body, headers=JSON_TYPE)
    expect_documented(answer, statuses)


@settings(max_examples=150)
@given(
    operation=st.sampled_from(OPERATIONS),
    part=st.text(ASCII, min_size=1, max_size=40),
    query=st.dictionaries(
        st.sampled_from(
            [
                *("limit", "offset", "before", "status", "miner_id", "client", "owner", "q"),
                *("from", "to"),
            ]
        ),
        st.sampled_from(HOSTILE_TEXTS[:-1]).map(lambda text: text[:200]) | st.integers().map(str),
        max_size=4,
    ),
    role=st.sampled_from([*ROLES, None, "bad"]),
)
def test_no_path_query_or_key_makes_an_endpoint_fail(client, node, operation, part, query, role):
    method, path, statuses = operation
    headers = {**JSON_TYPE, "X-Api-Key": node.keys.get(role, "" if role is None else "bad")}
    answer = client.request(method, fill(path, part), params=query, headers=headers)
    # A path id that looks like a relative path or another endpoint names one.
    expect_documented(answer, statuses | {404, 405} if "{" in path else statuses)


# --- raw sockets ------------------------------------------------------------------------------

HEAD = b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nX-Api-Key: %s\r\n"
BODY_TIMEOUT_MS = 300
MAX_SENT = 64 << 20


@pytest.fixture(scope="module")
def port(node):
    with serve(node.app("dev", body_timeout_ms=BODY_TIMEOUT_MS)) as port:
        yield port


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=20)


def head(node) -> bytes:
    return HEAD % node.keys["client"].encode()


def receive_answer(connection: socket.socket) -> bytes:
    """Everything until the server closes."""
    received = b""
    while chunk := connection.recv(65_536):
        received += chunk
    return received


def test_an_endless_chunked_body_is_answered_and_cut_off(node, port):
    chunk = b"10000\r\n" + b"x" * 65_536 + b"\r\n"
    with connect(port) as connection:
        connection.sendall(head(node) + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 20)
        answer = connection.recv(65_536)
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b"connection: close" in answer
        with pytest.raises(ConnectionError):
            connection.sendall(chunk * (MAX_SENT // len(chunk)))


def test_a_body_announced_as_huge_is_refused_at_once(node, port):
    with connect(port) as connection:
        connection.sendall(head(node) + b"Content-Length: 10000000000\r\n\r\n{")
        assert connection.recv(65_536).startswith(b"HTTP/1.1 413 ")


def test_a_client_that_sends_its_whole_oversized_body_first_still_reads_why(node, port):
    size = 4 << 20
    with connect(port) as connection:
        connection.sendall(head(node) + b"Content-Length: %d\r\n\r\n" % size + b"x" * size)
        answer = receive_answer(connection)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"VALIDATION_BODY_TOO_LARGE" in answer


def test_a_body_that_never_ends_is_given_up(node, port):
    with connect(port) as connection:
        connection.sendall(head(node) + b"Content-Length: 100\r\n\r\n{")
        started = time.monotonic()
        answer = receive_answer(connection)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"VALIDATION_BODY_TIMEOUT" in answer
    assert time.monotonic() - started >= BODY_TIMEOUT_MS / 1000 * 0.9


def test_a_client_that_leaves_in_its_body_harms_nobody(node, port):
    for _ in range(5):
        with connect(port) as connection:
            connection.sendall(head(node) + b"Content-Length: 100\r\n\r\n{")
    with connect(port) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert receive_answer(connection).startswith(b"HTTP/1.1 200 ")


def test_a_body_sent_byte_by_byte_is_one_body(node, port):
    body = b'{"prompt":"p"}'
    with connect(port) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        lines = head(node) + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
        connection.sendall(lines)
        for index in range(len(body)):
            connection.sendall(body[index : index + 1])
        assert receive_answer(connection).startswith(b"HTTP/1.1 201 ")


def test_pipelined_requests_are_answered_in_their_order(port):
    ask = b"GET %s HTTP/1.1\r\nHost: x\r\n%s\r\n"
    with connect(port) as connection:
        connection.sendall(
            ask % (b"/health", b"X-Request-Id: first\r\n")
            + ask % (b"/v1/x", b"X-Request-Id: second\r\nConnection: close\r\n")
        )
        answer = receive_answer(connection)
    assert answer.index(b"x-request-id: first") < answer.index(b"x-request-id: second")


def test_a_bodiless_post_may_carry_a_body_that_nobody_reads(port):
    lines = b"POST /v1/jobs/x/cancel HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"
    with connect(port) as connection:
        connection.sendall(lines)
        assert receive_answer(connection).startswith(b"HTTP/1.1 404 ")


def test_a_half_sent_body_is_answered_when_the_node_shuts_down(node, caplog):
    with serve(node.app("dev"), shutdown_s=1) as port:
        connection = connect(port)
        connection.sendall(head(node) + b"Expect: 100-continue\r\nContent-Length: 100\r\n\r\n{")
        # The node says this when it begins to wait for the body.
        assert connection.recv(65_536).startswith(b"HTTP/1.1 100 ")
    with connection:
        answer = receive_answer(connection)
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"SYSTEM_SHUTTING_DOWN" in answer
    assert b"connection: close" in answer
    assert "Exception in ASGI application" not in caplog.text


def test_a_refusal_is_whole_when_the_node_shuts_down_while_the_body_still_comes(node, caplog):
    with serve(node.app("dev"), shutdown_s=1) as port:
        connection = connect(port)
        connection.sendall(head(node) + b"Content-Length: 10000000000\r\n\r\n{")
        refusal = connection.recv(65_536)
        assert refusal.startswith(b"HTTP/1.1 413 ")
    with connection:
        assert receive_answer(connection) == b""
    assert "Exception in ASGI application" not in caplog.text
