"""Rate limits: how many requests pass, who pays for them, and whose word counts for an address."""

import asyncio
import http.client

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from starlette.testclient import TestClient
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from api.errors import RequestError
from api.limits import (
    BURST_S,
    UNKNOWN_ADDRESS,
    RateLimiter,
    RateLimits,
    TokenBuckets,
    read_address,
)
from api.resource import Boundary
from ledger.errors import StoreError
from ledger.jobs import Caller
from node.config import choose_rate_limits, parse_trusted_proxies
from tests.api_node import ApiNode
from tests.api_server import serve
from tests.live import LiveNode
from tests.node_settings import build_settings

KNOWN = Caller(key="known", client="c", role="client")
NOBODY = Caller(key="", client="anonymous", role=None)


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


def scope(address: str | None) -> dict:
    return {"type": "http", "client": None if address is None else (address, 1)}


def passes(limiter: RateLimiter, caller: Caller = NOBODY, address: str = "192.0.2.1") -> bool:
    try:
        limiter.check(caller, scope(address))
    except RequestError:
        return False
    return True


# --- buckets ----------------------------------------------------------------------------------


@given(
    rate=st.floats(0.01, 2000),
    steps=st.lists(st.tuples(st.floats(0, 10), st.integers(1, 30)), max_size=30),
)
def test_no_more_pass_than_the_burst_and_what_has_flowed_in_since(rate, steps):
    clock = Clock()
    buckets = TokenBuckets(rate, clock_s=clock)
    passed, began_s = 0, clock.now_s
    for wait_s, requests in steps:
        clock.now_s += wait_s
        passed += sum(buckets.take("a") == 0 for _ in range(requests))
        assert passed <= max(1, rate * BURST_S) + rate * (clock.now_s - began_s) + 1e-6


@given(rate=st.floats(0.01, 2000))
def test_who_waits_as_long_as_it_was_told_passes_and_a_moment_earlier_does_not(rate):
    clock = Clock()
    buckets = TokenBuckets(rate, clock_s=clock)
    while (wait_s := buckets.take("a")) == 0:
        pass
    assume(wait_s > 1e-6)  # below this the clock's own steps count
    began_s = clock.now_s
    clock.now_s = began_s + 0.9 * wait_s
    assert buckets.take("a") > 0
    clock.now_s = began_s + wait_s * 1.000001
    assert buckets.take("a") == 0
    assert buckets.take("a") > 0


def test_buckets_are_bounded_and_the_least_recently_used_one_is_forgotten():
    buckets = TokenBuckets(0.01, clock_s=Clock(), max_buckets=3)
    assert [buckets.take(name) for name in ("a", "b", "c")] == [0, 0, 0]
    assert buckets.take("a") > 0
    assert buckets.take("d") == 0
    assert len(buckets) == 3
    assert buckets.take("a") > 0, "it was used since b"
    assert buckets.take("b") == 0, "it was forgotten, and is full again"


# --- who pays ---------------------------------------------------------------------------------


def test_a_key_does_not_pay_for_its_address_and_an_address_not_for_its_keys():
    limiter = RateLimiter(RateLimits(key=0.1, address=0.1), clock_s=Clock())
    assert passes(limiter)
    assert not passes(limiter)
    assert passes(limiter, KNOWN)
    assert not passes(limiter, KNOWN, "198.51.100.7")
    assert passes(limiter, Caller(key="other", client="c", role="miner"))
    assert passes(limiter, address="198.51.100.7")


def test_without_limits_everything_passes():
    limiter = RateLimiter(RateLimits(), clock_s=Clock())
    assert all(passes(limiter, caller) for caller in [NOBODY, KNOWN] * 1000)


