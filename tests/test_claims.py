"""What is remembered of running jobs is bounded, and never stands against what is stored."""

import msgspec
import pytest

from ledger.errors import MarketError
from ledger.jobs import Report
from node.market import claims
from node.market.claims import Claims
from tests.market_node import CLIENT, MINER, MarketNode
from tests.test_market_store import build_job

REPORT = Report(miner_id="m1", result="r")


def running(number, prompt="p", miner_id="m1"):
    job = build_job(number)
    order = msgspec.structs.replace(job.order, prompt=prompt)
    return msgspec.structs.replace(job, order=order, miner_id=miner_id, state="running")


def test_a_claim_is_found_by_its_miner_until_it_is_forgotten():
    kept, job = Claims(), running(1)
    kept.keep(job)
    assert kept.find(job.id, "m1") is job
    assert kept.find(job.id, "m2") is None
    assert kept.find(None, "m1") is None
    kept.forget(job.id)
    kept.forget(job.id)
    assert kept.find(job.id, "m1") is None


def test_the_newest_claims_are_kept_and_no_long_prompts(monkeypatch):
    monkeypatch.setattr(claims, "MAX_CLAIMS", 3)
    kept, jobs = Claims(), [running(number) for number in range(1, 6)]
    for job in jobs:
        kept.keep(job)
    assert [kept.find(job.id, "m1") is job for job in jobs] == [False, False, True, True, True]
    long = running(9, prompt="x" * (claims.MAX_PROMPT_CHARS + 1))
    kept.keep(long)
    assert kept.find(long.id, "m1") is None


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
