"""The coordinator over real stores and a clock that stands still unless a test moves it."""

import asyncio
import threading
from dataclasses import replace

import pytest
from msgspec import structs

from ledger.errors import MarketError
from ledger.jobs import (
    MAX_ATTEMPTS,
    Job,
    Prices,
    Registration,
    Report,
    build_registration_message,
)
from ledger.views.reader import ACTIVE_MINER_MS
from node.coordinator import MarketSettings
from node.market.leases import MAX_BEATS_PER_JOB
from node.market.miners import MAX_POLLS_PER_MINER, TOUCH_INTERVAL_MS
from tests.builders import build_key
from tests.market_node import ADMIN, CLIENT, MINER, ORDER, SETTINGS, MarketNode, sign_report

LEASE_MS = SETTINGS.lease_ms
RUN_MS = SETTINGS.execution_timeout_ms
QUEUE_MS = SETTINGS.queue_timeout_ms
TIMEOUT_S = 30


@pytest.fixture
def node(tmp_path, open_store):
    node = MarketNode(tmp_path, open_store=open_store)
    node.register()
    node.register("m2")
    yield node
    node.close()


def refused(code: str):
    """Expect the market to refuse with this code."""
    return pytest.raises(MarketError, check=lambda error: error.code == code)


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


# --- miners -----------------------------------------------------------------------------------


def test_a_miner_answers_to_the_key_that_registered_it(node):
    other = structs.replace(MINER, key="other")
    with refused("MINER_ALREADY_REGISTERED"):
        node.register("m1", caller=other)
    with refused("AUTH_INSUFFICIENT_SCOPE"):
        node.do(node.coordinator.available(other, "m1", 0))
    with refused("AUTH_INSUFFICIENT_SCOPE"):
        node.do(node.coordinator.miner_heartbeat(other, "m1"))
    node.do(node.coordinator.miner_heartbeat(ADMIN, "m1"))


def test_a_miner_name_that_looks_like_an_account_is_refused(node):
    with refused("VALIDATION_FAILED"):
        node.register("ait1" + "q" * 20)


def test_a_registration_is_no_good_with_a_signature_for_another_name(node):
    key = build_key("miner")
    message = build_registration_message(
        genesis_hash=node.chain.tip().genesis_hash, miner_id="m9", account=key.account
    )
    for proof in (None, "", "x", key.sign(message)):
        registration = Registration(
            miner_id="m1", capabilities=("*",), account=key.account, proof=proof
        )
        with refused("VALIDATION_FAILED"):
            node.do(node.coordinator.register_miner(MINER, registration))
    with refused("MINER_NOT_FOUND"):
        node.do(node.coordinator.miner_heartbeat(MINER, "m9"))


def test_a_signed_registration_binds_the_receipts(node):
    key = build_key("miner")
    node.register("m1", key=key)
    job = node.submit()
    claim = node.claim(job)
    with refused("RECEIPT_INVALID_SIGNATURE"):
        node.complete(job)
    report = sign_report(claim, key, now_ms=node.now_ms + 10, result="r")
    with refused("RECEIPT_MISMATCH"):
        node.do(
            node.coordinator.complete(MINER, job.job_id, structs.replace(report, result="other"))
        )
    receipt = node.do(node.coordinator.complete(MINER, job.job_id, report))
    assert receipt.payload.provider == key.account
    assert receipt.provider_signature == report.signature


def test_a_key_has_a_bounded_number_of_miners_and_those_that_are_gone_make_room(node, monkeypatch):
    monkeypatch.setattr("node.market.miners.MAX_MINERS_PER_KEY", 2)
    lost, held = node.submit(), node.submit()
    node.claim(lost)
    node.do(node.coordinator.release(MINER, lost.job_id, "m1"))
    with refused("MINER_LIMIT_REACHED"):
        node.register("m3")
    node.register("m2")  # again is no new one
    node.register("m3", caller=ADMIN)
    node.claim(held, "m2")
    node.now_ms += ACTIVE_MINER_MS + 1
    node.register("m4")
    with refused("MINER_NOT_FOUND"):
        node.coordinator.miner("m1")
    assert node.read(lost).excluded_miner is None, "another m1 has lost nothing"
    with refused("MINER_LIMIT_REACHED"):  # m2 runs a job, m4 is active
        node.register("m5")


def test_few_of_many_kinds_of_miners_are_looked_at_for_one_job(node, monkeypatch):
    monkeypatch.setattr("ledger.store.registry.MAX_CAPABILITY_LISTS", 3)
    for number in range(9):
        node.register(f"x{number}", (f"kind-{number}", "llama3.2"))
    assert node.coordinator.queue(node.submit()).eligible_miners <= 4  # m1 and m2 are of one kind