@pytest.mark.parametrize(
    ("address", "bucket"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("fe80::1%" + "a" * 20, "fe80::/64"),
        ("unknown", UNKNOWN_ADDRESS),
        ("_hidden", UNKNOWN_ADDRESS),
        ("1" * 5000, UNKNOWN_ADDRESS),
        ("192.0.2.1\n", UNKNOWN_ADDRESS),
        (None, UNKNOWN_ADDRESS),
    ],
)
def test_an_address_has_one_bucket_however_it_is_written(address, bucket):
    assert read_address(scope(address)) == bucket


# --- in the boundary --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    node = ApiNode(tmp_path_factory.mktemp("limits"))
    yield node
    node.close()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def client(node, clock):
    limiter = RateLimiter(RateLimits(key=0.2, address=0.2), clock_s=clock)
    with TestClient(node.app("strict", boundary=Boundary(limiter=limiter))) as client:
        yield client


def refused(answer) -> tuple[int, str]:
    return answer.status_code, answer.json()["error_code"]


LIMITED = (429, "RATE_LIMIT_EXCEEDED")


def test_a_refusal_tells_truly_when_to_come_back(client, clock):
    assert client.get("/health").status_code == 200
    answer = client.get("/health")
    assert refused(answer) == LIMITED
    assert answer.headers.get_list("Retry-After") == ["5"]
    clock.now_s += 4.9
    assert client.get("/health").headers["Retry-After"] == "1"
    clock.now_s += 0.2
    assert client.get("/health").status_code == 200


def test_the_limit_stands_between_the_key_and_its_role_and_the_body(client, node):
    key = {"X-Api-Key": node.keys["miner"]}
    assert refused(client.post("/v1/jobs", headers=key)) == (403, "AUTH_INSUFFICIENT_SCOPE")
    assert refused(client.post("/v1/jobs", headers=key)) == LIMITED
    assert refused(client.post("/v1/jobs", headers=key, content=b"x" * 2_000_000)) == LIMITED
    assert refused(client.delete("/v1/jobs", headers=key)) == (405, "METHOD_NOT_ALLOWED")
    assert client.options("/v1/jobs", headers=key).status_code == 204


def test_a_failed_authentication_counts_against_the_address(client, node):
    wrong = {"X-Api-Key": "aik_wrong_key"}
    assert refused(client.get("/health", headers=wrong)) == (401, "AUTH_INVALID_KEY")
    assert refused(client.get("/health", headers=wrong)) == LIMITED
    assert refused(client.get("/health")) == LIMITED
    good = {"X-Api-Key": node.keys["admin"]}
    assert client.get("/health", headers=good).status_code == 200


def test_a_header_that_is_no_key_counts_against_the_address_too(client):
    assert refused(client.get("/health", headers={"Authorization": "Basic eDp5"}))[0] == 401
    assert refused(client.get("/health", headers={"Authorization": "Basic eDp5"})) == LIMITED


def test_both_ways_to_a_path_share_one_bucket(client):
    assert client.get("/health").status_code == 200
    assert refused(client.get("/api/health")) == LIMITED


# --- whose word counts for an address ---------------------------------------------------------


def ask(port: int, forwarded: str | None = None, path: str = "/health") -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", path, headers={"X-Forwarded-For": forwarded} if forwarded else {})
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status


def limited_app(node):
    limiter = RateLimiter(RateLimits(address=0.1), clock_s=Clock())
    return node.app(boundary=Boundary(limiter=limiter))


def test_a_stranger_gains_nothing_by_naming_another_address(node, monkeypatch):
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")  # uvicorn's own switch moves nothing
    with serve(limited_app(node)) as port:
        assert ask(port) == 200
        assert {ask(port, f"198.51.100.{number}") for number in range(5)} == {429}


def test_behind_a_trusted_proxy_each_client_has_a_bucket(node):
    with serve(limited_app(node), trusted_proxies=parse_trusted_proxies(["127.0.0.1"])) as port:
        assert [ask(port, "198.51.100.1"), ask(port, "198.51.100.1")] == [200, 429]
        assert ask(port, "198.51.100.2") == 200


