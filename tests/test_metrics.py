"""Metrics: what is counted, what it costs in series, who may read it, and what it never says."""

import asyncio
import math
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.testclient import TestClient

from api.answers import Stream
from api.errors import STATUSES, ClientGoneError
from api.metering import CLIENT_GONE, METHODS, OTHER_METHOD, UNKNOWN_ROUTE, Outcome
from api.requests import BodyRoom
from api.resource import ApiSettings, Boundary, Operation, Resource
from ledger.errors import MarketError, StoreError
from ledger.store import jobs as job_store
from ledger.views import SyncProgress
from node.gauges import NodeState, StateCollector
from node.market.desk import FAILURES
from node.metrics import NodeMetrics
from node.p2p.peers import Peer
from node.signal import Signal
from tests.api_node import ApiNode, run_job
from tests.caller import Caller
from tests.live import LiveFollower, LiveNode
from tests.market_node import CLIENT, MINER, MarketNode

SECRET = "the secret prompt"


def new_metrics() -> NodeMetrics:
    return NodeMetrics(release="1.2.3", mode="strict", role="authority")


def outcome(**changes) -> Outcome:
    plain = {
        "method": "GET",
        "route": "/health",
        "status": 200,
        "seconds": 0.003,
        "request_id": "r",
        "key": "",
        "error_code": "",
    }
    return Outcome(**plain | changes)


def samples(text: bytes | str) -> dict[tuple[str, frozenset], float]:
    """Every sample by name and labels; the format is read by Prometheus' own reader."""
    text = text.decode() if isinstance(text, bytes) else text
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(text: bytes | str, name: str, **labels: str) -> float:
    return samples(text).get((name, frozenset(labels.items())), math.nan)


# --- requests ---------------------------------------------------------------------------------


def test_a_request_is_counted_by_method_route_and_class_of_status():
    metrics = new_metrics()
    for status, code in (
        (200, ""),
        (201, ""),
        (404, "JOB_NOT_FOUND"),
        (429, "RATE_LIMIT_EXCEEDED"),
    ):
        metrics.note_request(outcome(status=status, error_code=code))
    text = metrics.render()
    labels = {"method": "GET", "route": "/health"}
    assert value(text, "aitbc_http_requests_total", **labels, status="2xx") == 2
    assert value(text, "aitbc_http_requests_total", **labels, status="4xx") == 2
    assert value(text, "aitbc_http_refusals_total", error_code="RATE_LIMIT_EXCEEDED") == 1
    bucket = "aitbc_http_request_duration_seconds_bucket"
    assert value(text, bucket, **labels, le="0.0025") == 0
    assert value(text, bucket, **labels, le="0.005") == 4
    assert value(text, "aitbc_http_request_duration_seconds_sum", **labels) == pytest.approx(0.012)


def test_two_nodes_in_one_process_count_apart():
    first, second = new_metrics(), new_metrics()
    first.note_job("submitted", "")
    submitted = {"event": "submitted", "reason": ""}
    assert value(first.render(), "aitbc_job_transitions_total", **submitted) == 1
    assert value(second.render(), "aitbc_job_transitions_total", **submitted) == 0


def test_what_may_be_counted_is_there_from_the_start(market):
    fresh = set(samples(new_metrics().render()))
    metrics = new_metrics()
    for code, status in STATUSES.items():
        metrics.note_request(outcome(status=status, error_code=code))
    market.finish()
    market.do(market.coordinator.cancel(CLIENT, market.submit().job_id))
    fail_in_every_way(market)
    for event, reason in market.moves:
        metrics.note_job(event, reason)
    new = set(samples(metrics.render())) - fresh
    assert {name for name, _ in new if not name.startswith("aitbc_http_request")} == set()
    assert {reason for event, reason in market.moves if event == "failed"} == set(FAILURES)


def test_build_and_process_are_told():
    text = new_metrics().render()
    build = {"version": "1.2.3", "mode": "strict", "role": "authority"}
    assert value(text, "aitbc_build_info", **build) == 1
    if Path("/proc/self/stat").exists():
        for name in ("resident_memory_bytes", "open_fds", "cpu_seconds_total"):
            assert value(text, f"process_{name}") > 0


# --- what the boundary tells ------------------------------------------------------------------


@pytest.fixture
def node(tmp_path) -> Iterator[ApiNode]:
    node = ApiNode(tmp_path)
    yield node
    node.close()


@pytest.fixture
def told() -> list[Outcome]:
    return []


@pytest.fixture
def client(node, told) -> Iterator[TestClient]:
    with TestClient(node.app(boundary=Boundary(observe=told.append))) as client:
        yield client


