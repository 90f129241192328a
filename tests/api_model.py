"""What the REST face should answer: its market as a few dictionaries.

Each method decides one request from the model alone: it returns the refusal that is expected, as
status and code, or changes the model and returns None. Nothing of the market's code is used.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

MAX_ATTEMPTS = 3
DAY_MS = 86_400_000
ROLES = {"c1": "client", "c2": "client", "k1": "miner", "k2": "miner", "admin": "admin"}
CAPABILITIES = {"m1": ("*",), "m2": ("a",), "m3": ("b", "a")}

Refusal = tuple[int, str]

BAD_BODY = (400, "VALIDATION_FAILED")
LEASE_LOST = (409, "JOB_LEASE_LOST")


@dataclass
class Limits:
    """Of one key."""

    max_pending: int
    daily_jobs: int = 1 << 40
    daily_tokens: int = 1 << 40


@dataclass(frozen=True)
class Order:
    prompt: str
    model: str
    max_tokens: int


@dataclass
class Job:
    order: Order
    owner: str
    created_ms: int
    state: str = "pending"
    attempt: int = 0
    miner: str | None = None
    loser: str | None = None
    claimed_by: str | None = None
    started_ms: int = 0
    lease_ms: int = 0
    heartbeat: bool = False
    result: str | None = None
    ended_ms: int | None = None
    purged: bool = False
    receipt: str | None = None

    def end(self, state: str, now_ms: int) -> None:
        self.state, self.ended_ms = state, now_ms

    def is_held_by(self, miner: str) -> bool:
        return self.state == "running" and self.miner == miner


@dataclass
class Miner:
    owner: str
    draining: bool = False


@dataclass
class Repeat:
    orders: list[Order]
    ids: list[str]
    created_ms: int


@dataclass
class Row:
    """The turn of a key for a model, while it has pending jobs."""

    turn: int
    number: int
    pending: int = 0


@dataclass
class Model:
    """Keys are known by their names here; "" is a request without one."""

    lease_ms: int
    run_ms: int
    queue_ms: int
    retention_ms: int
    limits: dict[str, Limits]
    now_ms: int
    jobs: dict[str, Job] = field(default_factory=dict)
    """In the order of submission."""
    miners: dict[str, Miner] = field(default_factory=dict)
    repeats: dict[tuple[str, str], Repeat] = field(default_factory=dict)
    used: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    """Day, jobs and tokens of each key."""
    rows: dict[tuple[str, str], Row] = field(default_factory=dict)
    turns: dict[str, int] = field(default_factory=dict)
    clock: int = 0
    numbers: int = 0

    # --- who may --------------------------------------------------------------------------------

    def refuse_access(self, key: str, role: str, *, needed: bool) -> Refusal | None:
        if key == "revoked":
            return 401, "AUTH_INVALID_KEY"
        if not needed:
            return None
        if not key:
            return 401, "AUTH_MISSING_KEY"
        return None if ROLES[key] in {role, "admin"} else (403, "AUTH_INSUFFICIENT_SCOPE")

    def acts_for(self, key: str, miner: Miner) -> bool:
        return key == "admin" or miner.owner in {"", key}

    def refuse_miner(self, key: str, name: str, mode: str) -> Refusal | None:
        if refusal := self.refuse_access(key, "miner", needed=mode == "strict"):
            return refusal
        if name not in self.miners:
            return 404, "MINER_NOT_FOUND"
        if not self.acts_for(key, self.miners[name]):
            return 403, "AUTH_INSUFFICIENT_SCOPE"
        return None

    def may_read(self, key: str, mode: str, job: Job) -> bool:
        return mode == "dev" or key == "admin" or (bool(key) and key in {job.owner, job.claimed_by})

    # --- clients --------------------------------------------------------------------------------

    def find_repeat(self, key: str, name: str | None) -> Repeat | None:
        known = self.repeats.get((key, name or ""))
        return known if known and known.created_ms > self.now_ms - DAY_MS else None

    def usage(self, key: str) -> tuple[int, int]:
        day, jobs, tokens = self.used.get(key, (0, 0, 0))
        return (jobs, tokens) if day == self.now_ms // DAY_MS else (0, 0)

    def count(self, state: str, owner: str) -> int:
        return sum((job.state, job.owner) == (state, owner) for job in self.jobs.values())

    def refuse_submit(self, key: str, orders: list[Order], name: str | None) -> Refusal | None:
        if refusal := self.refuse_access(key, "client", needed=True):
            return refusal
        if not orders or any(order.max_tokens < 1 for order in orders):
            return BAD_BODY
        if repeat := self.find_repeat(key, name):
            return None if repeat.orders == orders else (409, "IDEMPOTENCY_MISMATCH")
        return self.refuse_quota(key, orders)

    def refuse_quota(self, key: str, orders: list[Order]) -> Refusal | None:
        limits, (jobs, tokens) = self.limits[key], self.usage(key)
        asked = sum(order.max_tokens for order in orders)
        if len(orders) > min(limits.max_pending, limits.daily_jobs) or asked > limits.daily_tokens:
            return BAD_BODY
        if jobs + len(orders) > limits.daily_jobs or tokens + asked > limits.daily_tokens:
            return 429, "QUOTA_EXCEEDED"
        if self.count("pending", key) + len(orders) > limits.max_pending:
            return 429, "RATE_LIMIT_EXCEEDED"
        return None

    def submit(self, key: str, orders: list[Order], ids: list[str], name: str | None) -> None:
        jobs, tokens = self.usage(key)
        asked = sum(order.max_tokens for order in orders)
        self.used[key] = (self.now_ms // DAY_MS, jobs + len(orders), tokens + asked)
        for job_id, order in zip(ids, orders, strict=True):
            self.jobs[job_id] = Job(order=order, owner=key, created_ms=self.now_ms)
            self._enqueue(self.jobs[job_id])
        if name is not None:
            self.repeats[key, name] = Repeat(orders, ids, self.now_ms)

    def cancel(self, key: str, mode: str, job_id: str) -> Refusal | None:
        if refusal := self.refuse_access(key, "client", needed=mode == "strict"):
            return refusal
        job = self.jobs.get(job_id)
        if job is None:
            return 404, "JOB_NOT_FOUND"
        if key not in {"", "admin", job.owner}:
            return 403, "AUTH_INSUFFICIENT_SCOPE"
        if job.state in {"completed", "failed"}:
            return 409, "JOB_ALREADY_COMPLETED"
        if job.state != "cancelled":
            self._dequeue(job)
            job.end("cancelled", self.now_ms)
        return None

    # --- miners ---------------------------------------------------------------------------------

    def register(self, key: str, mode: str, name: str) -> Refusal | None:
        if refusal := self.refuse_access(key, "miner", needed=mode == "strict"):
            return refusal
        known = self.miners.get(name)
        if known and not self.acts_for(key, known):
            return 409, "MINER_ALREADY_REGISTERED"
        self.miners[name] = Miner(known.owner if known and key == "admin" else key)
        return None

    def drain(self, key: str, mode: str, name: str) -> Refusal | None:
        if refusal := self.refuse_miner(key, name, mode):
            return refusal
        self.miners[name] = replace(self.miners[name], draining=True)
        return None

    def deregister(self, key: str, mode: str, name: str) -> Refusal | None:
        if refusal := self.refuse_miner(key, name, mode):
            return refusal
        for job in self.jobs.values():
            if job.is_held_by(name):
                self._lose(job)
            if job.state == "pending" and job.loser == name:
                job.loser = None
        del self.miners[name]
        return None

    def find_available(self, name: str) -> str | None:
        if self.miners[name].draining:
            return None
        served = CAPABILITIES[name]
        fitting = {
            job_id: job
            for job_id, job in self.jobs.items()
            if job.state == "pending" and ("*" in served or job.order.model in served)
        }
        fresh = {job_id: job for job_id, job in fitting.items() if job.loser != name}
        offered = fresh or fitting
        if not offered:
            return None
        rows = [self.rows[job.owner, job.order.model] for job in offered.values()]
        first = min(rows, key=lambda row: (row.turn, row.number))
        (owner,) = {owner for (owner, _), row in self.rows.items() if row is first}
        return next(job_id for job_id, job in offered.items() if job.owner == owner)

    def claim(
        self, key: str, mode: str, job_id: str, name: str, *, heartbeat: bool
    ) -> Refusal | None:
        if refusal := self.refuse_miner(key, name, mode):
            return refusal
        job = self.jobs.get(job_id)
        if job is None:
            return 404, "JOB_NOT_FOUND"
        if job.is_held_by(name):
            return None
        if job.state != "pending":
            return self._state_error(job, (409, "JOB_ALREADY_CLAIMED"))
        if self.miners[name].draining:
            return 409, "MINER_DRAINING"
        self._take_turn(job, name)
        self._dequeue(job)
        job.state, job.miner, job.claimed_by, job.heartbeat = "running", name, key, heartbeat
        job.attempt += 1
        job.started_ms = self.now_ms
        job.lease_ms = self.now_ms + (self.lease_ms if heartbeat else self.run_ms)
        return None

    def refuse_holder(self, key: str, mode: str, job_id: str, name: str) -> Refusal | None:
        if refusal := self.refuse_miner(key, name, mode):
            return refusal
        job = self.jobs.get(job_id)
        if job is None:
            return 404, "JOB_NOT_FOUND"
        return None if job.is_held_by(name) else self._state_error(job, LEASE_LOST)

    def heartbeat(self, key: str, mode: str, job_id: str, name: str) -> Refusal | None:
        refusal = self.refuse_holder(key, mode, job_id, name)
        job = self.jobs.get(job_id)
        if refusal is None and job and job.heartbeat:
            job.lease_ms = min(self.now_ms + self.lease_ms, job.started_ms + self.run_ms)
        return refusal

    def give_up(
        self, key: str, mode: str, job_id: str, name: str, *, retryable: bool
    ) -> Refusal | None:
        refusal = self.refuse_holder(key, mode, job_id, name)
        if refusal is None:
            job = self.jobs[job_id]
            if retryable:
                self._lose(job)
            else:
                job.end("failed", self.now_ms)
        return refusal

    def complete(self, key: str, mode: str, job_id: str, name: str, result: str) -> Refusal | None:
        if refusal := self.refuse_miner(key, name, mode):
            return refusal
        job = self.jobs.get(job_id)
        if job is None:
            return 404, "JOB_NOT_FOUND"
        if job.state == "completed" and job.miner == name:
            return None if job.result == result else (409, "JOB_RESULT_CONFLICT")
        late = job.state == "pending" and job.loser == name
        if not (late or job.is_held_by(name)):
            return self._state_error(job, LEASE_LOST)
        self._dequeue(job)
        job.miner, job.claimed_by, job.result = name, key, result
        job.end("completed", self.now_ms)
        return None

    @staticmethod
    def _state_error(job: Job, otherwise: Refusal) -> Refusal:
        if job.state == "cancelled":
            return 409, "JOB_ALREADY_CANCELLED"
        return (409, "JOB_ALREADY_COMPLETED") if job.ended_ms is not None else otherwise

    # --- time -----------------------------------------------------------------------------------

    def sweep(self) -> None:
        for job in self.jobs.values():
            if job.state == "running" and job.lease_ms <= self.now_ms:
                if job.heartbeat and self.now_ms >= job.started_ms + self.run_ms:
                    job.end("failed", self.now_ms)
                else:
                    self._lose(job)
        for job in self.jobs.values():
            if job.state == "pending" and job.created_ms < self.now_ms - self.queue_ms:
                self._dequeue(job)
                job.end("failed", self.now_ms)
            if job.ended_ms is not None and job.ended_ms <= self.now_ms - self.retention_ms:
                job.purged = True

    # --- the queue ------------------------------------------------------------------------------

    def _lose(self, job: Job) -> None:
        job.loser = job.miner
        if job.attempt < MAX_ATTEMPTS:
            job.state, job.miner, job.claimed_by = "pending", None, None
            self._enqueue(job)
        else:
            job.end("failed", self.now_ms)

    def _enqueue(self, job: Job) -> None:
        self.numbers += 1
        row = Row(self.turns.get(job.owner, 0), self.numbers)
        self.rows.setdefault((job.owner, job.order.model), row).pending += 1

    def _dequeue(self, job: Job) -> None:
        if job.state == "pending":
            row = self.rows[job.owner, job.order.model]
            row.pending -= 1
            if not row.pending:
                del self.rows[job.owner, job.order.model]

    def _take_turn(self, job: Job, name: str) -> None:
        self.clock += 1
        self.turns[job.owner] = self.clock
        served = {*CAPABILITIES[name], job.order.model}
        for (owner, model), row in self.rows.items():
            if owner == job.owner and ("*" in served or model in served):
                row.turn = self.clock

    def view(self, job: Job) -> dict[str, Any]:
        """What the answer must say, for every reader."""
        shown = {"status": job.state, "attempt": job.attempt, "miner_id": job.miner}
        shown["receipt_id"] = job.receipt
        return {name: value for name, value in shown.items() if value is not None}
