"""What every answer has in common: ids, headers, methods, errors, bodies in their bounds."""

import asyncio
import logging

import pytest
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.testclient import TestClient

from api.answers import answer_json
from api.errors import ClientGoneError, RequestError
from api.jobs import MAX_JOBS
from api.requests import MAX_BODY_BYTES, BodyRoom, Request
from api.resource import ApiSettings, Operation, Resource
from ledger.errors import MarketError
from ledger.store.writequeue import DatabaseBusyError
from tests.api_node import ApiNode, run_job

UNKNOWN_JOB = "job_" + "0" * 26
UNKNOWN_RECEIPT = "rcp_" + "a" * 26
SECRET = "the secret prompt"


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    node = ApiNode(tmp_path_factory.mktemp("http"))
    yield node
    node.close()


@pytest.fixture(scope="module")
def client(node):
    with node.client() as client:
        yield client


def serve(handler, *, room: BodyRoom | None = None, **operation) -> TestClient:
    """One endpoint of ours at `/x`, without a node."""
    resource = Resource(
        {"POST": Operation(handler=handler, **operation)},
        keys=None,
        settings=ApiSettings(mode="dev", version="0", default_model="m"),
        make_request_id=lambda: "made",
        room=room or BodyRoom(),
    )
    return TestClient(Starlette(routes=[Route("/x", resource)]))


# --- request ids and headers ------------------------------------------------------------------


@pytest.mark.parametrize("given", ["a", "A-b.c_9", "x" * 64])
def test_a_sane_request_id_comes_back(client, given):
    answer = client.get("/v1/nothing", headers={"X-Request-Id": given})
    assert answer.headers["X-Request-Id"] == answer.json()["request_id"] == given


@pytest.mark.parametrize("given", ["", "x" * 65, "a b", "a/b", "<b>", "é".encode()])
def test_any_other_request_id_is_replaced(client, given):
    answer = client.get("/v1/nothing", headers={"X-Request-Id": given})
    assert answer.headers["X-Request-Id"].startswith("req-")


@pytest.mark.parametrize("path", ["/health", "/v1/nothing", "/v1/jobs", "/openapi.json"])
def test_every_answer_is_guarded_against_use_as_a_document(client, path):
    headers = client.get(path).headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert headers["Cache-Control"] == "no-store"


# --- paths and methods ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        *("/v1", "/v1/", "/v1/nothing", "/v1/jobs/", "/api", "/api/", "/api/nothing", "/api/v1"),
        *("/explorer/nothing", "/explorer/", "/v1/jobs/a/b", "/v1/jobs/%2f", "/v1/../v1/x"),
        *("/api/health/nothing", "/v1/a%0Ab", "/v1/%0A", "/api/a%0A/b", "/explorer/a%0Ab"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "OPTIONS"])
def test_an_unknown_path_of_the_api_is_not_found_in_json(client, path, method):
    answer = client.request(method, path)
    assert answer.status_code == 404
    assert answer.json()["error_code"] == "PATH_NOT_FOUND"
    assert "/docs lists what is" in answer.json()["detail"]


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/embeddings", "/v1/nothing"])
def test_clients_of_openai_can_read_that_a_path_is_unknown(client, path):
    body = client.post(path, json={}).json()
    assert body["error"]["message"] == body["detail"]
    assert body["error"]["code"] == "path_not_found"


def test_a_wrong_method_names_the_right_ones(client):
    answer = client.delete("/v1/jobs")
    assert (answer.status_code, answer.json()["error_code"]) == (405, "METHOD_NOT_ALLOWED")
    assert answer.headers["Allow"] == "GET, HEAD, OPTIONS, POST"
    assert client.post("/v1/jobs/available").headers["Allow"] == "GET, HEAD, OPTIONS"
    assert client.get(f"/v1/jobs/{UNKNOWN_JOB}/claim").headers["Allow"] == "OPTIONS, POST"


def test_options_names_the_methods_without_a_body(client):
    answer = client.options("/api/v1/jobs")
    assert (answer.status_code, answer.content) == (204, b"")
    assert answer.headers["Allow"] == "GET, HEAD, OPTIONS, POST"


def test_head_is_get_without_the_body(client):
    head, get = client.head("/v1/genesis"), client.get("/v1/genesis")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["Content-Length"] == get.headers["Content-Length"] != "0"


