"""Submitting more than once, more than one, and more than one may."""

import asyncio

import msgspec
import pytest

from ledger.errors import MarketError
from ledger.quotas import DAY_MS, KeyLimits
from ledger.store import repeats
from ledger.store.limits import set_limits
from ledger.store.repeats import REPEAT_MS
from tests.api_node import ApiNode
from tests.builders import CREATED_MS
from tests.market_node import CLIENT, MINER, ORDER, MarketNode

BODY = {"prompt": "Why?", "params": {"max_tokens": 10}}


@pytest.fixture
def client(node):
    with node.client("strict", "client") as client:
        yield client


@pytest.fixture
def market(tmp_path):
    market = MarketNode(tmp_path)
    yield market
    market.close()


def post(client, body=BODY, key=None, *, path="/v1/jobs", **headers):
    if key is not None:
        headers["Idempotency-Key"] = key
    return client.post(path, json=body, headers=headers)


def told(answer) -> tuple[int, str]:
    return answer.status_code, answer.json()["error_code"]


def total(client) -> int:
    return int(client.get("/v1/jobs").headers["X-Total-Count"])


def limit(node, **limits) -> None:
    prefix = node.keys["client"].split("_")[1]
    node._store.write(lambda c: set_limits(c, prefix, KeyLimits(**limits))).result()


# --- repeating --------------------------------------------------------------------------------


def test_the_same_request_again_shows_the_same_job_as_it_is_now(client):
    first = post(client, key="k")
    assert "Idempotency-Replayed" not in first.headers
    client.post(f"/v1/jobs/{first.json()['job_id']}/cancel")
    again = post(client, key="k")
    assert again.status_code == 201
    assert again.headers["Idempotency-Replayed"] == "true"
    assert again.headers["Location"] == first.headers["Location"]
    assert again.json()["job_id"] == first.json()["job_id"]
    assert again.json()["status"] == "cancelled"
    assert total(client) == 1


def test_what_is_spelled_otherwise_but_means_the_same_is_the_same_request(client):
    first = post(client, key="k").json()
    same = {"params": {"max_tokens": 10.0, "seed": None}, "prompt": "Why?", "x": 1}
    assert post(client, same, key="k").json()["job_id"] == first["job_id"]


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "Why"},
        {"model": "other"},
        {"params": {"max_tokens": 11}},
        {"params": {"seed": 1}},
    ],
)
def test_another_order_with_the_same_key_is_refused(client, change):
    post(client, key="k")
    assert told(post(client, {**BODY, **change}, key="k")) == (409, "IDEMPOTENCY_MISMATCH")
    assert total(client) == 1


def test_keys_of_others_and_other_keys_are_other_requests(client, node):
    made = {
        post(client, key="k").json()["job_id"],
        post(client, key="K").json()["job_id"],
        post(client).json()["job_id"],
        post(client, key="k", **{"X-Api-Key": node.keys["admin"]}).json()["job_id"],
    }
    assert len(made) == 4


@pytest.mark.parametrize("key", ["", " ", "a b", "a\tb", "x" * 256, "é".encode(), b"\x7f"])
def test_a_key_that_is_none_is_refused(client, key):
    answer = post(client, key=key)
    assert told(answer) == (400, "VALIDATION_FAILED")
    assert answer.json()["errors"][0]["path"] == "Idempotency-Key"


def test_two_keys_in_one_request_are_refused(client):
    headers = [("Idempotency-Key", "a"), ("Idempotency-Key", "a")]
    assert told(client.post("/v1/jobs", json=BODY, headers=headers)) == (400, "VALIDATION_FAILED")


def test_the_longest_key_is_taken(client):
    assert post(client, key="~" * 255).status_code == 201


def test_a_key_is_forgotten_after_a_day_and_not_before(client, node):
    first = post(client, key="k").json()["job_id"]
    node.now_ms += REPEAT_MS - 1
    assert post(client, key="k").json()["job_id"] == first
    node.now_ms += 1
    other = post(client, {**BODY, "prompt": "Other?"}, key="k")
    assert other.status_code == 201
    assert "Idempotency-Replayed" not in other.headers
    assert total(client) == 2


def test_a_repetition_after_the_purge_still_makes_no_other_job(client, node):
    first = post(client, key="k").json()["job_id"]
    client.post(f"/v1/jobs/{first}/cancel")
    node._store.write(
        lambda c: c.execute("UPDATE jobs SET prompt = '', stop = '[]', texts_purged_at_ms = 1")
    ).result()
    assert post(client, key="k").json()["job_id"] == first
    assert told(post(client, {**BODY, "prompt": ""}, key="k")) == (409, "IDEMPOTENCY_MISMATCH")


