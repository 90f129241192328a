import asyncio
import os
import signal
import threading
from collections.abc import Callable

import pytest
from starlette.responses import Response

from ledger.transaction import MICROS
from miner import service
from miner.client import CoordinatorClient
from miner.engine import Completion
from miner.errors import JobError, ModelError, SettingsError
from miner.retry import Pace
from miner.sampling import SAMPLER
from miner.service import run_miner
from miner.settings import MinerSettings
from miner.worker import Worker
from tests.builders import build_key, build_salt
from tests.fake_coordinator import (
    API_KEY,
    MINER_ID,
    MODEL,
    STARTED_MS,
    TOKEN_PRICE,
    CutOff,
    FakeCoordinator,
    refuse,
)
from tests.scripted_engine import ANSWER, CANCELLED, ScriptedEngine, raising, until_stopped

FAST = Pace(poll_wait_s=1, first_retry_s=0.001, longest_retry_s=0.01)
NEVER_AGAIN = Pace(poll_wait_s=1, first_retry_s=3600, longest_retry_s=3600, lost_races=3)
PATIENCE_S = 20


class Clock:
    """Milliseconds that pass 250 at each look."""

    now_ms = 0

    def __call__(self) -> int:
        self.now_ms += 250
        return self.now_ms


def play(
    node: FakeCoordinator,
    engine: ScriptedEngine,
    *until: str,
    names: tuple[str, ...] = (MODEL,),
    api_key: str = API_KEY,
    pace: Pace = FAST,
) -> FakeCoordinator:
    """Let a worker work until the node has seen these, then stop it."""

    async def story() -> None:
        async with node.serving():
            client = CoordinatorClient(url=node.url, api_key=api_key)
            worker = Worker(
                client=client,
                miner_id=MINER_ID,
                key=build_key("miner"),
                engines=dict.fromkeys(names, engine),
                clock_ms=Clock(),
                pace=pace,
            )
            work = asyncio.create_task(worker.run())
            try:
                async with asyncio.timeout(PATIENCE_S):
                    for name in until:
                        seen = asyncio.create_task(node.seen[name].wait())
                        await asyncio.wait({seen, work}, return_when=asyncio.FIRST_COMPLETED)
                        seen.cancel()
                    worker.stop()
                    await work
            finally:
                work.cancel()
                await client.close()

    asyncio.run(story())
    return node


def test_a_job_is_claimed_run_and_completed_with_a_signed_receipt():
    engine = ScriptedEngine()
    node = play(FakeCoordinator(params={"stop": ["\n"]}), engine, "completed", "idle")
    assert node.calls[:4] == ["health", "register", "available", "claim"]
    assert node.bodies["register"][0]["capabilities"] == [MODEL]
    assert node.bodies["claim"] == [{"miner_id": MINER_ID, "heartbeat": True}]
    [asked] = engine.requests
    assert [(m.role, m.content) for m in asked.messages] == [("user", "Why?")]
    assert (asked.params.max_tokens, asked.params.seed, asked.stop) == (8, 5, ("\n",))
    receipt = node.receipt
    assert receipt is not None
    assert (receipt.prompt_tokens, receipt.completion_tokens) == (4, 3)
    assert (receipt.units_micros, receipt.price_micros) == (7 * MICROS, 7 * TOKEN_PRICE)
    assert (receipt.sampler, receipt.model_digest) == (SAMPLER, ScriptedEngine.model_digest)
    assert receipt.completed_at_ms == STARTED_MS + 250
    [body] = node.bodies["complete"]
    assert (body["result"], body["output_token_ids"]) == ("Because.", [5, 6, 2])
    assert body["completed_at"] == "2023-11-14T22:13:20.250Z"
    assert body["finish_reason"] == "stop"


def test_a_prompt_that_is_a_conversation_reaches_the_model_as_its_messages():
    engine = ScriptedEngine()
    prompt = '[{"content":"Be brief.","role":"system"},{"content":"Why?","role":"user"}]'
    play(FakeCoordinator(prompt=prompt), engine, "completed", "idle")
    [asked] = engine.requests
    turns = [(message.role, message.content) for message in asked.messages]
    assert turns == [("system", "Be brief."), ("user", "Why?")]


def test_heartbeats_go_on_while_the_inference_thread_is_busy():
    beats = threading.Semaphore(0)
    node = FakeCoordinator()
    node.hooks["heartbeat"] = beats.release

    def busy(should_stop: Callable[[], bool]) -> Completion:
        for _ in range(3):
            assert beats.acquire(timeout=PATIENCE_S)
        return ANSWER

    play(node, ScriptedEngine(busy), "completed")
    assert node.calls.count("heartbeat") >= 3
    assert node.receipt is not None