def test_an_outcome_names_the_route_and_not_the_path(client, told, node):
    job, receipt = run_job(client, node, prompt=SECRET)
    client.get(f"/api/v1/jobs/{job['job_id']}?q={SECRET}")
    client.get(f"/v1/receipts/{receipt['receipt_id']}")
    client.get("/tile/entries/x000/000")
    routes = [one.route for one in told]
    assert routes[-3:] == [
        "/v1/jobs/{job_id}",
        "/v1/receipts/{receipt_id}",
        "/tile/entries/{index}",
    ]
    assert told[-3].key == told[1].key == ""
    assert told[0].key == node.keys["client"].split("_")[1]
    for one in told:
        assert SECRET not in repr(one)
        assert job["job_id"] not in repr(one)


def test_every_unknown_path_is_one_route(client, told):
    for path in ("/v1/no", "/v1/no/2", "/api/%0a", "/explorer/x", "/tile/9", "/v1"):
        assert client.get(path).status_code == 404
    assert {(one.route, one.error_code) for one in told} == {(UNKNOWN_ROUTE, "PATH_NOT_FOUND")}


def test_every_unusual_method_is_one_method(client, told):
    for method in ("PROPFIND", "MKCOL", "X" * 300, "POST"):
        client.request(method, "/health")
    assert [one.method for one in told] == [OTHER_METHOD] * 3 + ["POST"]
    assert {one.error_code for one in told} == {"METHOD_NOT_ALLOWED"}


def serve_handler(handler, told, clock_s=lambda: 0.0) -> TestClient:
    resource = Resource(
        {"GET": Operation(handler=handler)},
        keys=None,
        settings=ApiSettings(mode="dev", version="0", default_model="m"),
        make_request_id=lambda: "made",
        room=BodyRoom(),
        path="/x/{one}",
        boundary=Boundary(observe=told.append, clock_s=clock_s),
    )
    return TestClient(Starlette(routes=[Route("/x/{one}", resource)]))


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (MarketError("JOB_NOT_FOUND", "m"), 404, "JOB_NOT_FOUND"),
        (StoreError("full"), 503, "SYSTEM_STORAGE_FAILED"),
        (ValueError(SECRET), 500, "SYSTEM_INTERNAL_ERROR"),
        (ClientGoneError(), CLIENT_GONE, ""),
    ],
)
def test_however_a_request_ends_it_is_told_of_once(told, error, status, code):
    async def fail(_request):
        raise error

    with serve_handler(fail, told) as client:
        if status == CLIENT_GONE:
            with pytest.raises(AssertionError):  # the test client misses its answer
                client.get("/x/1")
        else:
            client.get("/x/1")
    assert [(one.status, one.error_code, one.route) for one in told] == [(status, code, "/x/{one}")]


def test_a_stream_is_told_of_at_its_end_with_its_whole_duration(told):
    now_s = [5.0]

    async def pieces():
        for _ in range(3):
            now_s[0] += 1
            assert told == []
            yield b"piece"

    async def stream(_request):
        return Stream(pieces=pieces())

    with serve_handler(stream, told, clock_s=lambda: now_s[0]) as client:
        assert client.get("/x/1").text == "piece" * 3
    assert [(one.status, one.seconds) for one in told] == [(200, 3.0)]


# --- jobs -------------------------------------------------------------------------------------


@pytest.fixture
def market(tmp_path) -> Iterator[MarketNode]:
    market = MarketNode(tmp_path)
    yield market
    market.close()


def test_every_transition_of_a_job_is_told_once(market):
    market.finish()
    market.do(market.coordinator.cancel(CLIENT, market.submit().job_id))
    assert [event for event, _ in market.moves] == [
        *("submitted", "claimed", "completed"),
        *("submitted", "cancelled"),
    ]


def test_what_changes_nothing_is_not_told(market):
    market.register()
    job = market.submit()
    market.claim(job)
    market.claim(job)
    market.complete(job)
    market.complete(job)
    with pytest.raises(MarketError):
        market.do(market.coordinator.cancel(CLIENT, job.job_id))
    other = market.submit()
    for _ in range(2):
        market.do(market.coordinator.cancel(CLIENT, other.job_id))
    assert [event for event, _ in market.moves] == [
        *("submitted", "claimed", "completed"),
        *("submitted", "cancelled"),
    ]


def fail_in_every_way(market: MarketNode) -> None:
    """One job that loses three leases, one that runs too long, one that its miner gives up, one
    that nobody wants.
    """
    market.register()
    job = market.submit()
    for _ in range(3):
        market.claim(job)
        market.now_ms += 60_000
        market.do(market.coordinator.sweep())
    job = market.submit()
    market.claim(job)
    market.now_ms += 600_000
    market.do(market.coordinator.sweep())
    job = market.submit()
    market.claim(job)
    given_up = {"reason": SECRET, "retryable": False}
    market.do(market.coordinator.fail(MINER, job.job_id, "m1", **given_up))
    market.submit()
    market.now_ms += 3_600_001
    market.do(market.coordinator.sweep())