def test_of_many_requests_at_once_with_one_key_one_makes_a_job(market):
    async def race():
        calls = (
            market.coordinator.submit_all(CLIENT, [ORDER, ORDER], idempotency_key="k")
            for _ in range(20)
        )
        return await asyncio.gather(*calls)

    made = market.do(race())
    assert len({tuple(job.id for job in each.jobs) for each in made}) == 1
    assert sum(not each.is_replay for each in made) == 1
    assert market.coordinator.count_jobs(owner=None, state=None) == 2


def test_a_repetition_after_a_restart_makes_no_other_job(market):
    first = market.do(market.coordinator.submit(CLIENT, ORDER, idempotency_key="k"))
    market.restart()
    again = market.do(market.coordinator.submit(CLIENT, ORDER, idempotency_key="k"))
    assert again == first


def test_a_request_that_failed_may_be_repeated_with_its_key(market):
    for _ in range(5):
        market.submit()
    refused = market.coordinator.submit(CLIENT, ORDER, idempotency_key="k")
    with pytest.raises(MarketError, match="pending"):
        market.do(refused)
    market.do(
        market.coordinator.cancel(
            CLIENT, market.coordinator.jobs(owner=None, state=None, limit=1)[0].job_id
        )
    )
    made = market.do(market.coordinator.submit_all(CLIENT, [ORDER], idempotency_key="k"))
    assert not made.is_replay


def test_the_file_holds_no_digest_that_a_prompt_could_be_tried_against(market):
    """The same order with the same key has another digest each time."""
    digests = set()
    for key in ("a", "b"):
        market.do(market.coordinator.submit(CLIENT, ORDER, idempotency_key=key))
    for row in market.store.reader.execute("SELECT digest FROM repeats"):
        digests.add(row[0])
    assert len(digests) == 2


def test_old_keys_are_swept_so_many_at_a_time(market, monkeypatch):
    monkeypatch.setattr(repeats, "MAX_SWEPT_REPEATS", 2)
    for number in range(5):
        market.do(market.coordinator.submit(CLIENT, ORDER, idempotency_key=f"{number}"))

    def left() -> int:
        return market.store.reader.execute("SELECT count(*) FROM repeats").fetchone()[0]

    market.now_ms += REPEAT_MS - 1
    market.do(market.coordinator.sweep())
    assert left() == 5
    market.now_ms += 1
    counts = []
    for _ in range(3):
        market.do(market.coordinator.sweep())
        counts.append(left())
    assert counts == [3, 1, 0]


# --- batches ----------------------------------------------------------------------------------


def batch(client, jobs, key=None):
    return post(client, {"jobs": jobs}, key, path="/v1/jobs/batch")


def test_a_batch_is_answered_and_queued_in_its_order(client, node):
    answer = batch(client, [{**BODY, "prompt": f"{n}"} for n in range(5)])
    assert answer.status_code == 201
    assert [job["prompt"] for job in answer.json()] == list("01234")
    ids = [job["job_id"] for job in answer.json()]
    assert [job["job_id"] for job in client.get("/v1/jobs").json()] == ids[::-1]
    assert client.get(f"/v1/jobs/{ids[2]}").json()["queue"]["position"] == 3


def test_a_batch_with_a_fault_makes_no_job_and_names_the_fault(client):
    jobs = [BODY, BODY, BODY, {"prompt": "p", "params": {"top_p": 0}}]
    answer = batch(client, jobs, key="k")
    assert told(answer) == (400, "VALIDATION_FAILED")
    assert answer.json()["errors"][0]["path"] == "jobs[3].params.top_p"
    assert total(client) == 0
    assert batch(client, jobs[:3], key="k").status_code == 201  # nothing was remembered


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({}, "jobs"),
        ({"jobs": []}, "jobs"),
        ({"jobs": [BODY] * 101}, "jobs"),
        ({"jobs": [BODY, {}]}, "jobs[1].prompt"),
        ({"jobs": [{"prompt": "a\0"}]}, "jobs[0].prompt"),
        (
            {"jobs": [BODY, {"prompt": "a", "params": {"stop": ["a", ""]}}]},
            "jobs[1].params.stop[1]",
        ),
        ({"jobs": [{"prompt": "a", "params": {"max_tokens": 0}}]}, "jobs[0].params.max_tokens"),
    ],
)
def test_faults_of_a_batch_have_their_paths(client, body, path):
    answer = post(client, body, path="/v1/jobs/batch")
    assert told(answer) == (400, "VALIDATION_FAILED")
    assert answer.json()["errors"][0]["path"] == path


