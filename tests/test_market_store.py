"""node.db: each transition states what it expects, so that of two that race only one wins."""

import contextlib
import sqlite3
from dataclasses import replace

import psycopg
import pytest

from ledger.block import hash_genesis
from ledger.errors import MarketError, StoreError
from ledger.jobs import Job, JobOrder, Miner, Prices, build_job_id
from ledger.store import jobs as job_store
from ledger.store import lists, mempool, queue, registry
from ledger.store.registry import ApiKey
from tests.builders import CREATED_MS, build_genesis, build_receipt, build_salt

GENESIS = build_genesis()
GENESIS_HASH = hash_genesis(GENESIS)
RECEIPT = build_receipt(GENESIS, 1)


def build_job(number: int, *, model: str = "llama3.2", owner: str = "key1") -> Job:
    return Job(
        id=build_job_id(now_ms=CREATED_MS + number, entropy=bytes(10)),
        state="pending",
        status_reason="queued",
        client="client-1",
        owner=owner,
        order=JobOrder(
            prompt=f"prompt {number}",
            model=model,
            max_tokens=10,
            temperature_micros=0,
            top_p_micros=1,
            seed=None if number % 2 else 5,
            stop=("a", "\n") if number % 3 else (),
        ),
        seed=number,
        prompt_salt=build_salt("p"),
        result_salt=build_salt("r"),
        prices=Prices(tokens=3, gpu_seconds=4),
        created_at_ms=CREATED_MS + number,
    )


