"""What is remembered of jobs is bounded, and never stands against what is stored."""

import msgspec
import pytest

from ledger.errors import MarketError
from ledger.jobs import Report
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