def test_behind_a_proxy_with_a_prefix_addresses_carry_it(node):
    key = {"X-Api-Key": node.keys["client"]}
    for prefix in ("", "/api"):
        with TestClient(node.app(), root_path="/aitbc") as client:
            made = client.post(f"/aitbc{prefix}/v1/jobs", json={"prompt": "p"}, headers=key)
            assert made.headers["Location"] == f"/aitbc{prefix}/v1/jobs/{made.json()['job_id']}"
            assert client.get(made.headers["Location"]).status_code == 200
            link = client.get(f"/aitbc{prefix}/v1/jobs?limit=1").headers["Link"]
            place = f"/aitbc{prefix}/v1/jobs?limit=1"
            last = made.json()["job_id"]
            assert link == (
                f'<{place}&before={last}>; rel="next", <{place}&after={last}>; rel="prev"'
            )
            link = client.get(f"/aitbc{prefix}/explorer/stats").headers["Link"]
            assert link == '</aitbc/>; rel="alternate"'


# --- ids, limits, filters ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "garbage",
    [
        *("x", "job_", "JOB_" + "0" * 26, "job_" + "8" + "0" * 25, "job_" + "U" * 26, "%00"),
        *("job_" + "0" * 26 + "%0A", "é" * 30, "x" * 5000, "..%5C", "'%20OR%201=1", "%ff"),
    ],
)
def test_an_id_that_is_none_is_not_found(client, garbage):
    assert client.get(f"/v1/jobs/{garbage}").json()["error_code"] == "JOB_NOT_FOUND"
    assert client.post(f"/v1/jobs/{garbage}/cancel").json()["error_code"] == "JOB_NOT_FOUND"
    assert client.get(f"/v1/receipts/{garbage}").json()["error_code"] == "RECEIPT_NOT_FOUND"
    assert client.get(f"/v1/receipts/{garbage}/proof").json()["error_code"] == "RECEIPT_NOT_FOUND"
    beat = client.post(f"/v1/miners/{garbage}/heartbeat")
    assert beat.json()["error_code"] == "MINER_NOT_FOUND"
    available = client.get("/v1/jobs/available", params={"miner_id": garbage})
    assert available.json()["error_code"] == "MINER_NOT_FOUND"


def test_a_well_formed_but_unknown_id_is_not_found(client):
    assert client.get(f"/v1/jobs/{UNKNOWN_JOB}").status_code == 404
    assert client.get(f"/v1/receipts/{UNKNOWN_RECEIPT}").status_code == 404
    assert client.get(f"/v1/receipts/{UNKNOWN_RECEIPT}/proof").status_code == 404


@pytest.mark.parametrize(
    "path",
    [
        *("/v1/jobs", "/v1/receipts", "/explorer/blocks"),
        *("/explorer/transactions", "/explorer/receipts"),
    ],
)
@pytest.mark.parametrize(
    "text", ["", "x", "1.0", "1e2", "0x1", "1_0", " 1", "٣", "9" * 17, str(2**65), "1&limit=2"]
)
def test_a_limit_that_is_no_integer_is_refused(client, path, text):
    answer = client.get(f"{path}?limit={text}")
    assert (answer.status_code, answer.json()["errors"][0]["path"]) == (400, "limit")


def test_only_jobs_refuse_a_limit_above_the_maximum(client):
    assert client.get(f"/v1/jobs?limit={MAX_JOBS}").status_code == 200
    assert client.get(f"/v1/jobs?limit={MAX_JOBS + 1}").status_code == 400
    for path in ("/v1/receipts", "/explorer/blocks", "/explorer/transactions"):
        assert client.get(f"{path}?limit=101").status_code == 200
        assert client.get(f"{path}?limit=-1").json() == []
    assert client.get("/v1/jobs?limit=-5").json() == []
    assert client.get("/v1/jobs?offset=-5").status_code == 200
    assert client.get(f"/v1/jobs?offset={2**53 - 1}").json() == []
    assert client.get(f"/v1/jobs?offset={2**53}").status_code == 400


@pytest.mark.parametrize(
    ("query", "path"),
    [
        ("/v1/jobs?status=done", "status"),
        ("/v1/jobs?status=", "status"),
        ("/v1/jobs?owner=you", "owner"),
        ("/v1/jobs/available", "miner_id"),
        ("/v1/jobs/available?miner_id=", "miner_id"),
        ("/v1/jobs/available?miner_id=a&miner_id=b", "miner_id"),
        ("/v1/jobs/available?miner_id=a&wait=soon", "wait"),
        ("/explorer/blocks?before=x", "before"),
        ("/v1/jobs?" + "&".join(f"a{i}=1" for i in range(40)), "query"),
    ],
)
def test_a_bad_query_is_refused_by_its_parameter(client, query, path):
    answer = client.get(query)
    assert answer.status_code == 400
    assert answer.json()["error_code"] == "VALIDATION_FAILED"
    assert answer.json()["errors"][0]["path"] == path


