"""Many jobs at once through real miner processes: all end, none is lost, none is paid twice."""

import threading

import pytest

from tests.caller import Caller
from tests.live import LiveNode
from tests.live_miner import LiveMiner

MODEL = "tiny"
JOBS = 64
PATIENCE = 6_000
"""Looks, 10 ms apart at least."""
TIMES = (
    *("--lease-ms", "1000", "--heartbeat-interval-ms", "200"),
    *("--execution-timeout-ms", "60000"),
)


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    node = LiveNode(tmp_path_factory.mktemp("many") / "data", "--mode", "strict", *TIMES)
    node.keys = {role: node.create_key(role) for role in ("client", "miner")}
    node.start()
    yield node
    node.stop()


@pytest.fixture
def client(node):
    with Caller(node.url, node.keys["client"]) as caller:
        yield caller


@pytest.fixture
def start_miner(node, tmp_path, tiny_directory):
    started: list[LiveMiner] = []

    def start(name: str, *arguments: str) -> LiveMiner:
        miner = LiveMiner(
            tmp_path,
            url=node.url,
            key=node.keys["miner"],
            name=name,
            models={MODEL: tiny_directory},
        )
        miner.start(*arguments)
        started.append(miner)
        return miner

    yield start
    for miner in started:
        miner.kill()


def submit(client) -> list[str]:
    """Jobs of different length, two in three of them drawn at random."""
    orders = [
        {
            "model": MODEL,
            "prompt": "the cat"[: 1 + number % 7] * (1 + number % 3),
            "params": {"max_tokens": 4 + number % 24, "temperature": 0.7 * (number % 3 > 0)},
        }
        for number in range(JOBS)
    ]
    jobs = client.post("/v1/jobs/batch", jobs=orders).raise_for_status().json()
    return [job["job_id"] for job in jobs]


def show(client, jobs: list[str]) -> list[dict]:
    """The jobs as the node shows them, in the order they were submitted."""
    page = client.get(f"/v1/jobs?limit={len(jobs)}").raise_for_status().json()[::-1]
    assert [job["job_id"] for job in page] == jobs
    return page


def wait_for(client, jobs: list[str], number: int) -> None:
    for _ in range(PATIENCE):
        if sum(job["status"] == "completed" for job in show(client, jobs)) >= number:
            return
        threading.Event().wait(0.01)
    raise AssertionError(f"fewer than {number} of {len(jobs)} jobs were done")


def check_receipts(client, jobs: list[str]) -> list[dict]:
    """Each job has one receipt, and no receipt is of a job that was paid before."""
    done = show(client, jobs)
    assert {job["status"] for job in done} == {"completed"}
    receipts = []
    for job in done:
        shown = client.get(f"/v1/receipts/{job['receipt_id']}").raise_for_status().json()
        assert shown["job_id"] == job["job_id"]
        receipts.append(shown)
    assert len({receipt["receipt_id"] for receipt in receipts}) == len(jobs)
    return done


def test_many_jobs_at_once_end_in_fair_order_and_a_stopped_miner_loses_none(client, start_miner):
    miner = start_miner("steady")
    jobs = submit(client)
    wait_for(client, jobs, JOBS)
    done = check_receipts(client, jobs)
    assert {job["attempt"] for job in done} == {1}
    started = [job["started_at"] for job in done]
    assert started == sorted(started), "who came first began first"

    more = submit(client)
    wait_for(client, more, 8)
    assert miner.stop() == 0
    left = [job["status"] for job in show(client, more)]
    assert set(left) <= {"completed", "pending"}, "what was not done was given back at once"
    start_miner("steady")
    wait_for(client, more, JOBS)
    assert {job["attempt"] for job in check_receipts(client, more)} <= {1, 2}


def test_two_miners_share_a_model_directory_and_one_that_is_killed_loses_nothing(
    client, start_miner
):
    first, second = start_miner("first"), start_miner("second")
    jobs = submit(client)
    wait_for(client, jobs, 16)
    first.kill()
    wait_for(client, jobs, JOBS)
    done = check_receipts(client, jobs)
    assert {job["miner_id"] for job in done} >= {"second"}
    assert {job["attempt"] for job in done} <= {1, 2}
    assert second.stop() == 0


def test_what_a_lone_miner_ran_when_it_was_killed_is_done_once_it_is_back(client, start_miner):
    miner = start_miner("lone")
    jobs = submit(client)
    wait_for(client, jobs, 8)
    miner.kill()
    start_miner("lone")
    wait_for(client, jobs, JOBS)
    done = check_receipts(client, jobs)
    assert sum(job["attempt"] > 1 for job in done) <= 16, "what it had claimed"
