"""The real worker against a real node in strict mode; only the engine is scripted."""

import asyncio
import threading
from collections.abc import Callable

import httpx2
import pytest

from ledger.jobs import KeyRole
from miner.client import CoordinatorClient
from miner.engine import Completion
from miner.errors import JobError, ModelError, UnreachableError
from miner.worker import Worker
from tests.builders import build_key
from tests.live import LiveNode
from tests.scripted_engine import ANSWER, Script, ScriptedEngine, raising, until_stopped

MODEL = "tiny:1b"
PATIENCE_S = 60


class StrictNode:
    """A strict node with a client and a miner on it."""

    def __init__(self, live: LiveNode) -> None:
        roles: tuple[KeyRole, KeyRole] = ("client", "miner")
        self.client_key, self.miner_key = (live.create_key(role, role) for role in roles)
        live.start()
        self.url = live.url

    def call(self, method: str, path: str, body: object = None, *, key: str = "") -> dict:
        headers = {"X-Api-Key": key or self.client_key}
        with httpx2.Client(base_url=self.url, headers=headers, trust_env=False) as http:
            return http.request(method, path, json=body).raise_for_status().json()

    def submit(self, prompt: str) -> str:
        order = {"model": MODEL, "prompt": prompt, "params": {"max_tokens": 8, "stop": ["\n"]}}
        return self.call("POST", "/v1/jobs", order)["job_id"]