def test_lists_lead_to_their_following_rows_and_end(tmp_path):
    node = ApiNode(tmp_path)
    node.start_sealing()
    with node.client() as client:
        receipts = []
        for number in range(3):
            _, receipt = run_job(client, node, prompt=f"p{number}")
            node.wait_final(number + 1)
            receipts.append(receipt["receipt_id"])
        for path, field, expected in (
            ("/v1/receipts", "receipt_id", receipts[::-1]),
            ("/explorer/receipts", "receipt_id", receipts[::-1]),
            ("/explorer/transactions", "receipt_id", receipts[::-1]),
            ("/explorer/blocks", "height", [3, 2, 1]),
        ):
            seen, address = [], f"{path}?limit=2"
            while address:
                page = client.get(address)
                seen += [row[field] for row in page.json()]
                address = page.links.get("next", {}).get("url")
            assert seen == expected
        found = client.get("/v1/receipts?provider=m1&model=llama3.2").json()
        assert [row["receipt_id"] for row in found] == receipts[::-1]
        assert client.get("/v1/receipts?client=nobody").json() == []
        assert client.get("/explorer/blocks").headers["X-Total-Count"] == "3"
    node.close()


def test_a_proof_is_refused_with_a_hint_until_its_receipt_is_final(tmp_path):
    node = ApiNode(tmp_path)
    with node.client() as client:
        _, receipt = run_job(client, node)
        place = f"/v1/receipts/{receipt['receipt_id']}"
        assert "describedby" not in client.get(place).links
        answer = client.get(f"{place}/proof")
        assert (answer.status_code, answer.json()["error_code"]) == (409, "RECEIPT_PENDING")
        assert int(answer.headers["Retry-After"]) >= 1
        node.start_sealing()
        node.wait_final(1)
        proof = client.get(client.get(place).links["describedby"]["url"])
        assert proof.content == node.views.bundle(receipt["receipt_id"])
        name = f'attachment; filename="{receipt["receipt_id"]}.proof.json"'
        assert proof.headers["Content-Disposition"] == name
    node.close()


def test_the_node_says_whether_it_takes_work(node):
    with TestClient(node.app(find_obstacle=lambda: None)) as client:
        assert client.get("/health/ready").json() == {"status": "ready"}
    syncing = RequestError("SYSTEM_SHUTTING_DOWN", "later")
    with TestClient(node.app(find_obstacle=lambda: syncing)) as client:
        answer = client.get("/health/ready")
        assert (answer.status_code, answer.json()["error_code"]) == (503, "SYSTEM_SHUTTING_DOWN")
        assert "Retry-After" in answer.headers
        assert client.get("/health").status_code == 200


# --- failures of ours -------------------------------------------------------------------------


def test_an_unexpected_failure_is_a_500_that_tells_the_log_where_but_not_what(caplog):
    async def fail(_request):
        raise RuntimeError(SECRET)

    with serve(fail) as client, caplog.at_level(logging.ERROR):
        answer = client.post("/x")
    assert answer.status_code == 500
    assert answer.json()["error_code"] == "SYSTEM_INTERNAL_ERROR"
    assert "RuntimeError" in caplog.text
    assert "made" in caplog.text
    assert "in fail" in caplog.text
    assert SECRET not in caplog.text + answer.text


def test_a_market_code_that_nobody_documented_is_a_fault_of_ours():
    async def fail(_request):
        raise MarketError("NO_SUCH_CODE", "x")

    with serve(fail) as client:
        assert client.post("/x").status_code == 500


def test_a_full_write_queue_asks_to_come_back():
    async def fail(_request):
        raise DatabaseBusyError("full")

    with serve(fail) as client:
        answer = client.post("/x")
    assert (answer.status_code, answer.json()["error_code"]) == (503, "SYSTEM_OVERLOADED")
    assert int(answer.headers["Retry-After"]) >= 1


def test_a_refused_signature_shows_what_was_expected():
    async def fail(_request):
        raise MarketError("RECEIPT_MISMATCH", "x", expected={"price_micros": 7})

    with serve(fail) as client:
        assert client.post("/x").json()["expected"] == {"price_micros": 7}


# --- bodies -----------------------------------------------------------------------------------


async def echo(request):
    return answer_json({"size": len(request.body)})


def test_a_body_may_be_as_large_as_its_bound_and_no_larger():
    headers = {"Content-Type": "application/json"}
    with serve(echo, max_body_bytes=1000) as client:
        assert client.post("/x", content=b"x" * 1000, headers=headers).json() == {"size": 1000}
        for content in (b"x" * 1001, iter([b"x" * 600, b"x" * 600])):
            answer = client.post("/x", content=content, headers=headers)
            assert answer.status_code == 413
            assert answer.json()["error_code"] == "VALIDATION_BODY_TOO_LARGE"


