"""The coordinator over real stores and a clock that stands still unless a test moves it."""

import asyncio
import threading
from dataclasses import replace

import pytest
from msgspec import structs

from ledger.errors import MarketError
from ledger.jobs import (
    MAX_ATTEMPTS,
    Prices,
    Report,
)
from node.coordinator import MarketSettings
from tests.builders import build_key
from tests.market_node import (
    ADMIN,
    CLIENT,
    MINER,
    ORDER,
    SETTINGS,
    refused,
    sign_report,
    two_miners,
)

LEASE_MS = SETTINGS.lease_ms
RUN_MS = SETTINGS.execution_timeout_ms
QUEUE_MS = SETTINGS.queue_timeout_ms
TIMEOUT_S = 30


@pytest.fixture
def node(tmp_path, open_store):
    with two_miners(tmp_path, open_store) as node:
        yield node


def sweep_at(node, later_ms: int) -> int:
    node.now_ms += later_ms
    return node.do(node.coordinator.sweep())


# --- leases -----------------------------------------------------------------------------------


def test_a_lease_without_heartbeats_runs_out_and_the_job_is_queued_again(node):
    job = node.submit()
    claim = node.claim(job)
    assert (claim.lease.expires_in_ms, claim.lease.run_ends_in_ms) == (LEASE_MS, RUN_MS)
    assert claim.lease.heartbeat_interval_ms == SETTINGS.heartbeat_interval_ms
    assert sweep_at(node, LEASE_MS - 1) == 0
    assert node.read(job).state == "running"
    assert sweep_at(node, 1) == 1
    again = node.read(job)
    assert (again.state, again.status_reason, again.excluded_miner) == ("pending", "requeued", "m1")
    assert node.do(node.coordinator.available(MINER, "m2", 0)).id == job.id


