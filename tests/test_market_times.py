"""The times of the market are options, held against each other before a node starts."""

import pytest

from ledger.errors import StoreError
from node.cli.run import run
from node.config import check_market_times
from tests.caller import Caller
from tests.live import LiveNode
from tests.node_settings import build_settings
from tests.test_cli import one_line, run_node

TIMES = ("lease_ms", "heartbeat_interval_ms", "execution_timeout_ms", "queue_timeout_ms")


@pytest.mark.parametrize(
    "times",
    [
        {},
        {"lease_ms": 40_000},
        {"heartbeat_interval_ms": 30_000},
        {"execution_timeout_ms": 60_000},
        {"queue_timeout_ms": 100},
    ],
)
def test_times_that_fit_are_taken(times):
    check_market_times(build_settings(**times))


@pytest.mark.parametrize(
    ("times", "blamed"),
    [
        ({"lease_ms": 39_999}, "--heartbeat-interval-ms 20000"),
        ({"heartbeat_interval_ms": 30_001}, "--heartbeat-interval-ms 30001"),
        ({"execution_timeout_ms": 59_999}, "--lease-ms 60000"),
    ],
)
def test_times_that_would_cost_an_obedient_miner_its_job_are_refused(times, blamed):
    with pytest.raises(StoreError, match=blamed):
        check_market_times(build_settings(**times))


def test_what_the_command_line_takes_fits_together_by_default():
    defaults = {p.name: p.default for p in run.params if p.name in TIMES}
    assert defaults == {name: getattr(build_settings(), name) for name in TIMES}
    check_market_times(build_settings(**defaults))


def test_a_node_refuses_to_start_with_times_that_do_not_fit(tmp_path):
    live = LiveNode(tmp_path / "node")
    refused = run_node("--data", live.data.root, "--port", 0, "--lease-ms", 30_000)
    assert one_line(refused).startswith("Error: --heartbeat-interval-ms 20000: expected at most")


def test_a_claim_carries_the_times_that_the_node_was_told(tmp_path):
    times = ("--lease-ms", "5000", "--heartbeat-interval-ms", "1000")
    live = LiveNode(tmp_path / "node", *times, "--execution-timeout-ms", "7000")
    key = live.create_key("admin")
    live.start()
    try:
        with Caller(live.url, key) as caller:
            caller.post("/v1/miners/register", miner_id="m1", capabilities=["*"])
            leases = []
            for heartbeat in (True, False):
                job = caller.post("/v1/jobs", prompt="Why?").json()["job_id"]
                claim = caller.post(f"/v1/jobs/{job}/claim", miner_id="m1", heartbeat=heartbeat)
                leases.append(claim.raise_for_status().json()["lease"])
    finally:
        assert live.stop() == 0
    assert leases[0]["heartbeat_interval_ms"] == 1000
    assert 4000 < leases[0]["expires_in_ms"] <= 5000
    assert 6000 < leases[1]["expires_in_ms"] <= 7000