@pytest.fixture
def node(tmp_path):
    live = LiveNode(tmp_path / "data", "--mode", "strict")
    try:
        yield StrictNode(live)
    finally:
        live.stop()


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A node for tests that use a model each."""
    live = LiveNode(tmp_path_factory.mktemp("shared") / "data", "--mode", "strict")
    try:
        yield StrictNode(live)
    finally:
        live.stop()


def submit_many(node: StrictNode, number: int, model: str) -> list[str]:
    order = {"model": model, "prompt": "Why?", "params": {"max_tokens": 8}}
    jobs = node.call("POST", "/v1/jobs/batch", {"jobs": [order] * number})
    return [job["job_id"] for job in jobs]


def wait_until(holds: Callable[[], bool]) -> None:
    while not holds():
        threading.Event().wait(0.005)


class Crew:
    """A worker with several engines; it stops once `until` holds after a job began or ended."""

    def __init__(self, node: StrictNode, engines: dict[str, ScriptedEngine]) -> None:
        self.node, self.engines = node, engines
        self.worker: Worker
        self.loop: asyncio.AbstractEventLoop

    def run(self, until: Callable[[], bool], *, grace_s: float = 0.0) -> None:
        async def story() -> None:
            self.loop = asyncio.get_running_loop()
            client = CoordinatorClient(url=self.node.url, api_key=self.node.miner_key)
            self.worker = Worker(
                client=client,
                miner_id="miner-1",
                key=build_key("miner"),
                engines=self.engines,
                clock_ms=lambda: 0,
                grace_s=grace_s,
            )
            work = asyncio.create_task(self.worker.run())
            try:
                async with asyncio.timeout(PATIENCE_S):
                    await asyncio.to_thread(wait_until, until)
                    self.worker.stop()
                    await work
            finally:
                work.cancel()
                await client.close()

        asyncio.run(story())

    def states(self, jobs: list[str]) -> list[str]:
        return [self.node.call("GET", f"/v1/jobs/{job}")["status"] for job in jobs]


def test_as_many_jobs_run_at_once_as_there_are_slots_and_no_more_are_claimed(shared):
    jobs = submit_many(shared, 7, "full")
    engine = ScriptedEngine(until_stopped, slots=5)
    crew = Crew(shared, {"full": engine})

    def is_full() -> bool:
        if engine.running < 5:
            return False
        assert crew.states(jobs) == ["running"] * 5 + ["pending"] * 2, "in the order they came"
        return True

    crew.run(is_full)
    assert engine.most_running == 5
    assert crew.states(jobs) == ["pending"] * 7, "all given back"
    assert crew.worker.outcomes == {"released": 5}


def test_a_full_model_does_not_keep_another_one_idle(shared):
    slow, quick = submit_many(shared, 3, "slow"), submit_many(shared, 4, "quick")
    engines = {
        "slow": ScriptedEngine(until_stopped, slots=2),
        "quick": ScriptedEngine(slots=1),
    }
    crew = Crew(shared, engines)
    crew.run(lambda: crew.worker.outcomes["completed"] == 4)
    assert crew.states(quick) == ["completed"] * 4
    assert engines["slow"].most_running == 2
    assert crew.states(slow) == ["pending"] * 3


def test_one_job_that_fails_takes_no_other_with_it(shared):
    jobs = submit_many(shared, 3, "mixed")
    failing = threading.Event()

    def script(_should_stop) -> Completion:
        if not failing.is_set():
            failing.set()
            raise JobError("nobody can do this")
        return ANSWER

    crew = Crew(shared, {"mixed": ScriptedEngine(script, slots=3)})
    crew.run(lambda: sum(crew.worker.outcomes.values()) == 3)
    assert sorted(crew.states(jobs)) == ["completed", "completed", "failed"]
    assert (crew.worker.prompt_tokens, crew.worker.completion_tokens) == (8, 6)


def test_a_miner_whose_model_fails_every_job_ends_and_leaves_them_to_others(shared):
    jobs = submit_many(shared, 5, "broken")
    crew = Crew(shared, {"broken": ScriptedEngine(raising(ModelError("out of memory")), slots=1)})
    with pytest.raises(ModelError, match="jobs in a row"):
        crew.run(lambda: crew.worker.outcomes["failed"] >= 2)
    assert crew.states(jobs) == ["pending"] * 5


def test_asked_twice_to_stop_a_miner_gives_back_its_jobs_without_grace(shared):
    jobs = submit_many(shared, 2, "hurried")
    engine = ScriptedEngine(until_stopped, slots=2)
    crew = Crew(shared, {"hurried": engine})

    def stop_once_both_run() -> bool:
        if engine.running < 2:
            return False
        crew.loop.call_soon_threadsafe(crew.worker.stop)
        return True

    crew.run(stop_once_both_run, grace_s=3600)
    assert crew.states(jobs) == ["pending"] * 2


def test_answers_that_the_node_does_not_take_are_not_heaped_up(shared, monkeypatch):
    jobs = submit_many(shared, 5, "unsent")
    tried: list[str] = []

    async def refuse(_self, job_id, _body) -> None:
        tried.append(job_id)
        raise UnreachableError("503")

    monkeypatch.setattr(CoordinatorClient, "complete", refuse)
    engine = ScriptedEngine(slots=1)
    crew = Crew(shared, {"unsent": engine})
    crew.run(lambda: len(tried) >= 4)
    assert len(engine.requests) == 2, "as many again as have a slot"
    assert crew.worker.outcomes == {"unsent": 2}
    assert crew.states(jobs)[2:] == ["pending"] * 3


def test_the_node_says_how_long_an_attempt_may_run(shared):
    submit_many(shared, 1, "timed")
    engine = ScriptedEngine()
    crew = Crew(shared, {"timed": engine})
    crew.run(lambda: crew.worker.outcomes["completed"] == 1)
    (asked,) = engine.requests
    assert asked.time_left_s is not None
    assert 500 < asked.time_left_s <= 600


def test_jobs_that_end_within_the_grace_are_handed_in_and_the_others_given_back(shared):
    jobs = submit_many(shared, 3, "graceful")
    stopping = threading.Event()
    begun: list[int] = []

    def script(should_stop) -> Completion:
        begun.append(1)
        if len(begun) < 3:
            assert stopping.wait(PATIENCE_S)
            return ANSWER
        return until_stopped(should_stop)

    def when_all_run() -> bool:
        if len(begun) < 3:
            return False
        stopping.set()
        return True

    crew = Crew(shared, {"graceful": ScriptedEngine(script, slots=3)})
    crew.run(when_all_run, grace_s=1.0)
    assert sorted(crew.states(jobs)) == ["completed", "completed", "pending"]
    assert shared.call("GET", "/v1/miners/miner-1")["draining"] is True


def work(node: StrictNode, *scripts: Script) -> ScriptedEngine:
    """A worker runs one script a job; at the next job it is asked to stop."""
    engine = ScriptedEngine()
    left = list(scripts)

    async def story() -> None:
        client = CoordinatorClient(url=node.url, api_key=node.miner_key)
        worker = Worker(
            client=client,
            miner_id="miner-1",
            key=build_key("miner"),
            engines={MODEL: engine},
            clock_ms=lambda: 0,
        )
        loop = asyncio.get_running_loop()

        def script(should_stop: Callable[[], bool]) -> Completion:
            if left:
                return left.pop(0)(should_stop)
            loop.call_soon_threadsafe(worker.stop)
            return until_stopped(should_stop)

        engine.script = script
        try:
            async with asyncio.timeout(PATIENCE_S):
                await worker.run()
        finally:
            await client.close()

    asyncio.run(story())
    return engine


def test_a_job_on_a_strict_node_comes_to_its_receipt(node):
    job_id, last = node.submit("Why?"), node.submit("And then?")
    engine = work(node, lambda should_stop: ANSWER)
    asked = engine.requests[0]
    assert (asked.job_id, asked.messages[0].content, asked.stop) == (job_id, "Why?", ("\n",))
    job = node.call("GET", f"/v1/jobs/{job_id}")
    assert (job["status"], job["result"]) == ("completed", "Because.")
    receipt = node.call("GET", f"/v1/receipts/{job['receipt_id']}")
    assert receipt["signer"] == "provider"
    assert (receipt["provider"], receipt["units"]) == (build_key("miner").account, 7)
    assert node.call("GET", f"/v1/jobs/{last}")["status"] == "pending", "given back"


def test_a_job_that_is_cancelled_while_it_runs_is_dropped_and_the_next_one_done(node):
    cancelled, done, _ = (node.submit(prompt) for prompt in ("Why?", "Why not?", "And then?"))

    def cancel(should_stop: Callable[[], bool]) -> Completion:
        node.call("POST", f"/v1/jobs/{cancelled}/cancel")
        return ANSWER

    work(node, cancel, lambda should_stop: ANSWER)
    job = node.call("GET", f"/v1/jobs/{cancelled}")
    assert job["status"] == "cancelled"
    assert "result" not in job
    assert node.call("GET", f"/v1/jobs/{done}")["status"] == "completed"


def test_a_heartbeat_and_a_piece_of_text_are_understood_by_both_sides(node):
    job_id, _ = node.submit("Why?"), node.submit("And then?")

    async def ask() -> tuple[int, int]:
        client = CoordinatorClient(url=node.url, api_key=node.miner_key)
        try:
            lease = await client.heartbeat(job_id, "miner-1")
            told = await client.tell(job_id, "miner-1", offset=0, text="Be")
        finally:
            await client.close()
        return lease.heartbeat_interval_ms, told

    answers = []

    def script(_should_stop: Callable[[], bool]) -> Completion:
        answers.append(asyncio.run(ask()))
        return ANSWER

    work(node, script)
    assert answers == [(20_000, 2)]