def test_heartbeats_carry_a_job_as_far_as_it_may_run_and_no_further(node):
    job = node.submit()
    node.claim(job)
    for _ in range(RUN_MS // LEASE_MS - 1):
        assert sweep_at(node, LEASE_MS - 1) == 0
        lease = node.do(node.coordinator.heartbeat(MINER, job.job_id, "m1"))
        assert lease.expires_in_ms == LEASE_MS
    node.now_ms = node.read(job).started_at_ms + RUN_MS - 1
    assert node.do(node.coordinator.heartbeat(MINER, job.job_id, "m1")).expires_in_ms == 1
    assert sweep_at(node, 1) == 1
    ended = node.read(job)
    assert (ended.state, ended.status_reason) == ("failed", "execution_timeout")
    assert ended.completed_at_ms == node.now_ms
    with refused("JOB_ALREADY_COMPLETED"):
        node.complete(job)


def test_a_miner_without_heartbeats_gets_all_the_time_that_a_job_may_take(node):
    job = node.submit()
    lease = node.claim(job, heartbeat=False).lease
    assert (lease.expires_in_ms, lease.heartbeat_interval_ms) == (RUN_MS, 0)
    assert node.do(node.coordinator.heartbeat(MINER, job.job_id, "m1")).expires_in_ms == RUN_MS
    node.now_ms += 1_000
    assert (
        node.do(node.coordinator.heartbeat(MINER, job.job_id, "m1")).expires_in_ms == RUN_MS - 1_000
    )
    assert sweep_at(node, RUN_MS - 1_001) == 0
    assert sweep_at(node, 1) == 1
    assert node.read(job).state == "pending"


def test_the_third_lost_lease_fails_the_job(node):
    job = node.submit()
    for attempt in range(1, MAX_ATTEMPTS + 1):
        assert node.claim(job).lease.attempt == attempt
        sweep_at(node, LEASE_MS)
    ended = node.read(job)
    assert (ended.state, ended.status_reason, ended.attempt) == ("failed", "max_attempts", 3)
    with refused("JOB_ALREADY_COMPLETED"):
        node.complete(job)


@pytest.mark.parametrize("how", ["release", "fail"])
def test_however_the_third_attempt_ends_without_a_result_it_is_the_last(node, how):
    job = node.submit()
    for attempt in range(1, MAX_ATTEMPTS + 1):
        assert node.read(job).state == "pending"
        assert node.claim(job).lease.attempt == attempt
        if how == "release":
            ended = node.do(node.coordinator.release(MINER, job.job_id, "m1"))
        else:
            call = node.coordinator.fail(MINER, job.job_id, "m1", reason="oom", retryable=True)
            ended = node.do(call)
    assert (ended.state, ended.status_reason) == ("failed", "max_attempts")
    assert ended.error == ("oom" if how == "fail" else None)


def test_a_job_that_waits_too_long_fails(node):
    job = node.submit()
    assert sweep_at(node, QUEUE_MS) == 0
    assert sweep_at(node, 1) == 1
    ended = node.read(job)
    assert (ended.state, ended.status_reason) == ("failed", "queue_timeout")


def test_leases_survive_a_restart(node):
    job = node.submit()
    node.claim(job)
    node.restart()
    assert sweep_at(node, LEASE_MS - 1) == 0
    assert node.do(node.coordinator.heartbeat(MINER, job.job_id, "m1")).expires_in_ms == LEASE_MS
    node.restart()
    assert sweep_at(node, LEASE_MS) == 1


def test_a_sweep_ends_everything_that_is_over_and_nothing_else(node):
    settings = replace(SETTINGS, max_pending_per_key=100)
    node._settings = settings
    node.restart()
    running = [node.submit() for _ in range(3)]
    for job in running:
        node.claim(job)
    node.now_ms += LEASE_MS // 2
    fresh = node.submit()
    node.claim(fresh)
    assert sweep_at(node, LEASE_MS // 2) == 3
    assert [node.read(job).state for job in (*running, fresh)] == [*["pending"] * 3, "running"]
    assert sweep_at(node, 0) == 0


# --- late and double deliveries ---------------------------------------------------------------


def test_a_late_result_is_taken_as_long_as_nobody_else_has_the_job(node):
    job = node.submit()
    claim = node.claim(job)
    sweep_at(node, LEASE_MS)
    receipt = node.complete(job)
    assert receipt.payload.attempt == claim.lease.attempt
    assert receipt.payload.started_at_ms == claim.job.started_at_ms
    done = node.read(job)
    assert (done.state, done.miner_id, done.receipt_id) == (
        "completed",
        "m1",
        receipt.payload.receipt_id,
    )


def test_a_late_result_is_paid_for_no_longer_than_a_job_may_run(node):
    """Else a miner gives a job up at once, and bills for the time that nobody ran it."""
    job = node.submit()
    node.claim(job, heartbeat=False)
    node.do(node.coordinator.release(MINER, job.job_id, "m1"))
    node.now_ms += QUEUE_MS // 2
    with refused("VALIDATION_FAILED"):
        node.complete(job, unit_type="gpu_seconds", units_micros=RUN_MS * 1000 + 1)
    receipt = node.complete(job, unit_type="gpu_seconds").payload
    assert receipt.completed_at_ms - receipt.started_at_ms == QUEUE_MS // 2 > RUN_MS
    assert receipt.units_micros == RUN_MS * 1000


def test_a_late_result_is_refused_once_another_miner_has_the_job(node):
    job = node.submit()
    node.claim(job)
    sweep_at(node, LEASE_MS)
    node.claim(job, "m2")
    with refused("JOB_LEASE_LOST"):
        node.complete(job, "m1")
    assert node.complete(job, "m2").payload.attempt == 2


def test_a_late_result_of_the_lost_attempt_is_refused_once_its_miner_has_a_new_one(node):
    """A signed receipt names its attempt and start: the first one's is no receipt of the second."""
    key = build_key("miner")
    node.register("m1", key=key)
    job = node.submit()
    first = node.claim(job)
    sweep_at(node, LEASE_MS)
    second = node.claim(job)
    stale = sign_report(first, key, now_ms=node.now_ms, result="r")
    with refused("RECEIPT_MISMATCH"):
        node.do(node.coordinator.complete(MINER, job.job_id, stale))
    report = sign_report(second, key, now_ms=node.now_ms, result="r")
    assert node.do(node.coordinator.complete(MINER, job.job_id, report)).payload.attempt == 2


def test_a_result_that_nobody_claimed_is_refused(node):
    job = node.submit()
    with refused("JOB_LEASE_LOST"):
        node.complete(job)
    node.claim(job)
    with refused("JOB_LEASE_LOST"):
        node.complete(job, "m2")


def test_a_lease_that_runs_out_while_the_receipt_is_signed_does_no_harm(node):
    """The sweep may come between reading the job and storing its result."""
    job = node.submit()
    node.claim(job)
    issue = node.coordinator._issuer.issue

    def sweep_then_issue(job, report, *, now_ms):
        node.now_ms += LEASE_MS
        swept = node.store.write(lambda c: node.coordinator._try_again(c, node.read(job)))
        swept.result()
        return issue(job, report, now_ms=now_ms)

    node.coordinator._issuer.issue = sweep_then_issue
    receipt = node.complete(job)
    assert node.read(job).receipt_id == receipt.payload.receipt_id


@pytest.mark.parametrize(
    ("meanwhile", "code"),
    [
        (lambda node, job: node.coordinator.cancel(CLIENT, job.job_id), "JOB_ALREADY_CANCELLED"),
        (
            lambda node, job: node.coordinator.fail(
                MINER, job.job_id, "m1", reason="", retryable=False
            ),
            "JOB_ALREADY_COMPLETED",
        ),
    ],
)
def test_a_result_that_comes_just_too_late_is_told_why(node, meanwhile, code):
    job = node.submit()
    node.claim(job)

    released = threading.Event()

    async def both():
        node.store.write(lambda _: released.wait(TIMEOUT_S))
        report = Report(miner_id="m1", result="r")
        first = asyncio.create_task(meanwhile(node, job))
        second = asyncio.create_task(node.coordinator.complete(MINER, job.job_id, report))
        await asyncio.sleep(0)  # both have read the job as running, and wait for the writer
        released.set()
        return await asyncio.gather(first, second, return_exceptions=True)

    _, error = node.do(both())
    assert error.code == code
    assert node.pending_receipts == []


def test_the_same_result_again_gives_the_same_receipt_for_ever(node):
    job = node.submit()
    node.claim(job)
    first = node.complete(job)
    node.now_ms += 5_000
    assert node.complete(job) == first
    node.seal()
    assert node.complete(job).payload == first.payload
    node.restart()
    assert node.complete(job).payload == first.payload
    assert node.pending_receipts == []
    with refused("JOB_RESULT_CONFLICT"):
        node.complete(job, result="another")
    with refused("JOB_ALREADY_COMPLETED"):
        node.complete(job, "m2")


def test_results_that_arrive_together_give_one_receipt(node):
    job = node.submit()
    node.claim(job)

    async def deliver():
        report = Report(miner_id="m1", result="r")
        calls = (node.coordinator.complete(MINER, job.job_id, report) for _ in range(8))
        return await asyncio.gather(*calls)

    receipts = node.do(deliver())
    assert len({receipt.transaction.id for receipt in receipts}) == 1
    assert node.pending_receipts == [receipts[0].payload.receipt_id]


def test_different_results_that_arrive_together_give_one_receipt(node):
    job = node.submit()
    node.claim(job)

    async def deliver():
        calls = (
            node.coordinator.complete(MINER, job.job_id, Report(miner_id="m1", result=str(i)))
            for i in range(8)
        )
        return await asyncio.gather(*calls, return_exceptions=True)

    answers = node.do(deliver())
    refusals = [answer for answer in answers if isinstance(answer, MarketError)]
    assert [refusal.code for refusal in refusals] == ["JOB_RESULT_CONFLICT"] * 7
    assert len(node.pending_receipts) == 1


def test_only_one_of_many_miners_that_claim_together_gets_the_job(node):
    for i in range(8):
        node.register(f"racer-{i}")
    job = node.submit()

    async def race():
        calls = (
            node.coordinator.claim(MINER, job.job_id, f"racer-{i}", heartbeat=True)
            for i in range(8)
        )
        return await asyncio.gather(*calls, return_exceptions=True)

    answers = node.do(race())
    losers = [answer for answer in answers if isinstance(answer, MarketError)]
    assert [loser.code for loser in losers] == ["JOB_ALREADY_CLAIMED"] * 7
    assert node.read(job).attempt == 1


def test_the_sealer_is_woken_though_nobody_waits_for_the_answer_any_more(node):
    """A miner that hangs up in the middle must not leave its receipt pending until the next."""
    job = node.submit()
    node.claim(job)
    started = [threading.Event() for _ in range(2)]
    released = [threading.Event() for _ in range(2)]

    def hold(i):
        started[i].set()
        assert released[i].wait(TIMEOUT_S)

    async def hang_up():
        node.store.write(lambda _: hold(0))
        assert started[0].wait(TIMEOUT_S)
        node.store.write(lambda _: hold(1))
        report = Report(miner_id="m1", result="r")
        call = asyncio.create_task(node.coordinator.complete(MINER, job.job_id, report))
        await asyncio.sleep(0)  # now its write waits behind the second one
        released[0].set()
        assert started[1].wait(TIMEOUT_S)  # and is in the same batch: it will happen
        call.cancel()
        released[1].set()
        await asyncio.gather(call, return_exceptions=True)
        assert call.cancelled()
        await asyncio.wrap_future(node.store.write(lambda _: None))

    node.do(hang_up())
    assert node.read(job).state == "completed"
    assert node.kicks == 1


# --- claims, cancels, failures ----------------------------------------------------------------


def test_claiming_again_changes_nothing(node):
    job = node.submit()
    first = node.claim(job)
    node.now_ms += 1_000
    again = node.claim(job)
    assert again.job == first.job
    assert again.terms == first.terms
    assert again.lease.expires_in_ms == first.lease.expires_in_ms - 1_000
    with refused("JOB_ALREADY_CLAIMED"):
        node.claim(job, "m2")


def test_the_terms_of_a_claim_are_those_of_the_receipt(node):
    job = node.submit(seed=42)
    claim = node.claim(job)
    payload = node.complete(job).payload
    assert {field: getattr(payload, field) for field in claim.terms if field != "type"} == {
        field: value for field, value in claim.terms.items() if field != "type"
    }
    assert payload.seed == 42


def test_a_reason_ends_the_job_for_good(node):
    job = node.submit()
    node.claim(job)
    call = node.coordinator.fail(MINER, job.job_id, "m1", reason="no such model", retryable=False)
    ended = node.do(call)
    assert (ended.state, ended.status_reason, ended.error) == (
        "failed",
        "miner_error",
        "no such model",
    )
    assert ended.receipt_id is None


@pytest.mark.parametrize("action", ["release", "fail", "heartbeat"])
def test_only_the_holder_acts_on_a_running_job(node, action):
    def act(miner_id):
        options = {"reason": "", "retryable": True} if action == "fail" else {}
        return node.do(getattr(node.coordinator, action)(MINER, job.job_id, miner_id, **options))

    job = node.submit()
    with refused("JOB_LEASE_LOST"):
        act("m1")
    node.claim(job)
    with refused("JOB_LEASE_LOST"):
        act("m2")
    with refused("MINER_NOT_FOUND"):
        act("m3")
    act("m1")


def test_cancelling_is_for_the_owner_and_final(node):
    job = node.submit()
    node.claim(job)
    with refused("AUTH_INSUFFICIENT_SCOPE"):
        node.do(node.coordinator.cancel(structs.replace(CLIENT, key="other"), job.job_id))
    ended = node.do(node.coordinator.cancel(CLIENT, job.job_id))
    assert (ended.state, ended.status_reason) == ("cancelled", "cancelled_by_client")
    node.now_ms += 5
    assert node.do(node.coordinator.cancel(CLIENT, job.job_id)) == ended
    assert sweep_at(node, QUEUE_MS * 2) == 0
    other = node.submit()
    assert node.do(node.coordinator.cancel(ADMIN, other.job_id)).state == "cancelled"


def test_a_done_job_cannot_be_cancelled(node):
    job = node.submit()
    node.claim(job)
    node.complete(job)
    with refused("JOB_ALREADY_COMPLETED"):
        node.do(node.coordinator.cancel(CLIENT, job.job_id))


# --- bounds -----------------------------------------------------------------------------------


def test_a_key_has_a_bounded_number_of_pending_jobs(node):
    jobs = [node.submit() for _ in range(SETTINGS.max_pending_per_key)]
    with refused("RATE_LIMIT_EXCEEDED"):
        node.submit()
    node.submit(structs.replace(CLIENT, key="other"))
    node.claim(jobs[0])
    node.submit()
    with refused("RATE_LIMIT_EXCEEDED"):
        node.submit()
    node.do(node.coordinator.cancel(CLIENT, jobs[1].job_id))
    node.submit()


def test_the_bound_holds_for_jobs_that_arrive_together(node):
    async def submit():
        calls = (node.coordinator.submit(CLIENT, ORDER) for _ in range(20))
        return await asyncio.gather(*calls, return_exceptions=True)

    answers = node.do(submit())
    refusals = [answer for answer in answers if isinstance(answer, MarketError)]
    assert len(refusals) == 20 - SETTINGS.max_pending_per_key


def test_prices_are_those_of_the_day_of_submission(node):
    job = node.submit()
    node._settings = MarketSettings(prices=Prices(tokens=999, gpu_seconds=999))
    node.restart()
    node.claim(job)
    receipt = node.complete(job, prompt_tokens=5, completion_tokens=5).payload
    assert receipt.price_micros == 10 * SETTINGS.prices.tokens
