"""The whole market against a model of a few lines, over any course of events and restarts.

The model is a dictionary. After every step each job must be in the model's state; at the end every
completed job has exactly one receipt, on a chain that verifies, no other job has one, and no job
is lost.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from ledger.errors import MarketError
from ledger.jobs import MAX_ATTEMPTS
from ledger.views import ReceiptFilter
from tests.market_node import CLIENT, MINER, SETTINGS, MarketNode

MINERS = {"m1": ("*",), "m2": ("a",), "m3": ("b", "a")}
miners = st.sampled_from(sorted(MINERS))
models = st.sampled_from(["a", "b"])
results = st.sampled_from(["one", "two"])
LEASE_MS, RUN_MS = SETTINGS.lease_ms, SETTINGS.execution_timeout_ms
steps_ms = st.sampled_from([1, LEASE_MS // 2, LEASE_MS, RUN_MS, SETTINGS.queue_timeout_ms + 1])


@dataclass
class Expected:
    """What the model knows of a job."""

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

    def lose(self) -> None:
        self.state = "pending" if self.attempt < MAX_ATTEMPTS else "failed"
        self.loser, self.miner = self.miner, None


class Market(RuleBasedStateMachine):
    """Rules are the calls of the REST API, and what time and power cuts do."""

    jobs = Bundle("jobs")

    @initialize()
    def open(self) -> None:
        self.directory = tempfile.TemporaryDirectory(prefix="market-")
        self.node = MarketNode(Path(self.directory.name))
        for name, capabilities in MINERS.items():
            self.node.register(name, capabilities)
        self.model: dict[str, Expected] = {}
        self.receipts: dict[str, str] = {}

    def allowed(self, call) -> bool:
        """Tell whether the market does it."""
        try:
            self.last = call()
        except MarketError:
            return False
        return True

    # --- clients ---

    @rule(target=jobs, model=models)
    def submit(self, model: str):
        pending = sum(job.state == "pending" for job in self.model.values())
        done = self.allowed(lambda: self.node.submit(model=model))
        assert done == (pending < SETTINGS.max_pending_per_key)
        if not done:
            return None
        self.model[self.last.job_id] = Expected(model, self.node.now_ms)
        return self.last

    @rule(job=jobs)
    def cancel(self, job) -> None:
        if job is None:
            return
        expected = self.model[job.job_id]
        call = self.node.coordinator.cancel(CLIENT, job.job_id)
        done = self.allowed(lambda: self.node.do(call))
        assert done == (expected.state in {"pending", "running", "cancelled"})
        if done:
            expected.state = "cancelled"

    # --- miners ---

    @rule(miner=miners)
    def ask(self, miner: str) -> None:
        found = self.node.do(self.node.coordinator.available(MINER, miner, 0))
        fitting = [
            name
            for name, job in self.model.items()
            if job.state == "pending" and (miner == "m1" or job.model in MINERS[miner])
        ]
        fitting.sort(key=lambda name: self.model[name].loser == miner)  # its own losses come last
        assert (found.job_id if found else None) == (fitting[0] if fitting else None)

    @rule(job=jobs, miner=miners, heartbeat=st.booleans())
    def claim(self, job, miner: str, *, heartbeat: bool) -> None:
        if job is None:
            return
        expected = self.model[job.job_id]
        done = self.allowed(lambda: self.node.claim(job, miner, heartbeat=heartbeat))
        again = expected.state == "running" and expected.miner == miner
        assert done == (expected.state == "pending" or again)
        if done and not again:
            now_ms = self.node.now_ms
            expected.state, expected.miner, expected.heartbeat = "running", miner, heartbeat
            expected.attempt += 1
            expected.started_ms = now_ms
            expected.lease_ms = now_ms + (LEASE_MS if heartbeat else RUN_MS)

    @rule(job=jobs, miner=miners)
    def heartbeat(self, job, miner: str) -> None:
        if job is None:
            return
        expected = self.model[job.job_id]
        call = self.node.coordinator.heartbeat(MINER, job.job_id, miner)
        done = self.allowed(lambda: self.node.do(call))
        assert done == (expected.state == "running" and expected.miner == miner)
        if done and expected.heartbeat:
            end_ms = expected.started_ms + RUN_MS
            expected.lease_ms = min(self.node.now_ms + LEASE_MS, end_ms)

    @rule(job=jobs, miner=miners, retryable=st.sampled_from([None, True, False]))
    def give_up(self, job, miner: str, *, retryable: bool | None) -> None:
        """Release, or fail with or without hope."""
        if job is None:
            return
        expected = self.model[job.job_id]
        coordinator = self.node.coordinator
        call = (
            coordinator.release(MINER, job.job_id, miner)
            if retryable is None
            else coordinator.fail(MINER, job.job_id, miner, reason="why", retryable=retryable)
        )
        done = self.allowed(lambda: self.node.do(call))
        assert done == (expected.state == "running" and expected.miner == miner)
        if done:
            expected.lose()
            if retryable is False:
                expected.state = "failed"

    @rule(job=jobs, miner=miners, result=results)
    def complete(self, job, miner: str, result: str) -> None:
        if job is None:
            return
        expected = self.model[job.job_id]
        done = self.allowed(lambda: self.node.complete(job, miner, result))
        held = expected.state == "running" and expected.miner == miner
        late = expected.state == "pending" and expected.loser == miner
        again = (
            expected.state == "completed" and expected.miner == miner and expected.result == result
        )
        assert done == (held or late or again)
        if done:
            receipt_id = self.last.payload.receipt_id
            assert self.receipts.setdefault(job.job_id, receipt_id) == receipt_id
            expected.state, expected.miner, expected.result = "completed", miner, result

    # --- the world ---

    @rule(later_ms=steps_ms)
    def sweep(self, later_ms: int) -> None:
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

    @rule()
    def seal(self) -> None:
        self.node.seal()
        assert self.node.pending_receipts == []

    @rule()
    def restart(self) -> None:
        self.node.restart()

    @invariant()
    def every_job_is_where_the_model_has_it(self) -> None:
        if not hasattr(self, "model"):
            return
        found = {job_id: self.node.coordinator.job(job_id) for job_id in self.model}
        assert {name: job.state for name, job in found.items()} == {
            name: job.state for name, job in self.model.items()
        }
        for name, job in found.items():
            assert job.receipt_id == self.receipts.get(name)
            assert job.attempt == self.model[name].attempt

    def teardown(self) -> None:
        if not hasattr(self, "node"):
            return
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


Market.TestCase.settings = settings(max_examples=40, stateful_step_count=40)
TestMarket = Market.TestCase