def build_miner(miner_id: str = "m1", *capabilities: str) -> Miner:
    return Miner(
        miner_id=miner_id,
        account=None,
        capabilities=capabilities or ("*",),
        gpu_name="GPU",
        gpu_memory="8 GB",
        owner="key1",
        registered_at_ms=CREATED_MS,
        last_seen_at_ms=CREATED_MS,
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "node.db"


@pytest.fixture
def store(path, open_store):
    store = open_store(path, GENESIS_HASH)
    yield store
    store.close()


@pytest.fixture
def write(store):
    def write(function, *args, **options):
        return store.write(lambda c: function(c, *args, **options)).result()

    return write


@pytest.fixture
def submit(write, store):
    def submit(number: int = 1, **job) -> Job:
        made = build_job(number, **job)
        write(job_store.insert_job, made)
        return job_store.load_job(store.reader, made.id)

    return submit


@pytest.fixture
def claim(write, store):
    def claim(job: Job, miner_id: str = "m1", until_ms: int = 60_000) -> Job:
        write(
            job_store.claim_job,
            job,
            miner_id=miner_id,
            provider=miner_id,
            claimed_by="key",
            now_ms=CREATED_MS + 100,
            lease_expires_at_ms=until_ms,
            heartbeat=True,
        )
        return job_store.load_job(store.reader, job.id)

    return claim


# --- the file ---------------------------------------------------------------------------------


def test_the_market_of_another_network_is_refused(store, path, open_store):
    other = hash_genesis(build_genesis(network="other-net"))
    with pytest.raises(StoreError, match=r"use the data directory of this network|use another"):
        open_store(path, other)
    open_store(path, GENESIS_HASH).close()


def test_a_job_is_read_as_it_was_written(submit, store):
    for number in range(1, 7):
        assert submit(number) == build_job(number)
    assert lists.count_jobs(store.reader) == 6


def test_an_unknown_job_is_an_error_of_the_caller(store):
    for job_id in (bytes(16), b"", None):
        with pytest.raises(MarketError) as caught:
            job_store.load_job(store.reader, job_id)
        assert caught.value.code == "JOB_NOT_FOUND"


# --- transitions ------------------------------------------------------------------------------

TRANSITIONS = {
    "claim": lambda c, job: job_store.claim_job(
        c,
        job,
        miner_id="m9",
        provider="m9",
        claimed_by="",
        now_ms=1,
        lease_expires_at_ms=2,
        heartbeat=False,
    ),
    "renew": lambda c, job: job_store.renew_lease(c, job, lease_expires_at_ms=9),
    "requeue": lambda c, job: job_store.requeue_job(c, job, reason="requeued"),
    "fail": lambda c, job: job_store.end_job(
        c, job, state="failed", reason="miner_error", now_ms=5
    ),
    "cancel": lambda c, job: job_store.end_job(
        c, job, state="cancelled", reason="cancelled_by_client", now_ms=5
    ),
    "complete": lambda c, job: job_store.complete_job(
        c, job, miner_id="m1", claimed_by="key", result="r", transaction=RECEIPT, now_ms=5
    ),
}
ALLOWED = {
    "pending": {"claim", "fail", "cancel", "complete"},
    "running": {"renew", "requeue", "fail", "cancel", "complete"},
}
"""Completing a pending job is for the miner that lost it; `ledger.jobs` says who that is."""


@pytest.mark.parametrize("transition", TRANSITIONS)
@pytest.mark.parametrize("state", ALLOWED)
def test_a_job_moves_only_where_its_state_allows(submit, claim, store, write, transition, state):
    job = submit()
    if state == "running":
        job = claim(job)
    if transition in ALLOWED[state]:
        write(TRANSITIONS[transition], job)
        assert job_store.load_job(store.reader, job.id) != job
    else:
        with pytest.raises(MarketError):
            write(TRANSITIONS[transition], job)
        assert job_store.load_job(store.reader, job.id) == job


@pytest.mark.parametrize("second", TRANSITIONS)
@pytest.mark.parametrize("first", [name for name in TRANSITIONS if name != "renew"])
def test_whoever_saw_the_job_before_it_changed_comes_too_late(
    submit, claim, store, write, first, second
):
    """Both decided on the same state of the job; only the first of them may act on it."""
    job = submit() if first == "claim" else claim(submit())
    write(TRANSITIONS[first], job)
    changed = job_store.load_job(store.reader, job.id)
    if (first, second) in {("requeue", "claim")}:
        return  # a claim takes any pending job, whatever happened before
    with pytest.raises(MarketError, match="changed meanwhile"):
        write(TRANSITIONS[second], job)
    assert job_store.load_job(store.reader, job.id) == changed
    assert len(mempool.list_mempool(store.reader, limit=9)) == (first == "complete")


def test_an_attempt_that_is_over_moves_nothing_of_the_next_one(submit, claim, store, write):
    first = claim(submit())
    write(job_store.requeue_job, first, reason="requeued")
    second = claim(job_store.load_job(store.reader, first.id))
    assert (first.attempt, second.attempt) == (1, 2)
    for name in ("renew", "requeue", "fail", "cancel", "complete"):
        with pytest.raises(MarketError):
            write(TRANSITIONS[name], first)
    assert job_store.load_job(store.reader, first.id) == second


def test_completing_stores_result_and_receipt_or_neither(submit, claim, store, write):
    one, two = (claim(submit(number)) for number in (1, 2))
    write(TRANSITIONS["complete"], one)
    with pytest.raises((sqlite3.IntegrityError, psycopg.IntegrityError)):
        write(TRANSITIONS["complete"], two)  # with the receipt of job one
    assert job_store.load_job(store.reader, two.id) == two
    done = job_store.load_job(store.reader, one.id)
    assert (done.state, done.result, done.receipt_id) == (
        "completed",
        "r",
        RECEIPT.payload.receipt_id,
    )
    assert mempool.list_mempool(store.reader, limit=9) == [
        (1, bytes(RECEIPT.id), RECEIPT.payload.receipt_id, RECEIPT.envelope)
    ]
    write(mempool.remove_from_mempool, [bytes(RECEIPT.id)])
    assert mempool.list_mempool(store.reader, limit=9) == []


def test_a_requeued_job_remembers_who_lost_it_and_when_it_began(submit, claim, store, write):
    job = claim(submit())
    write(job_store.requeue_job, job, reason="requeued")
    again = job_store.load_job(store.reader, job.id)
    assert (again.state, again.miner_id, again.excluded_miner) == ("pending", None, "m1")
    assert (again.started_at_ms, again.attempt) == (job.started_at_ms, 1)
    assert again.lease_expires_at_ms is None


# --- finding ----------------------------------------------------------------------------------


def test_the_oldest_job_that_fits_is_found(submit, claim, store):
    jobs = [submit(i, model=model) for i, model in enumerate(("a", "B:latest", "c", "b"))]

    def find(*capabilities: str) -> Job | None:
        return queue.find_available(store.reader, build_miner("m1", *capabilities))

    assert find("*") == jobs[0]
    assert find("b") == jobs[1]
    assert find("c", "b") == jobs[1]
    assert find("gpu") == jobs[0]
    assert find("d") is None
    claim(jobs[1])
    assert find("b") == jobs[3]


def test_a_job_that_this_miner_lost_is_offered_to_it_last(submit, claim, store, write):
    jobs = [submit(i) for i in range(3)]
    write(job_store.requeue_job, claim(jobs[0]), reason="requeued")

    def find(miner_id: str) -> bytes | None:
        found = queue.find_available(store.reader, build_miner(miner_id))
        return found.id if found else None

    assert find("m2") == jobs[0].id
    assert find("m1") == jobs[1].id
    claim(jobs[1])
    claim(jobs[2])
    assert find("m1") == jobs[0].id


def test_jobs_are_listed_newest_first_by_owner_and_state(submit, claim, store):
    jobs = [submit(i, owner=f"key{i % 2}") for i in range(5)]
    claim(jobs[4])

    def listed(limit=9, **page) -> list[int]:
        found = lists.list_jobs(store.reader, lists.JobPage(limit=limit, **page))
        return [job.seed for job in found]

    assert listed() == [4, 3, 2, 1, 0]
    assert listed(limit=2) == [4, 3]
    assert listed(limit=2, offset=2) == [2, 1]
    assert listed(limit=0) == []
    assert listed(owner="key0") == [4, 2, 0]
    assert listed(state="pending") == [3, 2, 1, 0]
    assert listed(owner="key0", state="running") == [4]
    assert listed(owner="nobody") == []
    assert listed(before=jobs[3].id) == [2, 1, 0]
    assert listed(before=jobs[3].id, owner="key0", limit=1) == [2]
    assert listed(before=jobs[3].id, offset=1) == [1, 0]
    assert listed(after=jobs[0].id, limit=2) == [2, 1]
    assert listed(after=jobs[4].id) == []


def test_jobs_are_counted_by_owner_and_state(submit, claim, store):
    jobs = [submit(i, owner=f"key{i % 2}") for i in range(5)]
    claim(jobs[4])

    def count(**wanted) -> int:
        return lists.count_jobs(store.reader, **wanted)

    assert (count(), count(owner="key0"), count(owner="nobody")) == (5, 3, 0)
    assert (count(state="pending"), count(state="running"), count(state="failed")) == (4, 1, 0)
    assert (count(owner="key0", state="pending"), count(owner="key0", state="running")) == (2, 1)


def test_the_queue_counts_older_jobs_of_the_same_model_up_to_a_bound(
    submit, claim, store, monkeypatch
):
    jobs = [submit(i, model=model) for i, model in enumerate(("a", "b", "A:latest", "a", "a"))]
    assert [queue.count_ahead(store.reader, job) for job in jobs] == [0, 0, 1, 2, 3]
    claim(jobs[0])
    assert queue.count_ahead(store.reader, jobs[4]) == 2
    monkeypatch.setattr(queue, "MAX_QUEUE_POSITION", 1)
    assert queue.count_ahead(store.reader, jobs[4]) == 1


def test_leases_and_places_in_the_queue_end_at_their_time_and_not_before(submit, claim, store):
    one, two = claim(submit(1), until_ms=500), claim(submit(2), until_ms=600)
    three = submit(3)
    assert job_store.list_expired_leases(store.reader, 499) == []
    assert job_store.list_expired_leases(store.reader, 500) == [one]
    assert job_store.list_expired_leases(store.reader, 600) == [one, two]
    assert job_store.list_stale_jobs(store.reader, CREATED_MS + 3) == []
    assert job_store.list_stale_jobs(store.reader, CREATED_MS + 4) == [three]


def test_one_sweep_has_a_bound(submit, claim, store, monkeypatch):
    jobs = [claim(submit(i), until_ms=1) for i in range(4)]
    monkeypatch.setattr(job_store, "MAX_SWEPT_JOBS", 3)
    assert job_store.list_expired_leases(store.reader, 10) == jobs[:3]


def pages(**page):
    return lambda c: lists.list_jobs(c, lists.JobPage(limit=9, **page))


SEEN = build_job(1).id


@pytest.mark.parametrize(
    ("question", "steps"),
    [
        (
            lambda c: queue.find_available(c, build_miner()),
            ["q USING INDEX queues_turn", "jobs USING INDEX jobs_turns (owner=? AND model_key=?)"],
        ),
        (
            lambda c: queue.find_available(c, build_miner("m1", "a", "b")),
            [
                "q USING INDEX queues_model (model_key=?)",
                "jobs USING INDEX jobs_turns (owner=? AND model_key=?)",
            ],
        ),
        (
            lambda c: queue.count_ahead(c, build_job(1)),
            ["jobs USING INDEX jobs_turns (owner=? AND model_key=? AND seq<?)"],
        ),
        (
            lambda c: job_store.list_expired_leases(c, 5),
            ["jobs USING INDEX jobs_leases (lease_expires_at_ms<?)"],
        ),
        (
            lambda c: job_store.list_stale_jobs(c, CREATED_MS),
            ["jobs USING INDEX jobs_waiting (created_at_ms<?)"],
        ),
        (
            lambda c: job_store.list_held_jobs(c, "m1"),
            ["jobs USING INDEX jobs_miner (miner_id=?)"],
        ),
        (
            lambda c: lists.count_jobs(c, owner="key1", state="pending"),
            ["job_counts USING PRIMARY KEY (owner=? AND state=?)"],
        ),
        (pages(owner="key1"), ["jobs USING INDEX jobs_owner (owner=?)"]),
        (pages(state="failed"), ["jobs USING INDEX jobs_state (state=?)"]),
        (
            pages(owner="key1", state="failed"),
            ["jobs USING INDEX jobs_owner_state (owner=? AND state=?)"],
        ),
        (pages(before=SEEN), ["jobs USING INTEGER PRIMARY KEY (rowid<?)"]),
        (pages(after=SEEN), ["jobs USING INTEGER PRIMARY KEY (rowid>?)"]),
        (
            pages(owner="key1", before=SEEN),
            ["jobs USING INDEX jobs_owner (owner=? AND seq<?)"],
        ),
        (
            pages(owner="key1", state="failed", after=SEEN),
            ["jobs USING INDEX jobs_owner_state (owner=? AND state=? AND seq>?)"],
        ),
    ],
)
@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
def test_no_question_of_every_second_reads_all_jobs_that_ever_were(store, submit, question, steps):
    """What SQLite plans to walk through: an index that holds what is asked, in its order."""
    submit(1)
    asked, planned = [], []
    store.reader.set_trace_callback(asked.append)
    question(store.reader)
    store.reader.set_trace_callback(None)
    for statement in asked:
        plan = store.reader.execute(f"EXPLAIN QUERY PLAN {statement}").fetchall()
        planned += [row["detail"] for row in plan]
    for step in steps:
        assert any(step in planned_step for planned_step in planned), planned
    assert not any("TEMP B-TREE" in step or step == "SCAN jobs" for step in planned), planned


# --- miners and keys --------------------------------------------------------------------------


def test_a_miner_registers_anew_and_keeps_its_first_day(store, write):
    write(registry.upsert_miner, build_miner())
    later = replace(
        build_miner("m1", "a", "b"),
        registered_at_ms=CREATED_MS + 5,
        last_seen_at_ms=CREATED_MS + 5,
        account="ait1x",
        owner="key2",
    )
    write(registry.upsert_miner, later)
    expected = replace(later, registered_at_ms=CREATED_MS)
    assert registry.find_miner(store.reader, "m1") == expected
    assert registry.find_miner(store.reader, "m2") is None


def test_eligible_miners_serve_the_model_and_were_heard_since(store, write):
    for i, models in enumerate((("llama3.2",), ("llama3.2",), ("gpt",), ("*",))):
        miner = replace(build_miner(f"m{i}", *models), last_seen_at_ms=100 + i)
        write(registry.upsert_miner, miner)
    write(registry.touch_miner, "m0", 105)

    def eligible(since_ms: int) -> int:
        return registry.count_eligible_miners(store.reader, "llama3.2:latest", since_ms)

    assert [eligible(since) for since in (100, 102, 105, 106)] == [3, 2, 1, 0]


def test_a_key_is_revoked_once_and_for_ever(store, write):
    keys = [
        ApiKey(
            prefix=name,
            digest=b"d",
            role="client",
            client=name,
            created_at_ms=when,
            revoked_at_ms=None,
        )
        for name, when in (("b", 2), ("a", 2), ("c", 1))
    ]
    for key in keys:
        write(registry.insert_key, key)
    assert [key.prefix for key in registry.list_keys(store.reader)] == ["c", "a", "b"]
    assert write(registry.revoke_key, "a", 7) is True
    assert write(registry.revoke_key, "a", 8) is False
    assert write(registry.revoke_key, "x", 8) is False
    assert registry.find_key(store.reader, "a").revoked_at_ms == 7
    assert registry.find_key(store.reader, "b") == keys[0]
    assert registry.find_key(store.reader, "x") is None


def test_the_mempool_keeps_its_order_and_its_bound(store, write, submit, claim):
    receipts = [build_receipt(GENESIS, number) for number in (3, 1, 2)]
    for number, receipt in enumerate(receipts):
        job = claim(submit(number))
        write(
            job_store.complete_job,
            job,
            miner_id="m1",
            claimed_by="key",
            result="r",
            transaction=receipt,
            now_ms=number,
        )
    ids = [bytes(receipt.id) for receipt in receipts]
    assert [row[1] for row in mempool.list_mempool(store.reader, limit=9)] == ids
    assert [row[1] for row in mempool.list_mempool(store.reader, limit=2)] == ids[:2]
    write(mempool.remove_from_mempool, [ids[1], b"unknown"])
    assert [row[1] for row in mempool.list_mempool(store.reader, limit=9)] == [ids[0], ids[2]]
    assert [row[1] for row in mempool.list_mempool(store.reader, limit=9, after=1)] == [ids[2]]


def test_nothing_private_is_lost_when_the_market_is_opened_again(path, open_store):
    with contextlib.closing(open_store(path, GENESIS_HASH)) as store:
        store.write(lambda c: job_store.insert_job(c, build_job(1))).result()
    with contextlib.closing(open_store(path, GENESIS_HASH)) as store:
        assert job_store.load_job(store.reader, build_job(1).id) == build_job(1)
