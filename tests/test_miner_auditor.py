import asyncio
import logging
from concurrent.futures import Future

import pytest

from miner import auditor as auditor_module
from miner.auditor import Auditor
from miner.client import CoordinatorClient
from miner.errors import ModelError
from miner.retry import Pace
from tests.audit_stage import PARAMS, Stage, drain
from tests.builders import build_key
from tests.fake_audits import FakeAudits
from tests.fake_coordinator import API_KEY, MINER_ID, refuse
from tests.miner_fixtures import open_engine

FAST = Pace(poll_wait_s=1, first_retry_s=0.001, longest_retry_s=0.01)
NOW_MS = 1_767_225_700_000
PATIENCE_S = 20


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    return Stage(tmp_path_factory.mktemp("model"))


class StageEngine:
    """An engine that does other work at once."""

    def __init__(self, stage, model_digest=None):
        self.tokenizer = stage.tokenizer
        self.model_digest = model_digest or stage.digest
        self._stage = stage

    def run(self, work):
        future = Future()
        try:
            future.set_result(drain(work(self._stage.runtime, 1)))
        except Exception as error:  # as the engine does
            future.set_exception(error)
        return future


class HangingEngine(StageEngine):
    """An engine whose other work never ends."""

    def run(self, work):
        self.future = Future()
        return self.future


class BrokenEngine(StageEngine):
    def run(self, work):
        future = Future()
        future.set_exception(ModelError("the model failed while running"))
        return future


def audit(node, engine, *until, name="tiny:1b"):
    """Let an auditor work until the node has seen these, then stop it."""

    async def story():
        async with node.serving():
            client = CoordinatorClient(url=node.url, api_key=API_KEY)
            auditor = Auditor(
                client=client,
                miner_id=MINER_ID,
                key=build_key("auditor"),
                engines={name: engine},
                now_ms=lambda: NOW_MS,
                pace=FAST,
            )
            running = asyncio.create_task(auditor.run())
            try:
                async with asyncio.timeout(PATIENCE_S):
                    for event in until:
                        await node.seen[event].wait()
                    if until:
                        auditor.stop()
                    await running
            finally:
                running.cancel()
                await client.close()
            return auditor

    return asyncio.run(story())


def test_an_honest_answer_is_audited_and_the_audit_signed(stage):
    node = FakeAudits(stage.files(stage.answer()))
    auditor = audit(node, StageEngine(stage), "completed", "idle")
    assert (auditor.passed, auditor.failed) == (1, 0)
    assert node.audit.verdict == "pass"
    assert node.audit.model_digest == stage.digest
    assert node.audit.method == "aitbc-replay-v1"
    assert (node.audit.tokens, node.audit.exact_tokens) == (24, 24)
    assert node.audit.audited_at_ms == NOW_MS


def test_an_audit_runs_in_the_engine_that_answers(stage):
    node = FakeAudits(stage.files(stage.answer()))
    with open_engine(stage.directory, context=64) as engine:
        auditor = audit(node, engine, "completed")
        assert auditor.passed == 1
        assert node.audit.exact_tokens == 24


def test_an_answer_of_another_seed_fails(stage):
    node = FakeAudits(stage.files(stage.answer(), seed=PARAMS.seed + 1))
    auditor = audit(node, StageEngine(stage), "completed")
    assert node.audit.verdict == "fail"
    assert auditor.failed == 1


def test_inflated_counts_fail(stage):
    node = FakeAudits(stage.files(stage.answer(), prompt_tokens=99))
    audit(node, StageEngine(stage), "completed")
    assert node.audit.verdict == "fail"
    assert node.audit.prompt_tokens < 99


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "Why not?"},
        {"result": "Because."},
        {"output_token_ids": [5, 6, 7]},
        {"result_salt": ""},
    ],
)
def test_texts_that_are_not_those_of_the_receipt_are_given_back(stage, change):
    node = FakeAudits(stage.files(stage.answer()), **change)
    audit(node, StageEngine(stage), "released")
    reason = node.bodies["release"][0]["reason"]
    assert "digest" in reason
    assert "Because" not in reason
    assert not node.bodies["complete"]


