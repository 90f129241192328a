"""What the node acknowledged survives SIGKILL at any moment."""

from __future__ import annotations

import contextlib
import random
import sqlite3
import threading

import httpx2
import pytest

from ledger.store.fsck import verify_chain
from tests.live import LiveNode

KILLS = 20
WORKERS = 4
MAX_LOOKS = 5000


class Load:
    """Workers that submit, claim and complete jobs until the node dies, and note what it said."""

    def __init__(self, url: str, key: str) -> None:
        self.jobs: list[str] = []
        self.receipts: dict[str, str] = {}
        self._url = url
        self._key = key
        self._lock = threading.Condition()
        self._threads = [
            threading.Thread(target=self._work, args=(f"miner-{i}",)) for i in range(WORKERS)
        ]

    def run_until(self, acknowledgements: int) -> None:
        """Start; return once so many jobs and receipts were acknowledged."""
        for thread in self._threads:
            thread.start()
        with self._lock:
            assert self._lock.wait_for(
                lambda: len(self.jobs) + len(self.receipts) >= acknowledgements, timeout=60
            )

    def join(self) -> None:
        for thread in self._threads:
            thread.join(timeout=60)

    def _work(self, miner_id: str) -> None:
        headers = {"X-Api-Key": self._key}
        with (
            contextlib.suppress(httpx2.HTTPError),
            httpx2.Client(base_url=self._url, headers=headers, trust_env=False) as http,
        ):
            body = {"miner_id": miner_id, "capabilities": ["*"]}
            http.post("/v1/miners/register", json=body).raise_for_status()
            while True:
                self._one_job(http, miner_id)

    def _one_job(self, http: httpx2.Client, miner_id: str) -> None:
        job = http.post("/v1/jobs", json={"prompt": "p"}).raise_for_status().json()
        with self._lock:
            self.jobs.append(job["job_id"])
            self._lock.notify()
        path = f"/v1/jobs/{job['job_id']}"
        body = {"miner_id": miner_id}
        http.post(f"{path}/claim", json=body).raise_for_status()
        done = http.post(f"{path}/complete", json={**body, "result": "r"}).raise_for_status().json()
        with self._lock:
            self.receipts[job["job_id"]] = done["receipt_id"]
            self._lock.notify()


@pytest.fixture
def node(tmp_path):
    live = LiveNode(tmp_path / "data", "--max-pending-per-key", "100000")
    yield live
    live.stop()


def test_no_acknowledged_job_or_receipt_is_lost_when_the_node_is_killed(node):
    key = node.create_key("admin", "load")
    rng = random.Random(20)
    jobs: list[str] = []
    receipts: dict[str, str] = {}
    for _ in range(KILLS):
        node.start()
        load = Load(node.url, key)
        load.run_until(rng.randint(1, 60))
        node.kill()
        load.join()
        jobs += load.jobs
        receipts |= load.receipts

    node.start()
    with httpx2.Client(base_url=node.url, headers={"X-Api-Key": key}, trust_env=False) as http:
        for job_id in jobs:
            job = http.get(f"/v1/jobs/{job_id}").raise_for_status().json()
            if job_id in receipts:
                assert job["status"] == "completed"
                assert job["receipt_id"] == receipts[job_id]
        for receipt_id in receipts.values():
            http.get(f"/v1/receipts/{receipt_id}").raise_for_status()
        for _ in range(MAX_LOOKS):  # the sealer finishes what the last run left
            if not http.get("/health").json()["pending_transactions"]:
                break
        final = [http.get(f"/v1/receipts/{r}").json()["status"] for r in receipts.values()]
    assert set(final) == {"final"}
    assert node.stop() == 0

    tip = verify_chain(node.data.ledger, node.data.load_genesis(), lambda _height, _last: None)
    assert tip.tree_size >= len(receipts)


def execute(path, statement: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(statement)
        connection.commit()


def test_a_node_that_cannot_store_its_vote_stops_and_loses_nothing(node):
    """To vote without remembering it is how chains fork."""
    key = node.create_key("admin", "load")
    node.start()
    refusal = "BEFORE INSERT ON vote BEGIN SELECT RAISE(ABORT, 'no room'); END"
    execute(node.data.votes, f"CREATE TRIGGER full {refusal}")
    load = Load(node.url, key)
    load.run_until(2)
    assert node.wait() == 1
    load.join()
    execute(node.data.votes, "DROP TRIGGER full")

    node.start()
    with httpx2.Client(base_url=node.url, headers={"X-Api-Key": key}, trust_env=False) as http:
        for _ in range(MAX_LOOKS):
            if not http.get("/health").json()["pending_transactions"]:
                break
        for job_id, receipt_id in load.receipts.items():
            assert http.get(f"/v1/jobs/{job_id}").json()["receipt_id"] == receipt_id
            assert http.get(f"/v1/receipts/{receipt_id}").json()["status"] == "final"
    assert node.stop() == 0
