"""The REST face against a model of dictionaries, over any course of requests and restarts.

A real node answers over HTTP, in both modes at once, to several keys. The model predicts the status
and error code of every request, and what lists, jobs, miners and keys show; at the end every
completed job has exactly one receipt on a chain that verifies, and no other job has one.
"""

import contextlib
import random
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from starlette.testclient import TestClient

from ledger.jobs import Prices
from ledger.quotas import KeyLimits
from ledger.store.market import open_market
from ledger.store.postgres.market import open_shared_market
from ledger.views import ReceiptFilter
from node.coordinator import MarketSettings
from tests.api_model import CAPABILITIES, MAX_ATTEMPTS, ROLES, Limits, Model, Order, Refusal
from tests.api_node import ApiNode
from tests.postgres import shared_server

SETTINGS = MarketSettings(
    prices=Prices(tokens=2, gpu_seconds=500),
    max_pending_per_key=6,
    text_retention_ms=2 * 3_600_000,
)
LIMITED = KeyLimits(max_pending=3, daily_jobs=8, daily_tokens=90)
LIMITS = {
    "c1": Limits(SETTINGS.max_pending_per_key),
    "c2": Limits(max_pending=3, daily_jobs=8, daily_tokens=90),
    "admin": Limits(SETTINGS.max_pending_per_key),
}
MODES = ("dev", "strict")
UNKNOWN = "job_00000000000000000000000001"
RIGHT = "right"
"""Stands for the key, or the miner, that the job or miner belongs to."""
MAX_OPEN = 8
LONG_LIFE = 500

