"""What is remembered of jobs is bounded, and never stands against what is stored."""

import msgspec
import pytest

from ledger.errors import MarketError
from ledger.jobs import Caller, Report
from ledger.store import jobs as job_store
from node.market import kept as kept_jobs
from node.market.kept import KeptJobs
from tests.market_node import CLIENT, MINER, MarketNode
from tests.test_market_store import build_job

REPORT = Report(miner_id="m1", result="r")


def with_prompt(number, prompt="p"):
    job = build_job(number)
    return msgspec.structs.replace(job, order=msgspec.structs.replace(job.order, prompt=prompt))


def test_a_job_is_found_until_it_is_forgotten():
    kept, job = KeptJobs(), with_prompt(1)
    kept.keep(job)
    assert kept.find(job.id) is job
    assert kept.find(None) is None
    kept.forget(job.id)
    kept.forget(job.id)
    assert kept.find(job.id) is None


def test_the_newest_jobs_are_kept_and_no_long_prompts(monkeypatch):
    monkeypatch.setattr(kept_jobs, "MAX_KEPT", 3)
    kept, jobs = KeptJobs(), [with_prompt(number) for number in range(1, 6)]
    for job in jobs:
        kept.keep(job)
    assert [kept.find(job.id) is job for job in jobs] == [False, False, True, True, True]
    long = with_prompt(9, prompt="x" * (kept_jobs.MAX_PROMPT_CHARS + 1))
    kept.keep(long)
    assert kept.find(long.id) is None


@pytest.fixture
def node(tmp_path, open_store):
    node = MarketNode(tmp_path, open_store=open_store)
    node.register()
    yield node
    node.close()


@pytest.fixture
def claimed(node):
    job = node.submit()
    node.claim(job)
    return job


def complete(node, job, report=REPORT):
    return node.do(node.coordinator.complete(MINER, job.job_id, report))


def test_a_completion_needs_no_look_at_the_job(node, claimed, monkeypatch):
    monkeypatch.setattr(node.coordinator, "job", lambda _: pytest.fail("it was read"))
    assert complete(node, claimed).payload.job_id == claimed.job_id


def test_a_job_that_was_cancelled_is_refused_for_that_and_nothing_else(node, claimed):
    node.do(node.coordinator.cancel(CLIENT, claimed.job_id))
    with pytest.raises(MarketError) as caught:
        complete(node, claimed, Report(miner_id="m1", result="r", prompt_tokens=1))
    assert caught.value.code == "JOB_ALREADY_CANCELLED"


def test_a_job_that_another_process_ended_is_refused_though_it_is_remembered(node, claimed):
    node.store.write(
        lambda c: c.execute("UPDATE jobs SET state = 'cancelled' WHERE id = ?", (claimed.id,))
    ).result()
    with pytest.raises(MarketError) as caught:
        complete(node, claimed)
    assert caught.value.code == "JOB_ALREADY_CANCELLED"
    assert node.kicks == 0


def test_a_claim_of_a_job_that_was_submitted_or_offered_here_reads_no_job(node, monkeypatch):
    submitted = node.submit()
    node.restart()
    assert node.do(node.coordinator.available(MINER, "m1", 0)).id == submitted.id
    offered = node.submit()

    def refuse(*_):  # in the writer's thread, which would not survive a failure of pytest's
        raise AssertionError("it was read")

    monkeypatch.setattr(job_store, "load_job", refuse)
    claims = [node.claim(job) for job in (submitted, offered)]
    monkeypatch.undo()
    assert [each.job for each in claims] == [node.read(submitted), node.read(offered)]


@pytest.mark.parametrize(
    ("change", "attempt"),
    [
        ("attempt = 1, excluded_miner = 'm9', status_reason = 'requeued'", 2),
        ("excluded_miner = NULL", 1),
    ],
)
def test_a_job_that_another_process_gave_back_is_claimed_as_it_is_stored(node, change, attempt):
    job = node.submit()
    node.store.write(
        lambda c: c.execute(f"UPDATE jobs SET {change} WHERE id = ?", (job.id,))
    ).result()
    claim = node.claim(job)
    assert claim.job == node.read(job)
    assert claim.lease.attempt == attempt


def test_a_job_that_another_process_claimed_is_refused_though_it_is_remembered(node):
    job = node.submit()
    node.store.write(
        lambda c: c.execute(
            "UPDATE jobs SET state = 'running', miner_id = 'm9', attempt = 1 WHERE id = ?",
            (job.id,),
        )
    ).result()
    with pytest.raises(MarketError) as caught:
        node.claim(job)
    assert caught.value.code == "JOB_ALREADY_CLAIMED"
    assert node.moves == [("submitted", "")]


def test_the_key_of_a_job_takes_its_turn_where_nothing_was_read(node):
    for owner in ("a", "b"):
        caller = Caller(key=owner, client=owner, role="client")
        first, _ = node.submit(caller), node.submit(caller)
        if owner == "a":
            node.claim(first)
    assert node.do(node.coordinator.available(MINER, "m1", 0)).owner == "b"