@pytest.mark.parametrize(
    "media_type",
    [
        *("application/json", "Application/JSON", "application/json; charset=utf-8"),
        "application/problem+json",
    ],
)
def test_json_media_types_are_taken(media_type):
    with serve(echo, max_body_bytes=10) as client:
        answer = client.post("/x", content=b"{}", headers={"Content-Type": media_type})
        assert answer.status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "multipart/form-data; boundary=application/json"},
        {"Content-Type": "application/jsonx"},
        {"Content-Type": "application/json", "Content-Encoding": "gzip"},
    ],
)
def test_any_other_media_type_is_refused(headers):
    with serve(echo, max_body_bytes=10) as client:
        answer = client.post("/x", content=b"{}", headers=headers)
        assert (answer.status_code, answer.json()["error_code"]) == (415, "VALIDATION_MEDIA_TYPE")


def http_scope(**headers: str):
    pairs = [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()]
    return {"type": "http", "method": "POST", "headers": pairs, "path": "/", "query_string": b""}


def read(
    receive,
    *,
    max_bytes: int,
    room: BodyRoom | None = None,
    address: str = "192.0.2.1",
    **headers: str,
) -> Request:
    request = Request(http_scope(**headers) | {"client": (address, 1)})
    request.receive = receive
    asyncio.run(request.read_body(room or BodyRoom(), max_bytes=max_bytes, timeout_ms=60_000))
    return request


def send_pieces(*pieces: bytes):
    left = list(pieces)

    async def receive():
        piece = left.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(left)}

    return receive


def test_all_bodies_together_have_a_bound_and_give_their_room_back():
    room = BodyRoom(12)
    first = read(send_pieces(b"abc", b"def"), max_bytes=8, room=room, content_length="6")
    room.take(2, "somebody")
    with pytest.raises(RequestError) as caught:
        read(
            send_pieces(b"ab", b"cde"),
            max_bytes=8,
            room=room,
            address="192.0.2.2",
            content_length="5",
        )
    assert caught.value.code == "SYSTEM_OVERLOADED"
    first.drop_body()
    first.drop_body()
    assert first.body == b""
    with pytest.raises(RequestError):  # the refused one holds its first piece still
        room.take(5, "192.0.2.2")
    room.take(4, "192.0.2.2")


def test_one_caller_takes_half_the_room_of_bodies_and_leaves_the_other():
    room = BodyRoom(12)
    held = [read(send_pieces(b"abc"), max_bytes=8, room=room, content_length="3") for _ in "12"]
    with pytest.raises(RequestError) as caught:
        read(send_pieces(b"a"), max_bytes=8, room=room, content_length="1")
    assert caught.value.code == "SYSTEM_OVERLOADED"
    other = read(
        send_pieces(b"abcdef"), max_bytes=8, room=room, address="192.0.2.2", content_length="6"
    )
    assert other.body == b"abcdef"
    for request in held:
        request.drop_body()
    read(send_pieces(b"abcdef"), max_bytes=8, room=room, content_length="6")


def test_a_refused_body_gives_its_room_back():
    room = BodyRoom(8)

    async def fail(_request):
        raise ValueError

    for handler, status in ((echo, 200), (fail, 500), (echo, 200)):
        with serve(handler, max_body_bytes=8, room=room) as client:
            assert client.post("/x", json=12).status_code == status
            assert client.post("/x", json=123456).status_code == 503
    room.take(4, "somebody")
    room.take(4, "somebody else")


def test_an_endless_body_is_read_no_further_than_its_bound():
    taken = 0

    async def receive():
        nonlocal taken
        taken += 1
        return {"type": "http.request", "body": b"x" * 65_536, "more_body": True}

    with pytest.raises(RequestError) as caught:
        read(receive, max_bytes=MAX_BODY_BYTES, transfer_encoding="chunked")
    assert caught.value.code == "VALIDATION_BODY_TOO_LARGE"
    assert taken == 17


def test_a_body_announced_too_large_is_refused_before_its_first_byte():
    async def receive():
        raise AssertionError("nothing should be read")

    for length in ("1025", "9" * 30):
        with pytest.raises(RequestError):
            read(receive, max_bytes=1024, content_length=length)


def test_a_client_that_hangs_up_in_its_body_gets_no_answer():
    sent = []

    async def receive():
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    with pytest.raises(ClientGoneError):
        read(receive, max_bytes=1024, content_length="5")
    resource = Resource(
        {"POST": Operation(handler=echo, max_body_bytes=10)},
        keys=None,
        settings=ApiSettings(mode="dev", version="0", default_model="m"),
        make_request_id=lambda: "made",
        room=BodyRoom(),
    )
    scope = http_scope(content_length="5", content_type="application/json")
    asyncio.run(resource(scope, receive, send))
    assert sent == []
