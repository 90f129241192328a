"""Audits on a real node in strict mode, by the real worker and auditor on a small model.

The provider's engine is honest or cheats in one way; what the auditor finds must stand on the
chain, signed by it and by the coordinator.
"""

import asyncio
import dataclasses
import json
import time
from concurrent.futures import Future

import httpx2
import pytest
from click.testing import CliRunner

from miner.auditor import Auditor
from miner.client import CoordinatorClient
from miner.engine import Completion, Generation
from miner.receipt import build_registration
from miner.retry import Pace
from miner.worker import Worker
from node.cli.group import cli
from tests.audit_stage import Stage
from tests.builders import build_key
from tests.live import LiveNode
from tests.miner_fixtures import open_engine

MODEL = "tiny:1b"
PATIENCE_S = 60
PACE = Pace(poll_wait_s=1, first_retry_s=0.02, longest_retry_s=0.1)
# Hot: else a cheat and an honest answer may come to the same.
PARAMS = {"max_tokens": 24, "temperature": 2.0, "top_p": 0.9}


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    # Job ids are new each time, and answers with them: nothing may depend on which are drawn.
    return Stage(tmp_path_factory.mktemp("model"), is_tame=True)


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    live = LiveNode(
        tmp_path_factory.mktemp("node") / "data", "--mode", "strict", "--audit-rate", "1"
    )
    try:
        yield Node(live)
    finally:
        live.stop()


class Node:
    """A node that audits every job, with a client and two miners."""

    def __init__(self, live):
        self.client_key = live.create_key("client", "client")
        self.provider_key = live.create_key("miner", "provider")
        self.auditor_key = live.create_key("miner", "auditor")
        live.start()
        self.url = live.url
        self.genesis = live.data.genesis

    async def get(self, path):
        headers = {"X-Api-Key": self.client_key}
        async with httpx2.AsyncClient(base_url=self.url, headers=headers, trust_env=False) as http:
            return (await http.get(path)).raise_for_status().json()

    async def submit(self):
        headers = {"X-Api-Key": self.client_key}
        order = {"model": MODEL, "prompt": "Why the sky?", "params": PARAMS}
        async with httpx2.AsyncClient(base_url=self.url, headers=headers, trust_env=False) as http:
            return (await http.post("/v1/jobs", json=order)).raise_for_status().json()["job_id"]


class CheatingEngine:
    """Asks an honest engine something else than it was asked, or changes what it answers."""

    slots = 1
    provider = "CPUExecutionProvider"

    def __init__(
        self, honest, *, ask=lambda request: request, change=lambda completion: completion
    ):
        self._honest = honest
        self._ask = ask
        self._change = change

    @property
    def model_digest(self):
        return self._honest.model_digest

    def submit(self, request, *, on_text):
        inner = self._honest.submit(self._ask(request), on_text=lambda piece: None)
        outer = Generation()
        inner.future.add_done_callback(lambda done: self._hand_on(done, outer.future))
        return outer

    def _hand_on(self, done: Future, future: Future):
        future.set_result(self._change(done.result()))


def other_params(**changes):
    def ask(request):
        return dataclasses.replace(request, params=dataclasses.replace(request.params, **changes))

    return ask


def altered(stage):
    def change(completion: Completion) -> Completion:
        # Several, of which some can be nearly as likely as the drawn ones.
        ids = [
            token ^ 1 if 5 <= at < 15 else token for at, token in enumerate(completion.token_ids)
        ]
        text = stage.with_tokens(stage.answer(), tuple(ids)).result
        return dataclasses.replace(completion, token_ids=tuple(ids), text=text)

    return change


def audited(node, stage, cheat=None):
    """One job through provider and auditor; returns the job and its final audits."""

    async def story():
        with open_engine(stage.directory, context=64) as engine:
            return await asyncio.wait_for(_run(node, engine, cheat), PATIENCE_S)

    return asyncio.run(story())


async def _run(node, engine, cheat):
    job_id = await node.submit()
    providing = CoordinatorClient(url=node.url, api_key=node.provider_key)
    worker = Worker(
        client=providing,
        miner_id="provider",
        key=build_key("provider"),
        engines={MODEL: CheatingEngine(engine, **cheat) if cheat else engine},
        clock_ms=lambda: 0,
        pace=PACE,
    )
    auditing = CoordinatorClient(url=node.url, api_key=node.auditor_key)
    await auditing.register(
        build_registration(
            genesis=await auditing.genesis(),
            miner_id="auditor",
            key=build_key("auditor"),
            models=[MODEL],
            gpu_info=None,
            audits=True,
        )
    )
    auditor = Auditor(
        client=auditing,
        miner_id="auditor",
        key=build_key("auditor"),
        engines={MODEL: engine},
        now_ms=lambda: time.time_ns() // 1_000_000,  # the node compares it with its own
        pace=PACE,
    )
    running = [asyncio.create_task(part.run()) for part in (worker, auditor)]
    try:
        job, audits = await _find_audits(node, job_id)
    finally:
        worker.stop()
        auditor.stop()
        await asyncio.gather(*running)
        for client in (providing, auditing):
            await client.close()
    return job, audits


async def _find_audits(node, job_id):
    while True:
        job = await node.get(f"/v1/jobs/{job_id}?wait=5")
        if "receipt_id" in job:
            audits = await node.get(f"/v1/receipts/{job['receipt_id']}/audits")
            if audits and audits[0]["status"] == "final":
                return job, audits
        await asyncio.sleep(0.05)  # a block is on its way


def test_an_honest_answer_passes_on_the_chain(node, stage):
    _, (audit,) = audited(node, stage)
    assert audit["verdict"] == "pass"
    assert audit["auditor"] == build_key("auditor").account
    assert (audit["tokens"], audit["exact_tokens"], audit["ending"]) == (24, 24, "max_tokens")
    assert audit["model_digest"] == stage.digest


@pytest.mark.parametrize(
    "cheat", ["another seed", "greedy", "altered tokens", "fewer tokens", "inflated prompt"]
)
def test_a_cheat_fails_on_the_chain(node, stage, cheat):
    how = {
        "another seed": {"ask": other_params(seed=1)},
        "greedy": {"ask": other_params(temperature_micros=0)},
        "altered tokens": {"change": altered(stage)},
        "fewer tokens": {"ask": other_params(max_tokens=9)},
        "inflated prompt": {
            "change": lambda completion: dataclasses.replace(completion, prompt_tokens=99)
        },
    }[cheat]
    _, (audit,) = audited(node, stage, how)
    assert audit["verdict"] == "fail"


def test_the_owner_audits_a_job_of_a_running_node(node, stage):
    job, _ = audited(node, stage)
    arguments = ["audit", "--job", job["job_id"], "--url", node.url, "--key", node.client_key]
    arguments += ["--model", str(stage.directory), "--genesis", str(node.genesis), "--json"]
    result = CliRunner().invoke(cli, [*arguments, "--threads", "1"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["measures"]["exact_tokens"] == 24