def test_a_repeated_batch_is_the_same_jobs_in_the_same_order(client):
    jobs = [{**BODY, "prompt": f"{n}"} for n in range(3)]
    first = batch(client, jobs, key="k").json()
    post(client)
    again = batch(client, jobs, key="k")
    assert again.headers["Idempotency-Replayed"] == "true"
    assert again.json() == first
    assert told(batch(client, jobs[::-1], key="k")) == (409, "IDEMPOTENCY_MISMATCH")
    assert told(batch(client, jobs[:2], key="k")) == (409, "IDEMPOTENCY_MISMATCH")


def test_a_repeated_batch_leaves_out_results_beyond_what_one_answer_may_hold(market, monkeypatch):
    monkeypatch.setattr("ledger.store.lists.MAX_LISTED_CHARS", 10)
    market.register()
    made = market.do(market.coordinator.submit_all(CLIENT, [ORDER] * 3, idempotency_key="k"))
    for job in made.jobs:
        market.claim(job)
        market.complete(job, result="12345678")
    again = market.do(market.coordinator.submit_all(CLIENT, [ORDER] * 3, idempotency_key="k"))
    assert [job.result for job in again.jobs] == ["12345678", None, None]
    assert {job.state for job in again.jobs} == {"completed"}


def test_a_batch_needs_a_client_key(node):
    with node.client("dev") as client:
        assert told(batch(client, [BODY])) == (401, "AUTH_MISSING_KEY")
    with node.client("strict", "miner") as client:
        assert told(batch(client, [BODY])) == (403, "AUTH_INSUFFICIENT_SCOPE")


# --- quotas -----------------------------------------------------------------------------------


def test_a_key_without_limits_has_the_nodes(client):
    shown = client.get("/v1/key").json()
    assert shown["limits"] == {"max_pending": 100}
    assert shown["role"] == "client"
    assert batch(client, [BODY] * 100).status_code == 201
    assert told(post(client)) == (429, "RATE_LIMIT_EXCEEDED")


def test_a_key_has_a_bound_of_pending_jobs_of_its_own(client, node):
    limit(node, max_pending=2)
    assert told(batch(client, [BODY] * 3)) == (400, "VALIDATION_FAILED")
    assert batch(client, [BODY] * 2).status_code == 201
    assert told(post(client)) == (429, "RATE_LIMIT_EXCEEDED")
    limit(node, max_pending=102)
    assert batch(client, [BODY] * 100).status_code == 201
    assert told(post(client)) == (429, "RATE_LIMIT_EXCEEDED")


def test_the_quota_of_a_day_ends_with_the_day(client, node):
    limit(node, daily_jobs=3, daily_tokens=45)
    node.now_ms = CREATED_MS // DAY_MS * DAY_MS + DAY_MS - 1_500
    batch(client, [BODY] * 2)
    assert told(batch(client, [BODY] * 2)) == (429, "QUOTA_EXCEEDED")
    big = {"prompt": "p", "params": {"max_tokens": 26}}
    answer = post(client, big)
    assert told(answer) == (429, "QUOTA_EXCEEDED")
    assert answer.headers["Retry-After"] == "2"
    assert post(client).status_code == 201
    assert told(post(client)) == (429, "QUOTA_EXCEEDED")
    shown = client.get("/v1/key").json()
    assert shown["today"] == {"jobs": 3, "tokens": 30}
    assert shown["pending_jobs"] == 3
    assert shown["resets_at"] == "2026-01-02T00:00:00.000Z"
    node.now_ms += 1_499
    assert told(post(client)) == (429, "QUOTA_EXCEEDED")
    node.now_ms += 1
    assert post(client).status_code == 201
    assert client.get("/v1/key").json()["today"] == {"jobs": 1, "tokens": 10}


def test_a_clock_that_is_set_back_gives_no_fresh_day(client, node):
    limit(node, daily_jobs=1)
    post(client)
    node.now_ms -= DAY_MS
    assert told(post(client)) == (429, "QUOTA_EXCEEDED")


def test_what_alone_is_over_a_limit_is_not_told_to_come_back_tomorrow(client, node):
    limit(node, daily_tokens=9, daily_jobs=1)
    assert told(post(client)) == (400, "VALIDATION_FAILED")
    assert told(batch(client, [BODY, BODY])) == (400, "VALIDATION_FAILED")


def test_a_repetition_counts_against_no_limit(client, node):
    limit(node, daily_jobs=1, max_pending=1)
    first = post(client, key="k")
    again = post(client, key="k")
    assert (first.status_code, again.status_code) == (201, 201)
    assert client.get("/v1/key").json()["today"]["jobs"] == 1