def test_polling_keeps_a_miner_alive_without_a_write_for_every_poll(node):
    def seen() -> int:
        return node.do(node.coordinator.miner_heartbeat(MINER, "m2")).registered_at_ms

    start = node.now_ms
    for later in (TOUCH_INTERVAL_MS - 1, TOUCH_INTERVAL_MS):
        node.now_ms = start + later
        node.do(node.coordinator.available(MINER, "m1", 0))
        sql = "SELECT last_seen_at_ms FROM miners WHERE miner_id = 'm1'"
        (last_ms,) = node.store.reader.execute(sql).fetchone()
        assert last_ms == (start if later < TOUCH_INTERVAL_MS else start + later)
    assert seen() == start


def test_the_queue_tells_position_and_who_could_serve(node):
    node.register("special", ("mistral",))
    jobs = [node.submit(model="mistral") for _ in range(2)]
    queue = node.coordinator.queue(jobs[1])
    assert (queue.position, queue.eligible_miners) == (2, 3)
    assert node.coordinator.queue(node.submit()).eligible_miners == 2
    node.now_ms += 10 * 60_000
    assert node.coordinator.queue(jobs[1]).eligible_miners == 0


# --- waiting for work -------------------------------------------------------------------------


def wait_for_job(node, action):
    """Poll for a job, then let `action` happen; returns what the poll is answered."""

    async def poll():
        node.coordinator.bind()
        call = asyncio.create_task(node.coordinator.available(MINER, "m1", 20_000))
        await asyncio.sleep(0)
        await action()
        async with asyncio.timeout(10):
            return await call

    return node.do(poll())


def test_a_waiting_miner_hears_of_a_new_job_at_once(node):
    found = wait_for_job(node, lambda: node.coordinator.submit(CLIENT, ORDER))
    assert found.state == "pending"


@pytest.mark.parametrize("how", ["release", "sweep"])
def test_a_waiting_miner_hears_of_a_job_that_comes_back(node, how):
    job = node.submit()
    node.claim(job, "m2")

    async def come_back():
        if how == "release":
            await node.coordinator.release(MINER, job.job_id, "m2")
        else:
            node.now_ms += LEASE_MS
            await node.coordinator.sweep()

    assert wait_for_job(node, come_back).id == job.id


def test_nobody_waits_for_work_at_the_end(node):
    async def close():
        node.coordinator.close()

    assert wait_for_job(node, close) is None
    assert node.do(node.coordinator.available(MINER, "m1", 20_000)) is None


def test_a_miner_that_polls_too_often_at_once_is_answered_at_once(node):
    async def poll():
        node.coordinator.bind()
        polls = [
            asyncio.create_task(node.coordinator.available(MINER, "m1", 20_000))
            for _ in range(MAX_POLLS_PER_MINER)
        ]
        await asyncio.sleep(0)
        async with asyncio.timeout(10):  # half as long as it asks to wait
            one_more = await node.coordinator.available(MINER, "m1", 20_000)
        node.coordinator.close()
        return one_more, await asyncio.gather(*polls)

    assert node.do(poll()) == (None, [None] * MAX_POLLS_PER_MINER)
    assert not node.coordinator._polls


def test_a_poll_without_waiting_is_answered_at_once(node):
    assert node.do(node.coordinator.available(MINER, "m1", 0)) is None
    with refused("MINER_NOT_FOUND"):
        node.do(node.coordinator.available(MINER, "nobody", 0))


# --- news and text of running jobs ---------------------------------------------------------------


def tell(node, job, text: str, *, offset: int = 0, miner_id: str = "m1") -> int:
    return node.do(node.coordinator.tell(MINER, job.job_id, miner_id, offset=offset, text=text))


def told(node, job) -> str:
    return node.coordinator.progress(job.job_id).text


def running(node) -> Job:
    async def bind():
        node.coordinator.bind()

    node.do(bind())
    node.register()
    job = node.submit()
    node.claim(job)
    return job


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_the_text_of_a_running_job_is_told_until_its_attempt_ends(node):
    job = running(node)
    assert tell(node, job, "Ray") == 3
    assert (told(node, job), node.read(job).result) == ("Ray", None)
    node.do(node.coordinator.release(MINER, job.job_id, "m1"))
    node.do(turns())
    assert told(node, job) == ""
    node.claim(job)
    assert tell(node, job, "leigh", offset=3) == 0, "a new attempt"
    node.complete(job, result="Rayleigh.")
    assert told(node, job) == "Rayleigh."
    with refused("JOB_ALREADY_COMPLETED"):
        tell(node, job, "more")
    assert not node.coordinator.feed._texts