def test_an_auditor_with_another_model_gives_the_audit_back(stage):
    node = FakeAudits(stage.files(stage.answer()))
    audit(node, StageEngine(stage, model_digest="00" * 32), "released")
    assert node.bodies["release"][0]["reason"].startswith("model_digest: yours is 0000")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"genesis": "cd" * 32}, "genesis"),
        ({"auditor": build_key("other").account}, "auditor"),
        ({"receipt": {}}, "receipt"),
    ],
)
def test_an_order_for_somebody_else_is_refused(stage, change, said):
    node = FakeAudits(stage.files(stage.answer()), **change)
    audit(node, StageEngine(stage), "released")
    assert said in node.bodies["release"][0]["reason"]
    assert not node.bodies["complete"]


def test_nobody_audits_its_own_answer(stage):
    own = build_key("auditor")
    files = stage.files(stage.answer())
    node = FakeAudits(files)
    node.order["receipt"]["provider"] = own.account
    audit(node, StageEngine(stage), "released")
    assert "own" in node.bodies["release"][0]["reason"]


def test_a_model_that_fails_gives_the_audit_back(stage):
    node = FakeAudits(stage.files(stage.answer()))
    audit(node, BrokenEngine(stage), "released", "idle")
    assert "failed" in node.bodies["release"][0]["reason"]


def test_a_model_that_is_no_auditor_gives_every_audit_back(stage, monkeypatch):
    monkeypatch.setattr(auditor_module, "MOST_UNSTEADY", 0.0)
    node = FakeAudits(stage.files(stage.answer()))
    audit(node, StageEngine(stage), "released", "idle")
    assert "cut into runs" in node.bodies["release"][0]["reason"]
    assert not node.bodies["complete"]


def test_an_audit_that_is_not_done_at_the_end_is_given_back(stage):
    node = FakeAudits(stage.files(stage.answer()))
    engine = HangingEngine(stage)
    audit(node, engine, "claim")
    assert node.seen["released"].is_set()
    assert engine.future.cancelled()


def test_a_finding_is_sent_until_the_node_answers(stage):
    node = FakeAudits(stage.files(stage.answer()))
    node.script["complete"] = [refuse(503, "SYSTEM_OVERLOADED"), refuse(500, "SYSTEM_INTERNAL")]
    audit(node, StageEngine(stage), "completed")
    bodies = node.bodies["complete"]
    assert len(bodies) == 3
    assert bodies[0] == bodies[1] == bodies[2]


def test_an_audit_that_somebody_else_took_is_left(stage):
    node = FakeAudits(stage.files(stage.answer()))
    node.script["claim"] = [refuse(409, "AUDIT_ALREADY_CLAIMED")]
    audit(node, StageEngine(stage), "completed")
    assert node.calls.count("claim") == 2


def test_a_model_that_is_not_served_is_not_audited(stage):
    node = FakeAudits(stage.files(stage.answer()))
    node.hooks["available"] = lambda: node.calls.count("available") > 2 and node.seen["3"].set()
    audit(node, StageEngine(stage), "3", name="other")
    assert "claim" not in node.calls


def test_a_node_without_audits_is_asked_once(stage):
    node = FakeAudits(stage.files(stage.answer()))
    node.script["available"] = [refuse(404, "NOT_FOUND")]
    audit(node, StageEngine(stage))
    assert node.calls == ["health", "available"]


def test_an_auditor_waits_in_silence_until_it_is_registered(stage, caplog):
    node = FakeAudits(stage.files(stage.answer()))
    node.script["available"] = [refuse(404, "MINER_NOT_FOUND")] * 3
    audit(node, StageEngine(stage), "completed")
    assert node.audit.verdict == "pass"
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_no_text_is_logged(stage, caplog):
    caplog.set_level(logging.DEBUG, logger="miner")
    files = stage.files(stage.answer())
    audit(FakeAudits(files), StageEngine(stage), "completed")
    audit(FakeAudits(files, result="Because."), StageEngine(stage), "released")
    logged = " ".join(record.getMessage() for record in caplog.records)
    assert "audited rcp_" in logged
    for text in (files.job["prompt"], files.job["result"], "Because."):
        assert text not in logged
