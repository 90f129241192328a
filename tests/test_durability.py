"""What the node acknowledged survives SIGKILL at any moment."""

from __future__ import annotations

import contextlib
import random
import sqlite3

import httpx2
import pytest

from ledger.store.fsck import verify_chain
from tests.live import LiveNode
from tests.load import Load

KILLS = 20
MAX_LOOKS = 5000


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
