"""The whole market against a model of a few lines, over any course of events and restarts.

The model is a dictionary. After every step each job must be in the model's state; at the end every
completed job has exactly one receipt, on a chain that verifies, no other job has one, and no job
is lost.
"""

import random
import tempfile
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ledger.errors import MarketError
from ledger.jobs import MAX_ATTEMPTS, Job
from ledger.views import ReceiptFilter
from tests.market_node import CLIENT, MINER, SETTINGS, MarketNode

MINERS = {"m1": ("*",), "m2": ("a",), "m3": ("b", "a")}
CONCERNED = ""
"""Stands for the miner that has the job, or had it last."""

# Hypothesis leaves out whole rules in some runs, so there is one rule with choices.
ACTIONS = [
    *["complete"] * 4,
    *["claim"] * 6,
    *["sweep"] * 4,
    *("heartbeat", "release", "fail", "end", "cancel", "seal", "restart", "ask", "ask"),
]
MAX_OPEN = 3
"""Few jobs, so that each lives through much."""
LONG_LIFE = 400
LEASE_MS, RUN_MS = SETTINGS.lease_ms, SETTINGS.execution_timeout_ms
STEPS_MS = [*[1, LEASE_MS // 2, LEASE_MS, LEASE_MS] * 3, RUN_MS, SETTINGS.queue_timeout_ms + 1]

numbers = st.integers(0, 1000)
models = st.sampled_from(["a", "b"])
miners = st.sampled_from([CONCERNED, CONCERNED, CONCERNED, *MINERS])


@dataclass
class Expected:
    """What the model knows of a job."""

    job: Job
    """As it was submitted."""
    model: str
    created_ms: int
    state: str = "pending"
    attempt: int = 0
    miner: str | None = None
    loser: str | None = None
    started_ms: int = 0
    lease_ms: int = 0
    heartbeat: bool = False
    result: str | None = None

    def is_held_by(self, miner: str) -> bool:
        return self.state == "running" and self.miner == miner

    def lose(self) -> None:
        self.state = "pending" if self.attempt < MAX_ATTEMPTS else "failed"
        self.loser, self.miner = self.miner, None


class Market(RuleBasedStateMachine):
    """Rules are the calls of the REST API, and what time and power cuts do."""

    @initialize()
    def open(self) -> None:
        self.directory = tempfile.TemporaryDirectory(prefix="market-")
        self.node = MarketNode(Path(self.directory.name))
        for name, capabilities in MINERS.items():
            self.node.register(name, capabilities)
        self.model: dict[str, Expected] = {}
        self.receipts: dict[str, str] = {}
        self.submit("a")

    def allowed(self, call: Callable[[], Any]) -> bool:
        """Tell whether the market does it."""
        try:
            self.answer = call()
        except MarketError:
            return False
        return True

    @property
    def open_jobs(self) -> list[Expected]:
        return [job for job in self.model.values() if job.state in {"pending", "running"}]

    @precondition(lambda self: len(self.open_jobs) < MAX_OPEN)
    @rule(model=models)
    def submit(self, model: str) -> None:
        job = self.node.submit(model=model)
        self.model[job.job_id] = Expected(job, model, self.node.now_ms)

    @rule(
        action=st.sampled_from(ACTIONS),
        number=numbers,
        miner=miners,
        variant=st.integers(0, 1),
        later_ms=st.sampled_from(STEPS_MS),
    )
    def step(self, action: str, number: int, miner: str, variant: int, later_ms: int) -> None:
        """Somebody does something to some job, or something happens to the node as a whole.

        `variant` is the result, or whether the miner promises heartbeats.
        """
        if action == "sweep":
            self._sweep(later_ms)
        elif action == "seal":
            self.node.seal()
            assert self.node.pending_receipts == []
        elif action == "restart":
            self.node.restart()
        elif action == "ask":
            self._ask(miner or "m1")
        else:
            jobs = list(self.model.values())
            if number % 4 != 3:  # mostly one that can still change
                jobs = self.open_jobs or jobs
            expected = jobs[number % len(jobs)]
            miner = miner or expected.miner or expected.loser or "m1"
            getattr(self, f"_{action}")(expected, miner, variant)

    # --- clients and miners ---

    def _cancel(self, expected: Expected, _miner: str, _variant: int) -> None:
        call = self.node.coordinator.cancel(CLIENT, expected.job.job_id)
        done = self.allowed(lambda: self.node.do(call))
        assert done == (expected.state in {"pending", "running", "cancelled"})
        if done:
            expected.state = "cancelled"

    def _claim(self, expected: Expected, miner: str, variant: int) -> None:
        heartbeat = variant == 1
        done = self.allowed(lambda: self.node.claim(expected.job, miner, heartbeat=heartbeat))
        again = expected.state == "running" and expected.miner == miner
        assert done == (expected.state == "pending" or again)
        if done and not again:
            now_ms = self.node.now_ms
            expected.state, expected.miner, expected.heartbeat = "running", miner, heartbeat
            expected.attempt += 1
            expected.started_ms = now_ms
            expected.lease_ms = now_ms + (LEASE_MS if heartbeat else RUN_MS)

    def _heartbeat(self, expected: Expected, miner: str, _variant: int) -> None:
        call = self.node.coordinator.heartbeat(MINER, expected.job.job_id, miner)
        done = self.allowed(lambda: self.node.do(call))
        assert done == expected.is_held_by(miner)
        if done and expected.heartbeat:
            end_ms = expected.started_ms + RUN_MS
            expected.lease_ms = min(self.node.now_ms + LEASE_MS, end_ms)

    def _release(self, expected: Expected, miner: str, _variant: int) -> None:
        self._give_up(
            expected, miner, self.node.coordinator.release(MINER, expected.job.job_id, miner)
        )

    def _fail(self, expected: Expected, miner: str, variant: int, *, retryable: bool = True):
        call = self.node.coordinator.fail(
            MINER, expected.job.job_id, miner, reason=f"{variant}", retryable=retryable
        )
        return self._give_up(expected, miner, call)

    def _end(self, expected: Expected, miner: str, variant: int) -> None:
        if self._fail(expected, miner, variant, retryable=False):
            expected.state = "failed"

    def _give_up(self, expected: Expected, miner: str, call: Coroutine[Any, Any, Any]) -> bool:
        done = self.allowed(lambda: self.node.do(call))
        assert done == expected.is_held_by(miner)
        if done:
            expected.lose()
        return done

    def _complete(self, expected: Expected, miner: str, variant: int) -> None:
        result = f"result {variant}"
        held = expected.is_held_by(miner)
        late = expected.state == "pending" and expected.loser == miner
        again = (expected.state, expected.miner, expected.result) == ("completed", miner, result)
        done = self.allowed(lambda: self.node.complete(expected.job, miner, result))
        assert done == (held or late or again)
        if done:
            receipt_id = self.answer.payload.receipt_id
            assert self.receipts.setdefault(expected.job.job_id, receipt_id) == receipt_id
            expected.state, expected.miner, expected.result = "completed", miner, result

    # --- the world ---

    def _ask(self, miner: str) -> None:
        found = self.node.do(self.node.coordinator.available(MINER, miner, 0))
        fitting = [
            job
            for job in self.model.values()
            if job.state == "pending" and (miner == "m1" or job.model in MINERS[miner])
        ]
        fitting.sort(key=lambda job: job.loser == miner)  # its own losses come last
        assert (found.id if found else None) == (fitting[0].job.id if fitting else None)

    def _sweep(self, later_ms: int) -> None:
        self.node.now_ms += later_ms
        self.node.do(self.node.coordinator.sweep())
        now_ms = self.node.now_ms
        for job in self.model.values():
            if job.state == "running" and job.lease_ms <= now_ms:
                is_over = job.heartbeat and now_ms >= job.started_ms + RUN_MS
                job.lose()
                if is_over:
                    job.state = "failed"
            if job.state == "pending" and job.created_ms < now_ms - SETTINGS.queue_timeout_ms:
                job.state = "failed"

    @invariant()
    def every_job_is_where_the_model_has_it(self) -> None:
        for job_id, expected in self.model.items():
            job = self.node.coordinator.job(job_id)
            assert (job.state, job.attempt, job.receipt_id) == (
                expected.state,
                expected.attempt,
                self.receipts.get(job_id),
            )

    def teardown(self) -> None:
        try:
            self.node.restart()
            self.node.seal()
            shown = self.node.views.receipts(ReceiptFilter(), limit=100)
            assert sorted(view.payload.receipt_id for view in shown) == sorted(
                self.receipts.values()
            )
            completed = {n for n, job in self.model.items() if job.state == "completed"}
            assert completed == self.receipts.keys()
            assert self.node.verify() == len(self.receipts)
        finally:
            self.node.close()
            self.directory.cleanup()


Market.TestCase.settings = settings(max_examples=12, stateful_step_count=40)
TestMarket = Market.TestCase


@pytest.mark.parametrize("seed", range(3))
def test_a_long_life_of_a_market(seed):
    """Hypothesis finds short histories; third attempts and late results need long ones."""
    rng = random.Random(seed)
    market = Market()
    market.open()
    try:
        for _ in range(LONG_LIFE):
            if len(market.open_jobs) < MAX_OPEN and rng.random() < 0.5:
                market.submit(rng.choice("ab"))
            market.step(
                action=rng.choice(ACTIONS),
                number=rng.randrange(1000),
                miner=rng.choice([*[CONCERNED] * 8, *MINERS]),
                variant=rng.randrange(2),
                later_ms=rng.choice(STEPS_MS),
            )
            market.every_job_is_where_the_model_has_it()
        states = {job.state for job in market.model.values()}
        assert states >= {"completed", "failed", "cancelled"}
        assert max(job.attempt for job in market.model.values()) == MAX_ATTEMPTS
    finally:
        market.teardown()