def test_why_a_job_failed_is_told_and_not_what_its_miner_said(market):
    fail_in_every_way(market)
    assert [move for move in market.moves if move[0] not in {"submitted", "claimed"}] == [
        ("requeued", ""),
        ("requeued", ""),
        ("failed", "max_attempts"),
        ("failed", "execution_timeout"),
        ("failed", "miner_error"),
        ("failed", "queue_timeout"),
    ]


def test_a_transition_that_is_rolled_back_is_not_told(market, monkeypatch):
    job = market.submit()
    market.register()

    def claim_then_fail(connection, job, **details):
        claim(connection, job, **details)
        market.coordinator._move("claimed")
        raise StoreError("after the fact")

    claim = job_store.claim_job
    monkeypatch.setattr(job_store, "claim_job", claim_then_fail)
    with pytest.raises(StoreError, match="after the fact"):
        market.claim(job)
    assert market.moves == [("submitted", "")]
    assert market.read(job).state == "pending"


# --- how things stand -------------------------------------------------------------------------


def read_state(market: MarketNode, **changes) -> bytes:
    metrics = new_metrics()
    state = {
        "chain": market.chain,
        "market": market.store,
        "clock_ms": lambda: market.now_ms,
        "sync": lambda: progress(),
        "waiters": {"work": lambda: 3},
    }
    metrics.registry.register(StateCollector(NodeState(**state | changes)))
    return metrics.render()


def progress(**changes):
    plain = {
        "state": "idle",
        "height": 0,
        "target_height": 0,
        "blocks_per_s": 0.0,
        "receipts_per_s": 0.0,
        "eta_s": None,
        "source": None,
        "last_error": None,
    }
    return SyncProgress(**plain | changes)


def test_the_gauges_tell_how_the_market_stands(market):
    market.register("m1")
    market.register("m2")
    running = market.submit()
    for _ in range(2):
        market.submit()
    market.claim(running)
    text = read_state(market)
    assert value(text, "aitbc_jobs", state="pending") == 2
    assert value(text, "aitbc_jobs", state="running") == 1
    assert value(text, "aitbc_active_miners") == 2
    assert value(text, "aitbc_final_lag_seconds") == 0
    assert value(text, "aitbc_open_audits", state="running") == 0
    assert value(text, "aitbc_audits_total", event="drawn") == 0
    assert value(text, "aitbc_waiters", news="work") == 3
    market.complete(running)
    market.now_ms += 150_000
    text = read_state(market, count_foreign=lambda: 7)
    assert value(text, "aitbc_active_miners") == 0
    assert value(text, "aitbc_mempool_transactions", origin="own") == 1
    assert value(text, "aitbc_mempool_transactions", origin="foreign") == 7
    assert value(text, "aitbc_final_lag_seconds") == 150
    market.seal()
    text = read_state(market)
    assert value(text, "aitbc_mempool_transactions", origin="own") == 0
    assert value(text, "aitbc_final_lag_seconds") == 0
    assert value(text, "aitbc_ledger_height") == 1
    assert value(text, "aitbc_ledger_time_seconds") * 1000 == market.chain.tip().time_ms


def test_the_gauges_tell_how_webhooks_fare(market):
    text = read_state(market)
    assert value(text, "aitbc_webhook_waiting") == 0
    figures = {"waiting": 3, "delivered": 5, "given_up": 7, "failed": 11}
    market.store.write(
        lambda c: c.executemany(
            "INSERT OR REPLACE INTO counters VALUES ('webhooks_' || ?, ?)", figures.items()
        )
    ).result()
    text = read_state(market)
    assert value(text, "aitbc_webhook_waiting") == 3
    assert value(text, "aitbc_webhook_deliveries_total", outcome="delivered") == 5
    assert value(text, "aitbc_webhook_deliveries_total", outcome="given_up") == 7
    assert value(text, "aitbc_webhook_failed_attempts_total") == 11


def test_the_gauges_tell_how_the_network_stands(market):
    peers = [
        Peer(account="ait1x", name="beta", url="http://b.example", stated_url="", failure=failure)
        for failure in (None, None, "no answer")
    ]
    stalled = progress(state="stalled", target_height=9)
    text = read_state(market, peers=lambda: peers, sync=lambda: stalled)
    assert value(text, "aitbc_peers", answers="yes") == 2
    assert value(text, "aitbc_peers", answers="no") == 1
    assert value(text, "aitbc_sync_lag_blocks") == 9
    assert value(text, "aitbc_sync_stalled") == 1
    assert value(text, "aitbc_authorities") == 1
    assert value(text, "aitbc_writer_queue", database="node.db") == 0
    assert b"beta" not in text
    assert b"example" not in text


