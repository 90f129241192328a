"""What the coordinator knows of miners: who they are, how they wait for work, what they tell."""

import asyncio

import pytest
from msgspec import structs

from ledger.errors import MarketError
from ledger.jobs import Job, Registration, build_registration_message
from ledger.views.reader import ACTIVE_MINER_MS
from node.market.leases import MAX_BEATS_PER_JOB
from node.market.miners import MAX_POLLS_PER_MINER, TOUCH_INTERVAL_MS
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
TIMEOUT_S = 30


@pytest.fixture
def node(tmp_path, open_store):
    with two_miners(tmp_path, open_store) as node:
        yield node


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
    node.now_ms += LEASE_MS
    node.do(node.coordinator.sweep())
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