def test_a_refused_batch_uses_nothing(client, node):
    limit(node, daily_jobs=3)
    batch(client, [BODY] * 2)
    assert told(batch(client, [BODY] * 2)) == (429, "QUOTA_EXCEEDED")
    assert client.get("/v1/key").json()["today"] == {"jobs": 2, "tokens": 20}
    assert total(client) == 2


def test_a_cancelled_job_still_counts_for_the_day(client, node):
    limit(node, daily_jobs=1, max_pending=1)
    job = post(client).json()["job_id"]
    client.post(f"/v1/jobs/{job}/cancel")
    assert told(post(client)) == (429, "QUOTA_EXCEEDED")


def test_quotas_hold_for_jobs_that_arrive_together(tmp_path):
    node = ApiNode(tmp_path)
    try:
        limit(node, daily_tokens=70)
        caller = node.coordinator.authenticate(node.keys["client"])
        order = msgspec.structs.replace(ORDER, max_tokens=10)

        async def race():
            calls = (node.coordinator.submit(caller, order) for _ in range(20))
            return await asyncio.gather(*calls, return_exceptions=True)

        answers = asyncio.run(race())
        assert sum(isinstance(answer, MarketError) for answer in answers) == 13
    finally:
        node.close()


def test_the_key_of_a_request_is_shown_to_its_holder_only(node):
    with node.client("dev") as client:
        assert told(client.get("/v1/key")) == (401, "AUTH_MISSING_KEY")
        for role, key in node.keys.items():
            shown = client.get("/v1/key", headers={"X-Api-Key": key})
            assert shown.json()["role"] == role
            assert key.split("_", 2)[2] not in shown.text


def test_a_jobs_share_of_the_market_is_open_to_other_parts(market):
    """What the faces beside `/v1/jobs` use."""
    job = market.do(market.coordinator.submit(CLIENT, ORDER, idempotency_key="k"))
    assert market.do(market.coordinator.submit(CLIENT, ORDER, idempotency_key="k")).id == job.id
    assert market.coordinator.key_standing(CLIENT).usage.jobs == 1
    assert market.coordinator.key_standing(MINER).usage.jobs == 0


# --- pages ------------------------------------------------------------------------------------


def test_pages_stay_what_they_were_while_jobs_arrive(client):
    ids = [job["job_id"] for job in batch(client, [BODY] * 7).json()]
    seen, path = [], "/v1/jobs?limit=3&status=pending"
    while path:
        answer = client.get(path)
        seen += [job["job_id"] for job in answer.json()]
        post(client)
        path = answer.links.get("next", {}).get("url")
    assert seen == ids[::-1]


def test_newer_jobs_are_found_after_the_newest_known_one(client):
    ids = [job["job_id"] for job in batch(client, [BODY] * 5).json()]
    page = client.get(f"/v1/jobs?after={ids[0]}&limit=2")
    assert [job["job_id"] for job in page.json()] == [ids[2], ids[1]]
    page = client.get(page.links["prev"]["url"])
    assert [job["job_id"] for job in page.json()] == [ids[4], ids[3]]
    assert client.get(page.links["prev"]["url"]).json() == []
    page = client.get(page.links["next"]["url"])
    assert [job["job_id"] for job in page.json()] == [ids[2], ids[1]]


def test_the_offset_of_the_reference_works_and_leads_to_cursors(client):
    ids = [job["job_id"] for job in batch(client, [BODY] * 5).json()]
    page = client.get("/v1/jobs?offset=1&limit=2")
    assert [job["job_id"] for job in page.json()] == [ids[3], ids[2]]
    assert "offset" not in page.links["next"]["url"]
    page = client.get(page.links["next"]["url"])
    assert [job["job_id"] for job in page.json()] == [ids[1], ids[0]]


@pytest.mark.parametrize("cursor", ["", "x", "job_00000000000000000000000000", "1"])
@pytest.mark.parametrize("name", ["before", "after"])
def test_a_cursor_that_is_no_job_is_refused(client, name, cursor):
    assert told(client.get(f"/v1/jobs?{name}={cursor}")) == (400, "VALIDATION_FAILED")


def test_lists_say_how_many_there_are(client, node):
    batch(client, [BODY] * 3)
    admin = {"X-Api-Key": node.keys["admin"]}
    job = post(client, **admin).json()["job_id"]
    client.post(f"/v1/jobs/{job}/cancel", headers=admin)

    def count(query: str) -> str:
        return client.get(f"/v1/jobs{query}").headers["X-Total-Count"]

    assert [count(q) for q in ("", "?limit=0", "?owner=me", "?status=cancelled")] == list("4431")
    assert count("?owner=me&status=cancelled") == "0"
