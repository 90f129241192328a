"""Texts of jobs that ended long ago are gone from the files; what proves them stays."""

import random
import sqlite3
from dataclasses import replace

import pytest

from ledger.encoding import decode_base64url
from ledger.errors import MarketError
from ledger.hashing import hash_text
from ledger.store import texts
from tests.api_node import ApiNode, run_job
from tests.market_node import CLIENT, MINER, SETTINGS, MarketNode

DAY_MS = 86_400_000
RETENTION_MS = SETTINGS.text_retention_ms
MARK = "SECRET"


@pytest.fixture
def market(tmp_path):
    market = MarketNode(tmp_path, settings=replace(SETTINGS, max_pending_per_key=1000))
    market.register()
    yield market
    market.close()


def sweep(market, later_ms: int = 0) -> None:
    market.now_ms += later_ms
    market.do(market.coordinator.sweep())


def finish(market, prompt: str, result: str, ending: str = "complete") -> str:
    """One job with marked texts that came to some end; returns its id."""
    job = market.submit(prompt=prompt, stop=(f"{MARK} stop",))
    if ending == "cancel":
        market.do(market.coordinator.cancel(CLIENT, job.job_id))
        return job.job_id
    market.claim(job)
    if ending == "release":
        market.do(market.coordinator.release(MINER, job.job_id, "m1"))
        market.claim(job)
    if ending == "fail":
        reason, give_up = f"{MARK} error", market.coordinator.fail
        market.do(give_up(MINER, job.job_id, "m1", reason=reason, retryable=False))
    else:
        market.complete(job, result=result)
    return job.job_id


def files(tmp_path) -> dict[str, bytes]:
    names = ("node.db", "node.db-wal", "node.db-shm")
    return {name: (tmp_path / name).read_bytes() for name in names if (tmp_path / name).exists()}


@pytest.mark.parametrize("seed", range(3))
def test_no_byte_of_a_purged_text_is_in_any_file(market, tmp_path, seed):
    """Also where a job's row was moved, split and rewritten on its way."""
    rng = random.Random(seed)
    sizes = [10, 60, 300, 1_500, 7_000, 9_000, 40_000]
    endings = ["complete", "complete", "cancel", "fail", "release"]
    for number in range(60):
        prompt = f"{MARK} prompt {number} " * (rng.choice(sizes) // 17 + 1)
        finish(market, prompt, f"{MARK} result " + "x" * rng.choice(sizes), rng.choice(endings))
    assert any(MARK.encode() in data for data in files(tmp_path).values())
    kept = market.submit(prompt="KEPT")
    sweep(market, RETENTION_MS)
    for name, data in files(tmp_path).items():
        assert MARK.encode() not in data, name
        assert name != "node.db-wal" or not data
    assert market.read(kept).order.prompt == "KEPT"


def test_texts_are_kept_until_their_time(market):
    job_id = finish(market, "prompt", "result")
    sweep(market, RETENTION_MS - 1)
    assert market.coordinator.job(job_id).result == "result"
    sweep(market, 1)
    job = market.coordinator.job(job_id)
    assert (job.order.prompt, job.order.stop, job.result) == ("", (), None)
    assert job.texts_purged_at_ms == market.now_ms


def test_texts_of_jobs_that_have_not_ended_stay(market):
    job = market.submit(prompt="waiting")
    market.claim(job, heartbeat=False)
    other = market.submit(prompt="pending")
    market.store.write(
        lambda c: texts.purge_texts(c, ended_before_ms=market.now_ms * 2, now_ms=1)
    ).result()
    assert market.read(job).order.prompt == "waiting"
    assert market.read(other).order.prompt == "pending"


def test_no_time_is_for_ever(tmp_path):
    market = MarketNode(tmp_path, settings=replace(SETTINGS, text_retention_ms=0))
    market.register()
    job_id = finish(market, "prompt", "result")
    sweep(market, 10_000 * DAY_MS)
    assert market.coordinator.job(job_id).result == "result"
    market.close()


def test_one_transaction_purges_so_many_jobs_or_texts(market, monkeypatch):
    monkeypatch.setattr(texts, "MAX_PURGED_JOBS", 3)
    for _ in range(7):
        finish(market, "p" * 10, "")

    def purge() -> int:
        return market.store.write(
            lambda c: texts.purge_texts(c, ended_before_ms=market.now_ms, now_ms=1)
        ).result()

    assert purge() == 3
    monkeypatch.setattr(texts, "MAX_PURGED_CHARS", 15)
    assert [purge(), purge(), purge()] == [2, 2, 0]


def test_a_sweep_goes_on_where_another_could_not_empty_the_wal(market, tmp_path):
    """A reader that is in the middle of something keeps old pages; the next sweep tries again."""
    finish(market, f"{MARK} prompt", "result")
    reader = sqlite3.connect(tmp_path / "node.db", isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT prompt FROM jobs").fetchall()
    sweep(market, RETENTION_MS)
    assert MARK.encode() in files(tmp_path)["node.db-wal"]
    reader.execute("COMMIT")
    reader.close()
    sweep(market)
    assert not any(MARK.encode() in data for data in files(tmp_path).values())


def test_what_a_killed_node_left_in_the_wal_is_emptied_after_the_start(market, tmp_path):
    """The purge is durable with its transaction; the WAL may be as old as the crash."""
    finish(market, f"{MARK} prompt", f"{MARK} result")
    market.store.write(
        lambda c: texts.purge_texts(c, ended_before_ms=market.now_ms, now_ms=1)
    ).result()
    assert MARK.encode() in files(tmp_path)["node.db-wal"]
    market.coordinator._is_wal_old = True  # as it is after a start
    sweep(market)
    assert not any(MARK.encode() in data for data in files(tmp_path).values())


def test_a_result_may_be_handed_in_again_after_the_purge_but_no_other(market):
    job_id = finish(market, "prompt", "result")
    job = market.coordinator.job(job_id)
    first = market.complete(job, result="result")
    sweep(market, RETENTION_MS)
    again = market.complete(job, result="result")
    assert again.payload == first.payload
    for other in ("", "Result", "result "):
        with pytest.raises(MarketError) as caught:
            market.complete(job, result=other)
        assert caught.value.code == "JOB_RESULT_CONFLICT"


def test_the_job_says_when_its_texts_went_and_its_salts_still_prove_them(tmp_path):
    node = ApiNode(tmp_path)
    with node.client("strict", "admin") as client:
        job, receipt = run_job(client, node)
        node.now_ms += RETENTION_MS
        client.portal.call(node.coordinator.sweep)
        shown = client.get(f"/v1/jobs/{job['job_id']}").json()
        assert shown["texts_purged_at"] == "2026-01-08T00:00:01.500Z"
        assert shown.keys().isdisjoint({"prompt", "params", "result", "error"})
        assert (shown["status"], shown["receipt_id"]) == ("completed", receipt["receipt_id"])
        payload = node.views.receipt(receipt["receipt_id"]).payload
        salt = decode_base64url(shown["disclosure"]["prompt_salt"], size_bytes=32)
        assert hash_text(salt, job["prompt"]).hex() == payload.prompt_digest
        other = {"X-Api-Key": node.keys["miner"]}
        stranger = client.get(f"/v1/jobs/{job['job_id']}", headers=other).json()
        assert "disclosure" not in stranger
        assert "texts_purged_at" in stranger
    node.close()
