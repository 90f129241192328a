"""Requests that come whole are answered without ASGI, and nobody can tell but by the time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.routing import Match

from api.direct import MAX_BODY_BYTES as MAX_DIRECT_BYTES
from api.direct import MAX_KNOWN_HEAD_BYTES, Direct, KnownHead
from api.head import Head
from node.directhttp import DirectProtocol
from tests.direct_stage import HOST, MAX_BODY_BYTES, Stage, Wire, build, staged

SUBMIT = build("/v1/jobs", b'{"a":1}')
DIRECT = b'direct POST - - 127.0.0.1 {"a":1}'
ROUTED = DIRECT.replace(b"direct", b"routes")


@pytest.fixture
def stage():
    return Stage()


@pytest.fixture
def port(stage):
    with staged(stage) as port:
        yield port


@pytest.fixture
def wire(port):
    with Wire(port) as wire:
        yield wire


# --- which way --------------------------------------------------------------------------------


def test_a_whole_request_is_answered_directly_again_and_again(stage, wire):
    assert [wire.ask(SUBMIT) for _ in range(3)] == [DIRECT] * 3
    assert wire.ask(build("/v1/jobs/job_1")) == b"direct GET job_1 - 127.0.0.1 "
    asked = build("/v1/jobs/available?wanted=x%20y")
    assert [wire.ask(asked) for _ in range(2)] == [b"direct GET - x y 127.0.0.1 "] * 2
    routes = [outcome.route for outcome in stage.outcomes]
    assert routes == ["/v1/jobs"] * 3 + ["/v1/jobs/{job_id}"] + ["/v1/jobs/available"] * 2


@pytest.mark.parametrize(
    "request_",
    [
        build("/v1/jobs", b'{"a":1}', more=b"Connection: close\r\n"),
        build("/v1/jobs", b'{"a":1}', more=b"Upgrade: h2c\r\n"),
        SUBMIT.replace(b"HTTP/1.1", b"HTTP/1.0"),
        build("/v1/jobs?", b'{"a":1}'),
        build("http://localhost/v1/jobs", b'{"a":1}'),
        build("/v1/%6Aobs", b'{"a":1}'),
        build("/v1/jobs#x", b'{"a":1}'),
    ],
    ids=["close", "upgrade", "1.0", "query", "absolute", "escaped", "fragment"],
)
def test_whatever_is_unusual_goes_through_the_routes(wire, request_):
    assert wire.ask(request_) == ROUTED


def test_a_chunked_body_goes_through_the_routes(wire):
    chunked = SUBMIT.replace(b"Content-Length: 7", b"Transfer-Encoding: chunked")
    assert wire.ask(chunked.replace(b'{"a":1}', b'7\r\n{"a":1}\r\n0\r\n\r\n')) == ROUTED


def test_a_client_that_waits_for_100_is_told_to_go_on(wire):
    head, body = build("/v1/jobs", b"{}", more=b"Expect: 100-continue\r\n").split(b"{}")[0], b"{}"
    wire.send(head)
    assert wire.read()[0] == 100
    wire.send(body)
    assert wire.read()[2] == b"routes POST - - 127.0.0.1 {}"


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "DELETE"])
def test_other_methods_are_answered_as_the_routes_do(wire, method):
    wire.send(build("/v1/jobs/job_1", method=method))
    answer = wire.socket.recv(65_536)
    assert answer.startswith(b"HTTP/1.1 " + {"HEAD": b"200", "OPTIONS": b"204"}.get(method, b"405"))


def test_a_path_of_its_own_is_not_taken_for_a_name(wire):
    wire.send(build("/v1/jobs/batch"))
    assert wire.read()[0] == 405


PARTS = ["v1", "jobs", "batch", "available", "job_1", "slow", "", "a%20b", "é", "#", "x" * 65]


@given(st.lists(st.sampled_from(PARTS), max_size=6), st.sampled_from(["GET", "POST", "HEAD"]))
def test_whatever_is_found_the_routes_would_find_too(parts, method):
    stage = Stage()
    url = "/" + "/".join(parts)
    found = stage.app.direct.find(method.encode(), url.encode())
    if found is None:
        return
    scope = {"type": "http", "method": method, "path": url, "root_path": ""}
    matches = ((route, *route.matches(scope)) for route in stage.routes)
    route, params = next((r, c["path_params"]) for r, match, c in matches if match is Match.FULL)
    assert (found.resource, found.path_params) == (route.app, params)


def test_both_ways_give_the_same_answer(wire):
    def read(request):
        wire.send(request)
        status, head, body = wire.read()
        lines = sorted(head.split(b"\r\n")[1:])
        return status, [line for line in lines if not line.startswith(b"date")], body

    for path, body in (("/v1/jobs", b"{}"), ("/v1/jobs/job_1/wrong", b"{}"), ("/v1/jobs/a", None)):
        direct = read(build(path, body))
        routed = read(build(path + "?", body))
        assert (direct[0], direct[1], direct[2].replace(b"direct", b"routes")) == routed


# --- split and pipelined ----------------------------------------------------------------------


@pytest.mark.parametrize("is_known", [False, True])
def test_a_request_may_be_cut_anywhere(wire, is_known):
    if is_known:
        wire.ask(SUBMIT)
    body_at = len(SUBMIT) - 7
    for cut in range(1, len(SUBMIT)):
        wire.send(SUBMIT[:cut])
        wait_until_read(wire)
        wire.send(SUBMIT[cut:])
        assert wire.read()[2] in {DIRECT if cut < body_at else ROUTED, DIRECT}, cut


def wait_until_read(wire: Wire) -> None:
    """Let the server take what was sent: it has answered another connection since."""
    with Wire(wire.socket.getpeername()[1]) as other:
        other.ask(build("/v1/jobs/job_1"))


def test_a_body_that_comes_later_goes_through_the_routes(wire):
    for _ in range(2):
        wire.send(SUBMIT[:-3])
        wait_until_read(wire)
        wire.send(SUBMIT[-3:])
        assert wire.read()[2] == ROUTED
        assert wire.ask(SUBMIT) == DIRECT


def test_pipelined_requests_are_answered_in_their_order(wire):
    paths = ["/v1/jobs", "/v1/jobs?", "/v1/jobs", "/v1/jobs/job_1/wrong", "/v1/jobs"] * 4
    bodies = [b'{"n":%d}' % number for number in range(len(paths))]
    requests = list(zip(paths, bodies, strict=True))
    for _ in range(2):
        wire.send(b"".join(build(path, body) for path, body in requests))
        for path, body in requests:
            status, _, answer = wire.read()
            assert status == (500 if path.endswith("wrong") else 200)
            assert status == 500 or answer.endswith(body)


def test_a_request_behind_one_in_hand_waits_for_it(stage, wire):
    wire.send(build("/v1/jobs/job_1/slow", b"{}"))
    assert stage.entered.wait(20)
    wire.send(SUBMIT + build("/v1/jobs/job_2"))
    wait_until_read(wire)
    assert [outcome.route for outcome in stage.outcomes] == ["/v1/jobs/{job_id}"]
    stage.let_go()
    assert wire.read()[2] == b"direct POST job_1 - 127.0.0.1 {}"
    assert wire.read()[2] == ROUTED
    assert wire.read()[2] == b"routes GET job_2 - 127.0.0.1 "
    assert wire.ask(SUBMIT) == DIRECT


# --- bounds -----------------------------------------------------------------------------------


def test_large_bodies_go_through_the_routes_up_to_their_bound(wire):
    for size in (MAX_DIRECT_BYTES, MAX_DIRECT_BYTES + 1, MAX_BODY_BYTES, MAX_BODY_BYTES + 1):
        wire.send(build("/v1/jobs", b"x" * size))
        status, _, body = wire.read()
        assert status == (413 if size > MAX_BODY_BYTES else 200)
        assert body.startswith(b"direct") <= (size <= MAX_DIRECT_BYTES)
        assert status == 413 or body.endswith(b" " + b"x" * size)


def test_a_body_that_does_not_come_is_given_up():
    with staged(Stage(body_timeout_ms=100)) as port, Wire(port) as wire:
        wire.ask(SUBMIT)
        wire.send(SUBMIT[:-1])
        status, _, body = wire.read()
        assert (status, b"VALIDATION_BODY_TIMEOUT" in body) == (408, True)
        assert wire.is_closed()


def test_a_client_that_leaves_in_its_body_gets_no_answer(stage, port):
    with Wire(port) as wire:
        wire.ask(SUBMIT)
        stage.told.clear()
        wire.send(SUBMIT[:-1])
        wait_until_read(wire)
        stage.told.clear()
    assert stage.told.wait(20)
    assert stage.outcomes[-1].status == 499


def test_a_client_that_leaves_while_it_waits_harms_nobody(stage, port):
    with Wire(port) as wire:
        wire.send(build("/v1/jobs/job_1/slow", b"{}"))
        assert stage.entered.wait(20)
    with Wire(port) as other:
        other.ask(SUBMIT)
        stage.told.clear()
        stage.let_go()
        assert stage.told.wait(20)
        assert other.ask(SUBMIT) == DIRECT


def test_above_the_limit_of_connections_requests_are_refused(stage):
    with staged(stage, limit_concurrency=2) as port, Wire(port) as first, Wire(port) as second:
        assert (first.ask(SUBMIT), second.ask(SUBMIT)) == (DIRECT, DIRECT)
        with Wire(port) as third:
            third.send(SUBMIT)
            assert third.read()[0] == 503
        assert first.ask(SUBMIT) == DIRECT


def test_an_endless_head_behind_a_direct_request_is_cut_off(wire):
    wire.ask(SUBMIT)
    wire.send(b"POST /v1/jobs HTTP/1.1\r\nX-Long: " + b"x" * (1 << 17))
    assert wire.read()[0] == 431


def test_an_idle_connection_is_closed_in_time_and_a_used_one_is_kept(stage):
    class Impatient(DirectProtocol):
        head_timeout_s = 0.2

    with staged(stage, http=Impatient) as port, Wire(port) as first:
        first.ask(SUBMIT)
        keep_one_and_leave_one(port)


def keep_one_and_leave_one(port):
    with Wire(port) as kept, Wire(port) as silent:
        assert kept.ask(SUBMIT) == DIRECT  # its head is known
        assert silent.is_closed()
        assert kept.ask(SUBMIT) == DIRECT


# --- what is remembered -----------------------------------------------------------------------


def test_a_known_head_needs_no_parser(wire, monkeypatch):
    wire.ask(SUBMIT)
    monkeypatch.setattr(DirectProtocol, "on_headers_complete", lambda _self: pytest.fail("parsed"))
    assert wire.ask(SUBMIT) == DIRECT


def test_a_known_head_with_another_body_is_another_request(wire):
    wire.ask(SUBMIT)
    assert wire.ask(SUBMIT[:-7] + b'{"b":2}').endswith(b'{"b":2}')
    wire.send(SUBMIT + b"GARBAGE\r\n\r\n")
    assert wire.read()[0] == 400


def test_only_what_the_parser_would_take_is_recognised(wire):
    line, _, lines = SUBMIT.partition(b"\r\n")
    for before in (b"\r\n", b"\r\n\r\n"):
        assert wire.ask(before + SUBMIT) == DIRECT
    wire.send(line + b"\r\n" + line + b"\r\n" + lines)
    assert wire.read()[0] == 400


def test_a_key_that_is_revoked_is_refused_though_its_head_is_known(stage, wire):
    keyed = build("/v1/jobs", b"{}", more=b"X-Api-Key: good\r\n")
    for _ in range(2):
        wire.ask(keyed)
    stage.keys.is_revoked = True
    wire.send(keyed)
    assert wire.read()[0] == 401


def test_each_request_has_an_id_of_its_own_or_its_clients(stage, wire):
    for name in (b"one", b"two", b"two"):
        wire.send(build("/v1/jobs", b"{}", more=b"X-Request-Id: %s\r\n" % name))
        assert b"x-request-id: %s\r\n" % name in wire.read()[1]
    assert [outcome.request_id for outcome in stage.outcomes] == ["one", "two", "two"]


def known(**headers: bytes) -> KnownHead:
    named = [(name.replace("_", "-").encode(), value) for name, value in headers.items()]
    return KnownHead(Head(named), named, 0)


def test_heads_that_are_long_or_never_the_same_are_not_remembered():
    direct = Direct([])
    long = b"x" * (MAX_KNOWN_HEAD_BYTES + 1)
    direct.remember(b"POST", long, known())
    assert direct.recall(b"POST", long) is None
    for name in ("x_request_id", "idempotency_key", "if_none_match"):
        direct.remember(b"POST", b"x", known(**{name: b"1"}))
        assert direct.recall(b"POST", b"x") is None


def test_a_bounded_number_of_heads_is_remembered(monkeypatch):
    monkeypatch.setattr("api.direct.MAX_KNOWN_HEADS", 3)
    direct = Direct([])
    for number in range(10):
        direct.remember(b"POST", b"%d" % number, known())
        assert direct.recall(b"POST", b"%d" % number) is not None
        assert sum(direct.recall(b"POST", b"%d" % n) is not None for n in range(10)) <= 3


def test_a_head_is_known_for_its_method_alone():
    direct = Direct([])
    direct.remember(b"GET", b"x", known())
    assert direct.recall(b"POST", b"x") is None


# --- who asks ---------------------------------------------------------------------------------


def test_in_dev_mode_a_foreign_page_gets_nothing_by_any_way():
    with staged(Stage(own_host="127.0.0.1")) as port, Wire(port) as wire:
        for _ in range(2):
            assert wire.ask(SUBMIT) == DIRECT
            wire.send(SUBMIT.replace(HOST, b"Host: evil.example\r\n"))
            assert wire.read()[0] == 400
            wire.send(build("/v1/jobs", b"{}", more=b"Origin: http://evil.example\r\n"))
            assert wire.read()[0] == 403
            asked = build("/v1/jobs/job_1", more=b"Origin: http://evil.example\r\n")
            assert wire.ask(asked).startswith(b"direct GET")


def test_a_trusted_proxy_says_whose_request_it_is_and_nobody_else(stage):
    told = build("/v1/jobs", b"{}", more=b"X-Forwarded-For: 203.0.113.9, 127.0.0.1\r\n")
    itself = b"127.0.0.1"
    for trusted, seen in ((["127.0.0.0/8"], b"203.0.113.9"), (["10.0.0.1"], itself), ([], itself)):
        with staged(stage, trusted_proxies=trusted) as port, Wire(port) as wire:
            for _ in range(2):
                assert wire.ask(told) == b"direct POST - - %s {}" % seen


# --- faults and the end -----------------------------------------------------------------------


def test_a_fault_is_answered_and_the_connection_kept(wire):
    for _ in range(2):
        wire.send(build("/v1/jobs/job_1/wrong", b"{}"))
        status, _, body = wire.read()
        assert (status, b"SYSTEM_INTERNAL_ERROR" in body) == (500, True)
    assert wire.ask(SUBMIT) == DIRECT


def test_a_header_that_would_split_the_answer_is_never_sent(wire):
    wire.send(build("/v1/jobs/job_1/split", b"{}"))
    assert wire.is_closed()


def test_a_server_that_closes_lets_what_is_in_hand_end(stage):
    class Ending(DirectProtocol):
        def shutdown(self):
            super().shutdown()
            stage.let_go()

    with staged(stage, http=Ending) as port:
        wire = Wire(port)
        wire.ask(SUBMIT)
        wire.send(build("/v1/jobs/job_1/slow", b"{}"))
        assert stage.entered.wait(20)
    with wire:
        status, head, body = wire.read()
        assert (status, body) == (200, b"direct POST job_1 - 127.0.0.1 {}")
        assert b"connection: close\r\n" in head
        assert wire.is_closed()


def test_a_server_that_closes_tells_those_who_would_wait_for_too_long(stage):
    with staged(stage, shutdown_s=0) as port:
        wire = Wire(port)
        wire.send(build("/v1/jobs/job_1/slow", b"{}"))
        assert stage.entered.wait(20)
    with wire:
        status, head, body = wire.read()
        assert (status, b"SYSTEM_SHUTTING_DOWN" in body) == (503, True)
        assert head.count(b"connection: close\r\n") == 1
        assert wire.is_closed()