# Hypothesis leaves out whole rules in some runs, so there is one rule with choices.
ACTIONS = [
    *["submit"] * 8,
    *["claim"] * 8,
    *["complete"] * 8,
    *["available"] * 4,
    *["sweep"] * 4,
    *["register"] * 3,
    *("repeat", "repeat", "batch", "batch", "cancel", "heartbeat", "release", "fail", "end"),
    *("drain", "deregister", "list", "list", "show", "key", "miners", "restart", "seal"),
]
STEPS_MS = [
    *[0, 1, SETTINGS.lease_ms // 2, SETTINGS.lease_ms] * 6,
    *[SETTINGS.execution_timeout_ms] * 2,
    *(SETTINGS.queue_timeout_ms + 1, SETTINGS.text_retention_ms, 13 * 3_600_000),
]

steps = st.fixed_dictionaries(
    {
        "action": st.sampled_from(ACTIONS),
        "number": st.integers(0, 1000),
        "key": st.sampled_from([*[RIGHT] * 8, *ROLES, "", "revoked"]),
        "miner": st.sampled_from([*[RIGHT] * 4, *CAPABILITIES]),
        "mode": st.sampled_from(MODES),
        "variant": st.integers(0, 5),
        "later_ms": st.sampled_from(STEPS_MS),
    }
)


class RestFace(RuleBasedStateMachine):
    """Rules are requests, and what time and power cuts do."""

    def open_store(self):
        """What opens the market."""
        return open_market

    @initialize()
    def open(self) -> None:
        self.directory = tempfile.TemporaryDirectory(prefix="api-")
        self.node = ApiNode(
            Path(self.directory.name), settings=SETTINGS, open_store=self.open_store()
        )
        self.keys = {
            "": None,
            "c1": self.node.create_key("client"),
            "c2": self.node.create_key("client", limits=LIMITED),
            "k1": self.node.create_key("miner"),
            "k2": self.node.create_key("miner"),
            "admin": self.node.create_key("admin"),
            "revoked": self.node.create_key("admin"),
        }
        self.node.revoke_key(self.keys["revoked"])
        self.model = Model(
            lease_ms=SETTINGS.lease_ms,
            run_ms=SETTINGS.execution_timeout_ms,
            queue_ms=SETTINGS.queue_timeout_ms,
            retention_ms=SETTINGS.text_retention_ms,
            limits=LIMITS,
            now_ms=self.node.now_ms,
        )
        self.is_sealing = False
        self.prompts = 0
        self.seen: set[Any] = set()
        self._connect()
        for name, key in (("m1", "k1"), ("m2", "k1"), ("m3", "k2")):
            self._register(name, key, "strict")
        self.step(action="submit", number=0, key="c1", miner="", mode="dev", variant=1, later_ms=0)

    def _connect(self) -> None:
        self.stack = contextlib.ExitStack()
        self.clients = {
            mode: self.stack.enter_context(TestClient(self.node.app(mode))) for mode in MODES
        }

    def call(self, method: str, path: str, key: str, mode: str, **request: Any):
        headers = {**request.pop("headers", {})}
        if self.keys[key] is not None:
            headers["X-Api-Key"] = self.keys[key]
        return self.clients[mode].request(method, path, headers=headers, **request)

    def check(self, answer, refusal: Refusal | None, status: int = 200) -> bool:
        """Compare an answer with what is expected; tells whether it is no refusal."""
        if refusal is None:
            assert answer.status_code == status, answer.text
        else:
            assert (answer.status_code, answer.json()["error_code"]) == refusal
            assert ("retry-after" in answer.headers) == (refusal[0] == 429)
        self.seen.add(refusal[1] if refusal else status)
        return refusal is None

    @property
    def open_jobs(self) -> list[str]:
        return [
            job_id for job_id, job in self.model.jobs.items() if job.state in {"pending", "running"}
        ]

    @rule(step=steps)
    def do(self, step: dict[str, Any]) -> None:
        self.step(**step)

    def step(self, *, action, number, key, miner, mode, variant, later_ms) -> None:
        """Somebody asks for something, or something happens to the node as a whole."""
        jobs = list(self.model.jobs)
        if number % 4 != 3:  # mostly one that can still change
            jobs = self.open_jobs or jobs
        job_id = UNKNOWN if number % 50 == 49 else jobs[number % len(jobs)] if jobs else UNKNOWN
        job = self.model.jobs.get(job_id)
        if action in {"submit", "batch", "repeat"}:
            key = ("c1", "c2")[number % 2] if key == RIGHT else key
            getattr(self, f"_{action}")(key, number, variant)
        elif action == "cancel":
            self._cancel(
                job_id, job.owner if key == RIGHT and job else key.replace(RIGHT, ""), mode
            )
        elif action in {"list", "show", "key", "miners"}:
            key = job.owner if key == RIGHT and job else key.replace(RIGHT, "admin")
            getattr(self, f"_{action}")(key, mode, job_id, number, variant)
        elif action == "sweep":
            self._sweep(later_ms)
        elif action in {"restart", "seal"}:
            getattr(self, f"_{action}")()
        else:
            if miner == RIGHT:
                miner = (job and (job.miner or job.loser)) or "m1"
            if key == RIGHT:
                known = self.model.miners.get(miner)
                key = known.owner if known else ("k1", "k2")[number % 2]
            if action in {"register", "drain", "deregister", "available"}:
                getattr(self, f"_{action}")(miner, key, mode)
            else:
                getattr(self, f"_{action}")(job_id, miner, key, mode, variant)

    # --- clients ---

    def _order(self, number: int, variant: int) -> Order:
        self.prompts += 1
        tokens = 0 if variant == 0 and number % 3 == 0 else 10 * (1 + number % 2)
        return Order(
            prompt=f"prompt {self.prompts}", model="ab"[number // 2 % 2], max_tokens=tokens
        )

    def _submit(self, key: str, number: int, variant: int) -> None:
        if len(self.open_jobs) < MAX_OPEN:
            name = f"key-{number}" if variant > 2 else None
            self._send(key, [self._order(number, variant)], name, is_batch=False)

    def _batch(self, key: str, number: int, variant: int) -> None:
        if len(self.open_jobs) < MAX_OPEN:
            orders = [self._order(number + n, variant) for n in range(number % 5)]
            self._send(key, orders, f"key-{number}" if variant > 2 else None, is_batch=True)

    def _repeat(self, key: str, number: int, variant: int) -> None:
        """Send an idempotency key again: mostly its holder, mostly with the same orders."""
        if not self.model.repeats:
            return
        holder, name = list(self.model.repeats)[number % len(self.model.repeats)]
        orders = self.model.repeats[holder, name].orders
        if variant == 0:
            orders = [*orders[:-1], self._order(number, 1)]
        self._send(key if variant == 1 else holder, orders, name, is_batch=len(orders) != 1)

    def _send(self, key: str, orders: list[Order], name: str | None, *, is_batch: bool) -> None:
        bodies = [
            {"prompt": o.prompt, "model": o.model, "params": {"max_tokens": o.max_tokens}}
            for o in orders
        ]
        path, body = ("/v1/jobs/batch", {"jobs": bodies}) if is_batch else ("/v1/jobs", bodies[0])
        headers = {} if name is None else {"Idempotency-Key": name}
        answer = self.call("POST", path, key, "strict", json=body, headers=headers)
        refusal = self.model.refuse_submit(key, orders, name)
        if not self.check(answer, refusal, 201):
            return
        shown = answer.json() if is_batch else [answer.json()]
        ids = [job["job_id"] for job in shown]
        known = self.model.find_repeat(key, name)
        assert answer.headers.get("Idempotency-Replayed") == ("true" if known else None)
        if known:
            assert ids == known.ids
            self.seen.add("replayed")
        else:
            assert not self.model.jobs.keys() & set(ids)
            self.model.submit(key, orders, ids, name)
        for job in shown:
            self._compare(job, key, "strict")

    def _cancel(self, job_id: str, key: str, mode: str) -> None:
        answer = self.call("POST", f"/v1/jobs/{job_id}/cancel", key, mode)
        self.check(answer, self.model.cancel(key, mode, job_id))

    def _show(self, key: str, mode: str, job_id: str, _number: int, _variant: int) -> None:
        refusal = self.model.refuse_access(key, "", needed=False)
        if refusal is None and job_id not in self.model.jobs:
            refusal = (404, "JOB_NOT_FOUND")
        answer = self.call("GET", f"/v1/jobs/{job_id}", key, mode)
        if self.check(answer, refusal):
            self._compare(answer.json(), key, mode)

    def _list(self, key: str, mode: str, job_id: str, number: int, variant: int) -> None:
        query: dict[str, Any] = {"limit": number % 7}
        wanted = dict(self.model.jobs)
        if variant % 2:
            query["status"] = state = ("pending", "completed", "failed")[variant // 2]
            wanted = {name: job for name, job in wanted.items() if job.state == state}
        if number % 2:
            query["owner"] = "me"
            wanted = {name: job for name, job in wanted.items() if job.owner == key}
        total, ids, places = len(wanted), list(wanted), list(self.model.jobs)
        if number % 3 == 0:
            query["before"] = job_id
            ids = [i for i in ids if job_id in places and places.index(i) < places.index(job_id)]
        elif number % 3 == 1:
            query["offset"] = variant
            ids = ids[: max(0, len(ids) - variant)]
        answer = self.call("GET", "/v1/jobs", key, mode, params=query)
        refusal = self.model.refuse_access(key, "", needed=False)
        if refusal is None and "owner" in query and not key:
            refusal = (401, "AUTH_MISSING_KEY")
        if refusal is None and query.get("before") == UNKNOWN:
            refusal = (400, "VALIDATION_FAILED")
        if self.check(answer, refusal):
            shown = answer.json()
            assert [job["job_id"] for job in shown] == ids[::-1][: number % 7]
            assert answer.headers["X-Total-Count"] == str(total)
            for job in shown:
                self._compare(job, key, mode)

    def _compare(self, shown: dict[str, Any], key: str, mode: str) -> None:
        job = self.model.jobs[shown["job_id"]]
        expected = self.model.view(job)
        assert {n: shown[n] for n in (*expected, "model")} == expected | {"model": job.order.model}
        assert ("texts_purged_at" in shown) == job.purged
        readable = self.model.may_read(key, mode, job) and not job.purged
        assert shown.get("prompt") == (job.order.prompt if readable else None)
        assert ("params" in shown) == readable
        assert shown.get("result") == (job.result if readable else None)
        self.seen.add("purged" if job.purged else job.state)

    def _key(self, key: str, mode: str, *_: Any) -> None:
        refusal = self.model.refuse_access(key, ROLES.get(key, ""), needed=True)
        answer = self.call("GET", "/v1/key", key, mode)
        if self.check(answer, refusal):
            shown = answer.json()
            jobs, tokens = self.model.usage(key)
            assert shown["role"] == ROLES[key]
            assert shown["today"] == {"jobs": jobs, "tokens": tokens}
            assert shown["pending_jobs"] == self.model.count("pending", key)

    # --- miners ---

    def _register(self, miner: str, key: str, mode: str) -> None:
        body = {"miner_id": miner, "capabilities": CAPABILITIES[miner]}
        answer = self.call("POST", "/v1/miners/register", key, mode, json=body)
        self.check(answer, self.model.register(key, mode, miner), 201)

    def _drain(self, miner: str, key: str, mode: str) -> None:
        answer = self.call("POST", f"/v1/miners/{miner}/drain", key, mode)
        if self.check(answer, self.model.drain(key, mode, miner)):
            assert answer.json()["draining"] is True

    def _deregister(self, miner: str, key: str, mode: str) -> None:
        answer = self.call("DELETE", f"/v1/miners/{miner}", key, mode)
        self.check(answer, self.model.deregister(key, mode, miner), 204)

    def _miners(self, key: str, mode: str, *_: Any) -> None:
        answer = self.call("GET", "/v1/miners", key, mode)
        if not self.check(answer, self.model.refuse_access(key, "", needed=False)):
            return
        jobs = self.model.jobs.values()
        assert [(m["miner_id"], m["draining"], m["running_jobs"]) for m in answer.json()] == [
            (name, miner.draining, sum(job.is_held_by(name) for job in jobs))
            for name, miner in sorted(self.model.miners.items())
        ]
        assert answer.headers["X-Total-Count"] == str(len(self.model.miners))

    def _available(self, miner: str, key: str, mode: str) -> None:
        query = {"miner_id": miner}
        answer = self.call("GET", "/v1/jobs/available", key, mode, params=query)
        if self.check(answer, self.model.refuse_miner(key, miner, mode)):
            expected = self.model.find_available(miner)
            assert (answer.json() or {}).get("job_id") == expected

    def _post(self, job_id: str, action: str, key: str, mode: str, **body: Any):
        return self.call("POST", f"/v1/jobs/{job_id}/{action}", key, mode, json=body)

    def _claim(self, job_id: str, miner: str, key: str, mode: str, variant: int) -> None:
        heartbeat = variant % 2 == 1
        answer = self._post(job_id, "claim", key, mode, miner_id=miner, heartbeat=heartbeat)
        refusal = self.model.claim(key, mode, job_id, miner, heartbeat=heartbeat)
        if self.check(answer, refusal):
            job, shown = self.model.jobs[job_id], answer.json()
            assert (shown["attempt"], shown["prompt"]) == (job.attempt, job.order.prompt)
            assert shown["lease"]["expires_in_ms"] == max(job.lease_ms - self.model.now_ms, 0)

    def _heartbeat(self, job_id: str, miner: str, key: str, mode: str, _variant: int) -> None:
        answer = self._post(job_id, "heartbeat", key, mode, miner_id=miner)
        self.check(answer, self.model.heartbeat(key, mode, job_id, miner))

    def _release(self, job_id: str, miner: str, key: str, mode: str, _variant: int) -> None:
        answer = self._post(job_id, "release", key, mode, miner_id=miner)
        self.check(answer, self.model.give_up(key, mode, job_id, miner, retryable=True))

    def _fail(self, job_id: str, miner: str, key: str, mode: str, _variant: int) -> None:
        answer = self._post(job_id, "fail", key, mode, miner_id=miner, reason="r")
        self.check(answer, self.model.give_up(key, mode, job_id, miner, retryable=True))

    def _end(self, job_id: str, miner: str, key: str, mode: str, _variant: int) -> None:
        answer = self._post(job_id, "fail", key, mode, miner_id=miner, retryable=False)
        self.check(answer, self.model.give_up(key, mode, job_id, miner, retryable=False))

    def _complete(self, job_id: str, miner: str, key: str, mode: str, variant: int) -> None:
        result = f"result {variant // 3}"
        answer = self._post(job_id, "complete", key, mode, miner_id=miner, result=result)
        if self.check(answer, self.model.complete(key, mode, job_id, miner, result)):
            job, receipt_id = self.model.jobs[job_id], answer.json()["receipt_id"]
            assert job.receipt in {None, receipt_id}
            job.receipt = receipt_id

    # --- the world ---

    def _sweep(self, later_ms: int) -> None:
        self.node.now_ms += later_ms
        self.model.now_ms = self.node.now_ms
        self.clients["dev"].portal.call(self.node.coordinator.sweep)
        self.model.sweep()

    def _restart(self) -> None:
        self.stack.close()
        self.node.restart()
        self.is_sealing = False
        self._connect()

    def _seal(self) -> None:
        if not self.is_sealing:
            self.node.start_sealing()
            self.is_sealing = True
        self.node.wait_sealed()

    @invariant()
    def every_job_is_where_the_model_has_it(self) -> None:
        answer = self.call("GET", "/v1/jobs?limit=100", "admin", "strict")
        shown = answer.json()
        assert [job["job_id"] for job in shown] == list(self.model.jobs)[::-1][:100]
        for job in shown:
            self._compare(job, "admin", "strict")

    def teardown(self) -> None:
        try:
            self._restart()
            self._seal()
            receipts: list[str] = []
            before = None
            while page := self.node.views.receipts(ReceiptFilter(), limit=100, before=before):
                receipts += [view.payload.receipt_id for view in page]
                before = page[-1].transaction.cursor
            completed = [job for job in self.model.jobs.values() if job.state == "completed"]
            assert sorted(receipts) == sorted(str(job.receipt) for job in completed)
            assert self.node.verify() == len(completed)
        finally:
            self.stack.close()
            self.node.close()
            self.directory.cleanup()


RestFace.TestCase.settings = settings(max_examples=10, stateful_step_count=40)
TestRestFace = RestFace.TestCase


class SharedRestFace(RestFace):
    """The same over a market in PostgreSQL."""

    def open_store(self):
        self.schema = contextlib.ExitStack()
        url = self.schema.enter_context(shared_server().market())
        return lambda _path, genesis_hash: open_shared_market(url, genesis_hash)

    def teardown(self) -> None:
        try:
            super().teardown()
        finally:
            self.schema.close()


SharedRestFace.TestCase.settings = settings(max_examples=3, stateful_step_count=30)
TestSharedRestFace = SharedRestFace.TestCase

STATES = {"pending", "running", "completed", "failed", "cancelled", "purged", "replayed"}
CODES = {
    *("AUTH_MISSING_KEY", "AUTH_INVALID_KEY", "AUTH_INSUFFICIENT_SCOPE", "JOB_NOT_FOUND"),
    *("JOB_ALREADY_CLAIMED", "JOB_ALREADY_COMPLETED", "JOB_ALREADY_CANCELLED", "JOB_LEASE_LOST"),
    *("JOB_RESULT_CONFLICT", "MINER_NOT_FOUND", "MINER_ALREADY_REGISTERED", "MINER_DRAINING"),
    *("IDEMPOTENCY_MISMATCH", "RATE_LIMIT_EXCEEDED", "QUOTA_EXCEEDED", "VALIDATION_FAILED"),
}


def test_long_lives_of_a_node_see_every_state_and_refusal():
    """Hypothesis finds short histories; third attempts, quotas and purges need long ones."""
    seen: set[Any] = set()
    attempts = 0
    for seed in range(3):
        rng = random.Random(seed)
        face = RestFace()
        face.open()
        try:
            for _ in range(LONG_LIFE):
                face.step(
                    action=rng.choice(ACTIONS),
                    number=rng.randrange(1000),
                    key=rng.choice([*[RIGHT] * 12, *ROLES, "", "revoked"]),
                    miner=rng.choice([*[RIGHT] * 6, *CAPABILITIES]),
                    mode=rng.choice(MODES),
                    variant=rng.randrange(6),
                    later_ms=rng.choice(STEPS_MS),
                )
                face.every_job_is_where_the_model_has_it()
            seen |= face.seen
            attempts = max(attempts, *(job.attempt for job in face.model.jobs.values()))
        finally:
            face.teardown()
    assert seen >= CODES | STATES
    assert attempts == MAX_ATTEMPTS