@pytest.mark.parametrize("code", ["JOB_ALREADY_CANCELLED", "JOB_LEASE_LOST"])
def test_a_job_that_is_cancelled_or_lost_is_stopped_and_nothing_is_sent_for_it(code):
    node = FakeCoordinator()
    node.script["heartbeat"] = [refuse(409, code)]
    play(node, ScriptedEngine(until_stopped), "idle")
    assert "claim" in node.calls
    assert not {"complete", "fail", "release"} & set(node.calls)


def test_a_failed_heartbeat_does_not_stop_the_job():
    beats = threading.Semaphore(0)
    node = FakeCoordinator()
    node.script["heartbeat"] = [refuse(503, "SYSTEM_OVERLOADED"), CutOff]
    node.hooks["heartbeat"] = beats.release

    def busy(should_stop: Callable[[], bool]) -> Completion:
        for _ in range(3):
            assert beats.acquire(timeout=PATIENCE_S)
        return CANCELLED if should_stop() else ANSWER

    play(node, ScriptedEngine(busy), "completed")
    assert node.receipt is not None


def test_a_result_is_sent_again_unchanged_when_the_answer_is_lost():
    node = FakeCoordinator()
    node.script["complete"] = [CutOff, refuse(503, "SYSTEM_OVERLOADED"), refuse(429, "RATE")]
    play(node, ScriptedEngine(), "completed")
    bodies = node.bodies["complete"]
    assert len(bodies) == 4
    assert all(body == bodies[0] for body in bodies)


@pytest.mark.parametrize("code", ["JOB_LEASE_LOST", "JOB_ALREADY_CANCELLED"])
def test_a_result_that_came_too_late_is_dropped_and_work_goes_on(code):
    node = FakeCoordinator()
    node.script["complete"] = [refuse(409, code)]
    play(node, ScriptedEngine(), "complete", "idle")
    assert node.calls.count("complete") == 1
    assert "fail" not in node.calls


def test_a_refused_receipt_fails_the_attempt():
    node = FakeCoordinator()
    node.script["complete"] = [refuse(400, "RECEIPT_MISMATCH")]
    play(node, ScriptedEngine(), "failed")
    [body] = node.bodies["fail"]
    assert body["retryable"] is True
    assert "RECEIPT_MISMATCH" in body["reason"]


@pytest.mark.parametrize(
    ("error", "retryable", "reason"),
    [
        (JobError("prompt: 9 tokens too many"), False, "prompt: 9 tokens too many"),
        (ModelError("/srv/model: out of memory"), True, "the miner failed: ModelError"),
        (OSError(5, "broken", "/srv/model"), True, "the miner failed: OSError"),
    ],
)
def test_a_failure_is_reported_as_one_and_never_as_a_result(error, retryable, reason):
    node = play(FakeCoordinator(), ScriptedEngine(raising(error)), "failed", "idle")
    [body] = node.bodies["fail"]
    assert body["retryable"] is retryable
    assert body["reason"] == reason
    assert "complete" not in node.calls


@pytest.mark.parametrize("error", [None, KeyError("Why?"), JobError("too long"), ModelError("hot")])
def test_no_prompt_or_result_reaches_the_log(error, caplog):
    caplog.set_level("DEBUG", logger="miner")
    engine = ScriptedEngine(raising(error)) if error else ScriptedEngine()
    play(FakeCoordinator(), engine, "idle")
    assert "running job_" in caplog.text
    assert "Why?" not in caplog.text
    assert "Because." not in caplog.text


def test_an_unexpected_failure_is_logged_with_its_place(caplog):
    play(FakeCoordinator(), ScriptedEngine(raising(KeyError("Why?"))), "failed")
    [record] = [record for record in caplog.records if record.levelname == "ERROR"]
    assert "failed: KeyError\n" in record.message
    assert "scripted_engine.py" in record.message


def test_a_model_that_is_not_served_is_never_replaced_by_another():
    engine = ScriptedEngine()
    node = FakeCoordinator(model="other:70b")
    node.hooks["available"] = lambda: setattr(node, "offered", len(node.calls) < 6)
    play(node, engine, "idle")
    assert "claim" not in node.calls
    assert engine.requests == []


@pytest.mark.parametrize("name", ["TINY:1b", "tiny:1b:latest"])
def test_model_names_match_as_the_node_matches_them(name):
    node = play(FakeCoordinator(), ScriptedEngine(), "completed", names=(name,))
    assert node.bodies["register"][0]["capabilities"] == [name]


@pytest.mark.parametrize("code", ["JOB_ALREADY_CLAIMED", "JOB_ALREADY_CANCELLED"])
def test_a_job_that_is_gone_when_claimed_is_left_and_another_asked_for_at_once(code):
    node = FakeCoordinator()
    node.script["claim"] = [refuse(409, code)] * 3
    engine = ScriptedEngine()
    play(node, engine, "completed", pace=NEVER_AGAIN)
    assert node.calls.count("claim") == 4
    assert len(engine.requests) == 1


