"""OpenAI's own client, and the ends of a real node, with a miner that echoes what it is asked."""

import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from ledger.chat import parse_chat
from ledger.jobs import ENDED
from tests.caller import Caller
from tests.live import LiveNode
from tests.openai_stage import CHAT, ScriptedMiner

WALK = Path(__file__).parent / "clients/walk_openai.py"
MODEL = "echo"
WALK_TIMEOUT_S = 120
JOIN_S = 60


class EchoMiner(ScriptedMiner):
    """Repeats what it is asked, in two pieces; a few words are orders."""

    def serve(self, ended: threading.Event) -> None:
        while not ended.is_set():
            job = self.offered(wait_s=1)
            if job is not None:
                self._answer(job["prompt"])

    def _answer(self, prompt: str) -> None:
        text = " ".join(f"{turn.role}: {turn.content}" for turn in parse_chat(prompt))
        match prompt:
            case "fail":
                self.fail("no memory")
            case "wait":
                pass  # until whoever asked has gone
            case "another miner":
                self.tell("one" if self.job["attempt"] == 1 else "two")
                if self.job["attempt"] == 1:
                    self.release()
            case _:
                self.tell(text[:4])
                limited = self.job["params"]["max_tokens"] == 3
                self.complete(text, finish_reason="length" if limited else "stop")


class Market:
    """A strict node with a client and an echoing miner."""

    def __init__(self, node: LiveNode) -> None:
        self.node = node
        self.client_key = node.create_key("client", "ann")
        self.miner_key = node.create_key("miner")

    def jobs(self) -> dict[str, dict]:
        with Caller(self.node.url, self.client_key) as client:
            listed = client.get("/v1/jobs?owner=me&limit=100").raise_for_status().json()
        return {job["job_id"]: job for job in listed}

    def wait_until_all_ended(self) -> dict[str, dict]:
        """A client that has gone is noticed soon after; nothing tells when."""
        for _ in range(JOIN_S * 10):
            jobs = self.jobs()
            if all(job["status"] in ENDED for job in jobs.values()):
                return jobs
            threading.Event().wait(0.1)
        raise AssertionError(f"still running: {jobs}")


@pytest.fixture
def market(tmp_path):
    node = LiveNode(tmp_path / "data", "--mode", "strict")
    market = Market(node)
    node.start()
    try:
        yield market
    finally:
        node.stop()


@pytest.fixture
def served(market):
    ended = threading.Event()
    with Caller(market.node.url, market.miner_key) as caller, ThreadPoolExecutor(1) as pool:
        work = pool.submit(EchoMiner(caller, "m1", MODEL).serve, ended)
        try:
            yield market
        finally:
            ended.set()
            work.result(JOIN_S)


def test_openais_own_client_works_and_makes_no_job_that_nobody_asked_for(served):
    result = subprocess.run(
        [sys.executable, "-W", "error", WALK, served.node.url, served.client_key],
        capture_output=True,
        text=True,
        timeout=WALK_TIMEOUT_S,
    )
    assert result.returncode == 0, result.stderr
    named = json.loads(result.stdout)
    jobs = served.wait_until_all_ended()
    prompts = [job["prompt"] for job in jobs.values()]
    assert [prompts.count(text) for text in ("fail", "wait", "another miner")] == [1, 2, 1]
    assert all(
        job["status"] == "cancelled"
        for job in jobs.values()
        if job["prompt"] in {"wait", "another miner"}
    )
    assert jobs[named["fail"]]["status"] == "failed"
    assert {jobs[named[name]]["status"] for name in ("whole", "stream")} == {"completed"}
    with Caller(served.node.url) as reader:
        receipt = reader.get(f"/v1/receipts/{jobs[named['stream']]['receipt_id']}")
        assert (receipt.json()["client"], receipt.json()["completion_tokens"]) == ("ann", 3)


def begin(market: Market, pool: ThreadPoolExecutor, miner: ScriptedMiner):
    """Ask for a completion and let a miner claim its job."""
    key = {"Authorization": f"Bearer {market.client_key}"}

    def ask() -> httpx2.Response:
        with httpx2.Client(base_url=market.node.url, trust_env=False, timeout=60) as http:
            return http.post("/v1/chat/completions", json=CHAT, headers=key)

    waiting = pool.submit(ask)
    return waiting, miner.take()["job_id"]


def test_a_node_that_is_stopped_answers_whoever_waits_and_cancels_the_job(market):
    with Caller(market.node.url, market.miner_key) as caller, ThreadPoolExecutor(1) as pool:
        waiting, job_id = begin(market, pool, ScriptedMiner(caller, "m1"))
        assert market.node.stop() == 0
        answer = waiting.result()
    assert (answer.status_code, answer.json()["error_code"]) == (503, "SYSTEM_SHUTTING_DOWN")
    market.node.start()
    assert market.jobs()[job_id]["status"] == "cancelled"


def test_a_job_whose_node_was_killed_is_run_and_billed_like_any_other(market):
    with Caller(market.node.url, market.miner_key) as caller, ThreadPoolExecutor(1) as pool:
        waiting, job_id = begin(market, pool, ScriptedMiner(caller, "m1"))
        market.node.kill()
        with pytest.raises(httpx2.TransportError):
            waiting.result()
    market.node.start()
    with Caller(market.node.url, market.miner_key) as caller:
        body = {"miner_id": "m1", "result": "Because."}
        caller.post(f"/v1/jobs/{job_id}/complete", **body).raise_for_status()
    assert market.jobs()[job_id]["status"] == "completed"