@pytest.mark.parametrize("who", ["another client", "another miner"])
def test_who_may_not_end_a_job_does_not_end_its_text(node, who):
    job = running(node)
    node.register("m2")
    tell(node, job, "Ray")
    if who == "another client":
        with refused("AUTH_INSUFFICIENT_SCOPE"):
            node.do(node.coordinator.cancel(structs.replace(CLIENT, key="other"), job.job_id))
    else:
        with refused("JOB_LEASE_LOST"):
            node.do(node.coordinator.release(MINER, job.job_id, "m2"))
    node.do(turns())
    assert told(node, job) == "Ray"


def test_only_the_holder_tells_text(node):
    job = running(node)
    node.register("m2")
    with refused("JOB_LEASE_LOST"):
        tell(node, job, "Ray", miner_id="m2")


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("cancel", "JOB_ALREADY_CANCELLED"),
        ("release", "JOB_LEASE_LOST"),
        ("sweep", "JOB_LEASE_LOST"),
    ],
)
def test_a_heartbeat_that_waits_is_refused_as_soon_as_the_job_is_gone(node, end, code):
    job = running(node)

    async def both():
        beat = asyncio.create_task(
            node.coordinator.heartbeat(MINER, job.job_id, "m1", wait_ms=3_600_000)
        )
        await turns()
        await node.coordinator.tell(MINER, job.job_id, "m1", offset=0, text="not news")
        await turns()
        assert not beat.done()
        if end == "cancel":
            await node.coordinator.cancel(CLIENT, job.job_id)
        elif end == "release":
            await node.coordinator.release(MINER, job.job_id, "m1")
        else:
            node.now_ms += SETTINGS.lease_ms
            await node.coordinator.sweep()
        await beat

    with refused(code):
        node.do(both())
    assert (node.coordinator.feed.waiting, node.coordinator._beats) == (0, {})


def test_a_heartbeat_that_waits_renews_first_and_writes_nothing_for_a_new_lease(node):
    job = running(node)
    claimed_until = node.read(job).lease_expires_at_ms

    def beat() -> int:
        lease = node.do(node.coordinator.heartbeat(MINER, job.job_id, "m1", wait_ms=1))
        assert lease.expires_at_ms == node.read(job).lease_expires_at_ms
        return lease.expires_at_ms

    node.now_ms += SETTINGS.heartbeat_interval_ms // 4 - 1
    assert beat() == claimed_until
    node.now_ms += SETTINGS.heartbeat_interval_ms
    assert beat() == node.now_ms + SETTINGS.lease_ms


def test_heartbeats_of_one_job_that_wait_at_once_are_few(node):
    job = running(node)

    async def crowd():
        beats = [
            asyncio.create_task(
                node.coordinator.heartbeat(MINER, job.job_id, "m1", wait_ms=3_600_000)
            )
            for _ in range(MAX_BEATS_PER_JOB + 2)
        ]
        await turns()
        assert sum(beat.done() for beat in beats) == 2
        node.coordinator.close()
        await asyncio.gather(*beats)

    node.do(crowd())


def test_text_that_comes_while_the_job_ends_is_not_kept(node):
    job = running(node)

    async def both():
        ending = asyncio.create_task(node.coordinator.cancel(CLIENT, job.job_id))
        for n in range(50):
            try:
                await node.coordinator.tell(MINER, job.job_id, "m1", offset=n, text="x")
            except MarketError:
                break
            await asyncio.sleep(0)
        await ending
        await turns()

    node.do(both())
    assert not node.coordinator.feed._texts


def test_a_miners_attempts_are_counted_by_how_they_ended(node):
    def counts(miner_id: str) -> tuple[int, int]:
        standing = node.coordinator.miner(miner_id)
        return standing.completed, standing.lost

    done, late, failed, cancelled = (node.submit() for _ in range(4))
    for job in (done, late, failed, cancelled):
        node.claim(job)
    node.complete(done)
    assert counts("m1") == (1, 0)
    sweep_at(node, LEASE_MS)
    assert counts("m1") == (1, 3)
    for job in (failed, cancelled):
        node.claim(job, "m2")
    node.do(node.coordinator.fail(MINER, failed.job_id, "m2", reason="no", retryable=False))
    node.do(node.coordinator.cancel(CLIENT, cancelled.job_id))
    assert counts("m2") == (0, 1)
    # Delivered late, after all: the attempt was lost, and brought a result.
    node.complete(late)
    assert counts("m1") == (2, 3)
    assert counts("m2") == (0, 1)