def test_a_node_that_keeps_offering_what_it_refuses_is_not_asked_without_rest(caplog):
    node = FakeCoordinator()
    node.script["claim"] = [refuse(409, "JOB_ALREADY_CLAIMED")] * 99
    tried = 1 + NEVER_AGAIN.lost_races

    def count() -> None:
        if node.calls.count("claim") == tried:
            node.seen["tried"].set()

    node.hooks["claim"] = count
    play(node, ScriptedEngine(), "tried", pace=NEVER_AGAIN)
    assert node.calls.count("claim") == tried
    assert "trying again in 3600.0 s" in caplog.messages[-1]


@pytest.mark.parametrize("lost", [CutOff, refuse(503, "SYSTEM_OVERLOADED")])
def test_a_claim_whose_answer_was_lost_is_repeated_for_the_same_lease(lost):
    node = FakeCoordinator()
    node.script["claim"] = [lost]
    node.hooks["claim"] = lambda: setattr(node, "offered", False)
    play(node, ScriptedEngine(), "completed")
    assert node.calls.count("claim") == 2


def test_a_claim_that_is_answered_with_another_job_is_not_run():
    node = FakeCoordinator()
    node.script["claim"] = [lambda: node.answer_claim(model="other:70b")]
    engine = ScriptedEngine()
    play(node, engine, "completed")
    assert [request.job_id for request in engine.requests] == [node.job["job_id"]]
    assert node.calls.count("claim") == 2


def test_a_worker_that_cannot_claim_still_stops():
    node = FakeCoordinator()
    node.script["claim"] = [CutOff] * 99
    play(node, ScriptedEngine(), "claim")
    assert node.calls.count("claim") <= 1 + FAST.last_attempts


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prompt_salt": "AAAA"}, "base64url"),
        ({"prompt_salt": ""}, "base64url"),
        ({"receipt": {}}, "genesis"),
    ],
)
def test_a_work_order_that_does_not_fit_is_not_run(change, said):
    node = FakeCoordinator()
    node.order = change
    engine = ScriptedEngine()
    play(node, engine, "failed")
    assert engine.requests == []
    assert said in node.bodies["fail"][0]["reason"]


def test_a_work_order_for_another_prompt_is_not_signed(monkeypatch):
    monkeypatch.setattr("tests.fake_coordinator.hash_text", lambda salt, text: build_salt("x"))
    engine = ScriptedEngine()
    node = play(FakeCoordinator(), engine, "failed")
    assert engine.requests == []
    assert "another prompt" in node.bodies["fail"][0]["reason"]


def test_asked_to_stop_the_worker_gives_the_job_back():
    node = play(FakeCoordinator(), ScriptedEngine(until_stopped), "heartbeat")
    assert node.bodies["release"] == [{"miner_id": MINER_ID}]
    assert "complete" not in node.calls


def test_a_job_that_ends_in_the_moment_of_stopping_is_no_failure():
    async def story() -> None:
        client = CoordinatorClient(url="http://127.0.0.1:9", api_key=API_KEY)
        worker = Worker(
            client=client,
            miner_id=MINER_ID,
            key=build_key("miner"),
            engines={MODEL: ScriptedEngine(ANSWER)},
            clock_ms=Clock(),
        )

        async def end() -> None:
            worker._runs.clear()

        worker._runs = {object(): asyncio.create_task(end())}
        await worker._finish()
        await client.close()

    asyncio.run(story())


def test_a_worker_that_waits_for_work_stops_at_once():
    node = FakeCoordinator()
    node.offered = False
    assert "claim" not in play(node, ScriptedEngine(), "idle").calls


def test_a_node_that_forgot_the_miner_is_registered_with_again():
    node = FakeCoordinator()
    node.script["available"] = [refuse(404, "MINER_NOT_FOUND")]
    play(node, ScriptedEngine(), "completed")
    assert node.calls.count("register") == 2


def test_a_node_that_is_not_up_yet_is_waited_for():
    node = FakeCoordinator()
    node.script["health"] = [refuse(503, "SYSTEM_SYNCING"), CutOff]
    play(node, ScriptedEngine(), "completed")
    assert node.calls.count("health") == 3


@pytest.mark.parametrize(
    "text", ["[]", '{"job_id": "../admin", "model": "m"}', '{"job_id": 1}', "nonsense"]
)
def test_an_answer_that_is_no_job_is_not_worked_on(text):
    node = FakeCoordinator()
    node.script["available"] = [lambda: Response(text)]
    play(node, ScriptedEngine(), "completed")
    assert node.calls.count("available") >= 2