def test_whoever_waits_is_counted_until_it_leaves_in_whatever_way():
    async def wait() -> list[int]:
        signal = Signal()
        signal.bind()
        stays, leaves = (asyncio.ensure_future(signal.wait()) for _ in range(2))
        ends = asyncio.ensure_future(signal.wait(0))
        await asyncio.sleep(0)
        counts = [signal.waiting]
        leaves.cancel()
        await asyncio.wait([leaves, ends])
        counts.append(signal.waiting)
        signal.fire()
        await stays
        return [*counts, signal.waiting]

    assert asyncio.run(wait()) == [3, 1, 0]


def test_rows_are_counted_up_to_a_bound(market, monkeypatch):
    monkeypatch.setattr("node.gauges.MAX_COUNTED", 2)
    for _ in range(4):
        market.finish()
    assert value(read_state(market), "aitbc_mempool_transactions", origin="own") == 2


# --- served -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/metrics", "/api/metrics"])
def test_in_strict_mode_metrics_are_for_admins(node, path):
    metrics = new_metrics()
    with TestClient(node.app("strict", metrics=metrics.render)) as client:
        assert client.get(path).status_code == 401
        for role, status in (("client", 403), ("miner", 403), ("admin", 200)):
            bearer = {"Authorization": f"Bearer {node.keys[role]}"}
            assert client.get(path, headers=bearer).status_code == status
    with TestClient(node.app("dev", metrics=metrics.render)) as client:
        answer = client.get(path)
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert "aitbc_build_info" in answer.text


LABELS = {
    "route": re.compile(r"/[a-z0-9_./{}-]*|unknown"),
    "method": re.compile("|".join([*METHODS, OTHER_METHOD])),
    "status": re.compile(r"[1-5]xx"),
    "error_code": re.compile("|".join(STATUSES)),
    "event": re.compile(r"[a-z]+"),
    "reason": re.compile(r"[a-z_]*"),
}


def test_a_node_counts_its_work_and_tells_nothing_about_whose_it_was(tmp_path):
    live = LiveNode(tmp_path / "node", "--mode", "dev")
    key = live.create_key("admin", client="a-client-name")
    live.start()
    try:
        with Caller(live.url, key) as caller:
            receipt_id = caller.finish_job()
            caller.wait_for_block(1)
            for path in ("/v1/<hostile>", "/v1/jobs/x?y=z", f"/v1/receipts/{receipt_id}"):
                caller.get(path)
            text = caller.get("/metrics").text
    finally:
        assert live.stop() == 0
    jobs = {"event": "completed", "reason": ""}
    assert value(text, "aitbc_job_transitions_total", **jobs) == 1
    assert value(text, "aitbc_ledger_height") == 1
    route = {"method": "POST", "route": "/v1/jobs", "status": "2xx"}
    assert value(text, "aitbc_http_requests_total", **route) == 1
    assert value(text, "aitbc_build_info", version="0.1.0", mode="dev", role="authority") == 1
    for secret in (
        receipt_id,
        key,
        key.split("_")[1],
        "a-client-name",
        "m1",
        "Rayleigh",
        "hostile",
    ):
        assert secret not in text
    for _, labels in samples(text):
        for name, given in labels:
            assert LABELS.get(name, re.compile(".*")).fullmatch(given), f"{name}={given}"
    assert not re.search(r"_created\b", text)


@pytest.mark.parametrize(("command", "role"), [("run", "follower"), ("witness", "witness")])
def test_a_follower_tells_its_metrics_to_a_key_of_its_own(tmp_path, command, role):
    source = LiveNode(tmp_path / "node", "--mode", "dev")
    foreign = source.create_key("admin")
    source.start()
    follower = LiveFollower(tmp_path / "follower", source, "--mode", "strict")
    follower.command = command
    follower.start()
    own = follower.create_key("admin")
    try:
        with Caller(follower.url, foreign) as stranger:
            assert stranger.get("/metrics").status_code == 401
            assert stranger.get("/health").status_code == 200
        with Caller(follower.url, own) as caller:
            text = caller.get("/metrics").raise_for_status().text
    finally:
        follower.stop()
        source.stop()
    build = {"version": "0.1.0", "mode": "strict", "role": role}
    assert value(text, "aitbc_build_info", **build) == 1
    assert value(text, "aitbc_sync_lag_blocks") == 0
    assert value(text, "aitbc_waiters", news="block") == 0