def test_only_what_the_nearest_trusted_proxies_added_is_believed(node):
    proxies = parse_trusted_proxies(["127.0.0.1", "10.0.0.0/8"])
    with serve(limited_app(node), trusted_proxies=proxies) as port:
        assert ask(port, "192.0.2.9, 198.51.100.1, 10.1.2.3") == 200
        # A client writes the front of the header, so it could name anybody there.
        assert ask(port, "192.0.2.8, 198.51.100.1, 10.1.2.3") == 429
        assert ask(port, "198.51.100.1") == 429
        assert ask(port, "192.0.2.9") == 200


def test_a_proxy_that_is_not_the_trusted_one_is_a_stranger(node):
    with serve(limited_app(node), trusted_proxies=parse_trusted_proxies(["10.0.0.1"])) as port:
        assert [ask(port, "198.51.100.1"), ask(port, "198.51.100.2")] == [200, 429]


@pytest.mark.parametrize(
    ("given", "trusted"),
    [
        ("10.0.0.2", ["10.0.0.2/32", "::ffff:10.0.0.2/128"]),
        ("10.0.0.0/24", ["10.0.0.0/24", "::ffff:10.0.0.0/120"]),
        ("2001:db8::/32", ["2001:db8::/32"]),
    ],
)
def test_a_proxy_is_an_address_or_a_network_in_both_families(given, trusted):
    assert parse_trusted_proxies([given]) == trusted


@pytest.mark.parametrize("peer", ["10.0.0.7", "::ffff:10.0.0.7"])
def test_a_proxy_is_known_on_a_socket_of_either_family(peer):
    seen = []

    async def app(scope, _receive, _send):
        seen.append(read_address(scope))

    trusted = parse_trusted_proxies(["10.0.0.0/24"])
    headers = [(b"x-forwarded-for", b"198.51.100.1")]
    for client in (peer, "::ffff:10.0.1.7"):
        scope = {"type": "http", "client": (client, 1), "headers": headers}
        asyncio.run(ProxyHeadersMiddleware(app, trusted)(scope, None, None))
    assert seen == ["198.51.100.1", "10.0.1.7"]


@pytest.mark.parametrize("given", ["*", "", "proxy.example", "10.0.0.1/24", "0.0.0.0/0", "::/0"])
def test_whoever_is_not_clearly_somebody_is_trusted_by_nobody(given):
    with pytest.raises(StoreError, match="--trusted-proxy"):
        parse_trusted_proxies([given])


# --- a whole node -----------------------------------------------------------------------------


def test_limits_are_off_in_dev_mode_and_on_in_strict_mode_unless_told_otherwise():
    assert choose_rate_limits(build_settings()) == RateLimits()
    assert choose_rate_limits(build_settings(mode="strict")) == RateLimits(key=1000, address=50)
    told = {"rate_limit_key": 0.0, "rate_limit_address": 7.5}
    for mode in ("dev", "strict"):
        changed = build_settings(mode=mode, **told)
        assert choose_rate_limits(changed) == RateLimits(key=0, address=7.5)


def test_a_node_limits_its_api_and_not_its_pages_and_peers(tmp_path):
    live = LiveNode(tmp_path / "node", "--rate-limit-address", "0.001")
    live.start()
    try:
        port = int(live.url.rsplit(":", 1)[1])
        assert [ask(port), ask(port, "198.51.100.1")] == [200, 429]
        pages = ("/", "/blocks", "/p2p/status")
        assert [ask(port, path=path) for path in pages * 2] == [200] * 6
    finally:
        assert live.stop() == 0


def test_a_node_believes_the_proxy_that_it_is_told_to(tmp_path):
    limits = ("--rate-limit-address", "0.001", "--trusted-proxy", "127.0.0.1")
    live = LiveNode(tmp_path / "node", *limits)
    live.start()
    try:
        port = int(live.url.rsplit(":", 1)[1])
        assert [ask(port, f"198.51.100.{number}") for number in (1, 1, 2)] == [200, 429, 200]
    finally:
        assert live.stop() == 0