def test_a_wrong_key_ends_the_miner_with_a_clear_line():
    with pytest.raises(SettingsError, match="AUTH_INVALID_KEY"):
        play(FakeCoordinator(), ScriptedEngine(), "never", api_key="wrong")


def test_a_miner_id_of_somebody_else_ends_the_miner_with_a_clear_line():
    node = FakeCoordinator()
    node.script["register"] = [refuse(409, "MINER_ALREADY_REGISTERED")]
    with pytest.raises(SettingsError, match="MINER_ALREADY_REGISTERED"):
        play(node, ScriptedEngine(), "never")


# The process


def settings(url: str, tmp_path, **changes) -> MinerSettings:
    values = {
        "url": url,
        "api_key": API_KEY,
        "miner_id": MINER_ID,
        "key": build_key("miner"),
        "models": {MODEL: tmp_path},
        "cache": tmp_path / "cache",
    }
    return MinerSettings(**values | changes)


class ServedElsewhere:
    """A fake node in a thread of its own, so that a miner can have the main thread."""

    def __init__(self, node: FakeCoordinator) -> None:
        self._node = node
        self._ready = threading.Event()
        self._done: asyncio.Event
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    async def _serve(self) -> None:
        self._done, self._loop = asyncio.Event(), asyncio.get_running_loop()
        async with self._node.serving():
            self._ready.set()
            await self._done.wait()

    def __enter__(self) -> FakeCoordinator:
        self._thread.start()
        assert self._ready.wait(PATIENCE_S)
        return self._node

    def __exit__(self, *exception: object) -> None:
        self._loop.call_soon_threadsafe(self._done.set)
        self._thread.join(PATIENCE_S)


def test_sigterm_releases_the_running_job_and_ends_with_zero(tmp_path, monkeypatch):
    def interrupted(should_stop: Callable[[], bool]) -> Completion:
        os.kill(os.getpid(), signal.SIGTERM)
        return until_stopped(should_stop)

    engine = ScriptedEngine(interrupted)
    monkeypatch.setattr(service, "load_engines", lambda *_: {MODEL: engine})
    with ServedElsewhere(FakeCoordinator()) as node:
        assert run_miner(settings(node.url, tmp_path)) == 0
    assert node.bodies["release"] == [{"miner_id": MINER_ID}]
    assert not {"complete", "fail"} & set(node.calls)


def test_a_miner_that_stops_says_so_at_once_and_gives_back_its_job():
    node = FakeCoordinator()
    play(node, ScriptedEngine(until_stopped), "claim")
    assert node.calls.index("drain") < node.calls.index("release")
    assert "available" not in node.calls[node.calls.index("drain") :]


@pytest.mark.parametrize("answer", [refuse(500, "SYSTEM_INTERNAL_ERROR"), refuse(404, "X"), CutOff])
def test_a_miner_stops_whatever_the_node_says_to_its_draining(answer):
    node = FakeCoordinator()
    node.offered = False
    node.script["drain"] = [answer]
    play(node, ScriptedEngine(ANSWER), "idle")
    assert node.calls.count("drain") == 1


def test_a_miner_stops_though_the_node_does_not_answer_its_draining(monkeypatch):
    monkeypatch.setattr("miner.worker.DRAIN_TIMEOUT_S", 0.01)
    node = FakeCoordinator()
    node.offered = False

    async def hang(_request) -> Response:
        await asyncio.sleep(PATIENCE_S)
        return Response()

    node.drain = hang
    play(node, ScriptedEngine(ANSWER), "idle")


def test_a_miner_that_never_registered_does_not_drain():
    node = FakeCoordinator()
    node.script["register"] = [refuse(503, "SYSTEM_OVERLOADED")] * 99
    play(node, ScriptedEngine(ANSWER), "register")
    assert "drain" not in node.calls


def test_a_miner_process_runs_a_real_model_to_a_receipt(tmp_path, tiny_directory):
    node = FakeCoordinator()
    node.hooks["complete"] = lambda: os.kill(os.getpid(), signal.SIGINT)
    with ServedElsewhere(node):
        models = {MODEL: tiny_directory}
        assert run_miner(settings(node.url, tmp_path, models=models)) == 0
    assert node.receipt is not None
    assert node.receipt.completion_tokens == len(node.bodies["complete"][0]["output_token_ids"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"models": {}}, "no model to serve"),
        ({}, "no model files"),
        ({"models": {"m": "x"}}, "x"),
    ],
)
def test_a_miner_that_cannot_start_says_why_in_one_line(tmp_path, caplog, changes, said):
    (tmp_path / "model").mkdir()
    models = {"m": tmp_path / "model"}
    if "models" in changes:
        models = {name: tmp_path / path for name, path in changes["models"].items()}
    assert run_miner(settings("http://127.0.0.1:9", tmp_path, models=models)) == 1
    assert said in caplog.messages[-1]
    assert "\n" not in caplog.messages[-1]
