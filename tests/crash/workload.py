"""An authority's real work on real stores, with a list of what was acknowledged, and when."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from ledger.errors import MarketError
from ledger.jobs import Job
from ledger.vote import VoteRecord
from tests.builders import build_key
from tests.market_node import CLIENT, MINER, SETTINGS, MarketNode, sign_report

STEPS = {
    "submit": 30,
    "claim": 26,
    "complete": 22,
    "fail": 4,
    "cancel": 4,
    "seal": 12,
    "sweep": 3,
    "forget": 2,
    "restart": 1,
}
"""How often each is drawn, of some hundred."""
MAX_TEXT = 4_000
MINER_KEY = build_key("miner")


@dataclass(frozen=True, kw_only=True)
class Fact:
    """Something that was acknowledged when so many notes had been taken."""

    after: int
    job: Job | None = None
    """A job as it was answered."""
    height: int = 0
    block_hash: bytes = b""
    """Of a block that was said to be final."""
    votes: VoteRecord | None = None
    """Durable before they are spoken of."""


@dataclass
class Facts:
    """All of them, in order."""

    count: Callable[[], int]
    """Notes taken so far."""
    all: list[Fact] = field(default_factory=list)

    def add(self, **what) -> None:
        self.all.append(Fact(after=self.count(), **what))


class NotedNode(MarketNode):
    """A node that writes down which votes it holds for durable."""

    def __init__(self, root: Path, facts: Facts | None = None) -> None:
        self._facts = facts
        super().__init__(root, settings=replace(SETTINGS, max_pending_per_key=10_000))

    def _open(self) -> None:
        super()._open()
        record = self.votes.record

        def note(votes: VoteRecord) -> None:
            record(votes)
            if self._facts is not None:
                self._facts.add(votes=votes)

        self.votes.record = note


class Workload:
    """Steps drawn from a seed."""

    def __init__(self, node: NotedNode, facts: Facts, seed: int) -> None:
        self._node = node
        self._facts = facts
        self._rng = random.Random(seed)
        self._open: dict[str, Job] = {}
        """Jobs that have not ended."""
        self._pending: list[Job] = []
        self._claims: list = []
        node.register("m1", key=MINER_KEY)

    def run(self, steps: int) -> None:
        names, weights = list(STEPS), list(STEPS.values())
        for name in self._rng.choices(names, weights, k=steps):
            self._node.now_ms += self._rng.randrange(1, 500)
            getattr(self, f"_{name}")()

    def _note(self, job: Job) -> None:
        found = self._node.read(job)
        self._facts.add(job=found)
        self._open[job.job_id] = found
        if found.state not in {"pending", "running"}:
            del self._open[job.job_id]

    def _submit(self) -> None:
        job = self._node.submit(prompt="why " * self._rng.randrange(1, MAX_TEXT // 4))
        self._note(job)
        self._pending.append(job)

    def _claim(self) -> None:
        if self._pending:
            job = self._pending.pop(self._rng.randrange(len(self._pending)))
            claim = self._node.claim(job)
            self._note(job)
            self._claims.append(claim)

    def _complete(self) -> None:
        if self._claims:
            claim = self._claims.pop(self._rng.randrange(len(self._claims)))
            now_ms = self._node.now_ms
            text = "so " * self._rng.randrange(1, MAX_TEXT // 3)
            report = sign_report(claim, MINER_KEY, now_ms=now_ms, result=text)
            self._settle(claim.job, report)

    def _fail(self) -> None:
        if self._claims:
            claim = self._claims.pop()
            job_id = claim.job.job_id
            fail = self._node.coordinator.fail
            self._node.do(fail(MINER, job_id, "m1", reason="no memory", retryable=False))
            self._note(claim.job)

    def _cancel(self) -> None:
        if self._pending:
            job = self._pending.pop()
            self._node.do(self._node.coordinator.cancel(CLIENT, job.job_id))
            self._note(job)

    def _settle(self, job: Job, report) -> None:
        try:
            self._node.do(self._node.coordinator.complete(MINER, job.job_id, report))
        except MarketError as error:  # its lease ran out while the clock jumped
            if error.code not in {"JOB_LEASE_LOST", "JOB_ALREADY_COMPLETED"}:
                raise
        self._note(job)

    def _seal(self) -> None:
        height = self._node.seal()
        tip = self._node.chain.tip()
        if height:
            self._facts.add(height=height, block_hash=tip.hash)

    def _sweep(self) -> None:
        self._node.do(self._node.coordinator.sweep())
        for job in list(self._open.values()):
            self._note(job)

    def _forget(self) -> None:
        self._node.store.forget_versions()

    def _restart(self) -> None:
        self._node.restart()
        self._claims = []
