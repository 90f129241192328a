"""A miner dies in the middle of a job, and another one finishes it; the simplest miner there is."""

import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from tests.builders import build_key
from tests.caller import Caller
from tests.live import ROOT, LiveNode
from tests.scripted_miner import MODEL

LEASE_S = 1
GRACE_S = 5
TIMES = (
    *("--lease-ms", str(LEASE_S * 1000), "--heartbeat-interval-ms", "200"),
    *("--execution-timeout-ms", "60000"),
)


@pytest.fixture
def node(tmp_path):
    node = LiveNode(tmp_path / "data", "--mode", "strict", *TIMES)
    node.keys = {role: node.create_key(role) for role in ("client", "miner")}
    node.start()
    yield node
    node.stop()


@contextmanager
def miner(node, name, what):
    """A miner as a process of its own; it is killed at the end, if it was not before."""
    command = [sys.executable, "-m", "tests.scripted_miner", node.url, node.keys["miner"]]
    process = subprocess.Popen(
        [*command, name, what],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait(30)
        process.stdout.close()


def test_a_job_of_a_miner_killed_in_the_middle_is_finished_by_another_with_one_receipt(node):
    with Caller(node.url, node.keys["client"]) as client:
        job = client.post("/v1/jobs", prompt="Why?", model=MODEL).json()["job_id"]
        with miner(node, "first", "never-ends") as first:
            assert first.stdout.readline() == "began\n"
            assert client.get(f"/v1/jobs/{job}").json()["status"] == "running"
            hold_for_two_leases(node, job)
            first.kill()
            first.wait(30)
            died = time.monotonic()
            with miner(node, "second", "answers"):
                client.wait_for_block(1)
                took_s = time.monotonic() - died
        assert took_s < LEASE_S + GRACE_S
        done = client.get(f"/v1/jobs/{job}").json()
        assert done["status"] == "completed"
        assert (done["attempt"], done["miner_id"]) == (2, "second")
        (receipt,) = client.get("/v1/receipts").json()
        assert (receipt["job_id"], receipt["provider"]) == (job, build_key("second").account)
        assert client.get(f"/v1/jobs/{job}").json()["result"] == "Because."


def hold_for_two_leases(node, job):
    """Another miner asks for work for twice the lease, and is given none: heartbeats keep it."""
    with Caller(node.url, node.keys["miner"]) as other:
        other.post("/v1/miners/register", miner_id="idle", capabilities=[MODEL])
        found = other.get(f"/v1/jobs/available?miner_id=idle&wait={2 * LEASE_S}")
        assert found.json() is None
        assert other.get(f"/v1/jobs/{job}").json()["attempt"] == 1


def test_a_miner_with_nothing_but_the_fields_of_the_reference_earns_a_receipt(tmp_path):
    """No key, no heartbeat, no units, a time without a zone: what the reference's example sends."""
    node = LiveNode(tmp_path / "data")
    key = node.create_key("client")
    node.start()
    try:
        with Caller(node.url) as simple, Caller(node.url, key) as client:
            job = client.post("/v1/jobs", prompt="Why?", model="llama3.2").json()["job_id"]
            body = {"miner_id": "miner-001", "capabilities": ["llama3.2", "gpu"]}
            simple.post("/v1/miners/register", **body).raise_for_status()
            offered = simple.get("/v1/jobs/available?miner_id=miner-001").json()
            assert (offered["job_id"], offered["prompt"]) == (job, "Why?")
            place = f"/v1/jobs/{job}"
            simple.post(f"{place}/claim", miner_id="miner-001").raise_for_status()
            done = {"miner_id": "miner-001", "result": "Because."}
            answer = simple.post(f"{place}/complete", **done, completed_at="2024-01-15T10:30:00")
            receipt = answer.raise_for_status().json()
            client.wait_for_block(1)
            proof = tmp_path / "bundle.json"
            proof.write_bytes(client.get(f"/v1/receipts/{receipt['receipt_id']}/proof").content)
            assert client.get(place).json()["result"] == "Because."
    finally:
        node.stop()
    command = [sys.executable, str(ROOT / "scripts/verify_receipt.py"), str(proof)]
    verified = subprocess.run(
        [*command, "--genesis", str(node.data.genesis)], capture_output=True, text=True, timeout=60
    )
    assert verified.returncode == 0, verified.stdout
    assert (receipt["signer"], receipt["provider"]) == ("coordinator", "miner-001")
