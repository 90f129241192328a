"""The life of a job as its client and its miner see it."""

import pytest

from api.requests import BodyRoom
from ledger.encoding import decode_base64url
from ledger.errors import MarketError
from ledger.hashing import hash_text
from tests.api_node import MINER_KEY, build_registration, sign_report
from tests.builders import build_key


@pytest.fixture
def client(node):
    with node.client("dev", "admin") as client:
        yield client


def claimed(client, node, *, miner: str = "m1", **claim) -> tuple[str, dict]:
    """A job that `miner` runs: its path, and what the miner was told."""
    client.post("/v1/miners/register", json=build_registration(node, miner, MINER_KEY))
    made = client.post("/v1/jobs", json={"prompt": "Why?"}).json()
    place = f"/v1/jobs/{made['job_id']}"
    answer = client.post(f"{place}/claim", json={"miner_id": miner, **claim})
    assert answer.status_code == 200, answer.text
    return place, answer.json()


def test_a_claim_tells_all_that_a_miner_needs_to_sign_its_receipt(client, node):
    place, claim = claimed(client, node)
    node.now_ms += 2_500
    report = sign_report(claim, MINER_KEY, miner="m1", result="r", completed_at_ms=node.now_ms)
    receipt = client.post(f"{place}/complete", json=report).json()
    assert receipt["provider"] == MINER_KEY.account
    assert (receipt["miner_id"], receipt["signer"]) == ("m1", "provider")
    assert (receipt["units"], receipt["price"], receipt["price_micros"]) == (2.5, 0.00125, 1250)
    assert receipt["signature"] == report["signature"]
    assert receipt["attestation"]["key_id"] == receipt["coordinator"]
    assert receipt["receipt_id"] == claim["work_order"]["receipt"]["receipt_id"]


def test_the_disclosed_salts_prove_prompt_and_result(client, node):
    place, claim = claimed(client, node)
    report = sign_report(claim, MINER_KEY, miner="m1", result="r", completed_at_ms=node.now_ms)
    receipt = client.post(f"{place}/complete", json=report).json()
    job = client.get(place).json()
    payload = node.views.receipt(receipt["receipt_id"]).payload
    for text, salt, digest in (
        (job["prompt"], job["disclosure"]["prompt_salt"], payload.prompt_digest),
        (job["result"], job["disclosure"]["result_salt"], payload.result_digest),
    ):
        assert hash_text(decode_base64url(salt, size_bytes=32), text).hex() == digest


@pytest.mark.parametrize("change", [{"result": "another"}, {"units": 0.001}])
def test_a_signature_over_another_report_is_refused_with_what_was_expected(client, node, change):
    place, claim = claimed(client, node)
    node.now_ms += 1_000
    report = sign_report(claim, MINER_KEY, miner="m1", result="r", completed_at_ms=node.now_ms)
    answer = client.post(f"{place}/complete", json={**report, **change})
    assert (answer.status_code, answer.json()["error_code"]) == (400, "RECEIPT_MISMATCH")
    assert answer.json()["expected"]["job_id"] == place.rpartition("/")[2]
    assert client.post(f"{place}/complete", json=report).status_code == 200


def test_a_report_signed_by_nobody_or_somebody_else_is_refused(client, node):
    place, claim = claimed(client, node)
    other = build_key("other")
    signed = sign_report(claim, other, miner="m1", result="r", completed_at_ms=node.now_ms)
    for report in ({"miner_id": "m1", "result": "r"}, signed):
        answer = client.post(f"{place}/complete", json=report)
        assert (answer.status_code, answer.json()["error_code"]) == (
            400,
            "RECEIPT_INVALID_SIGNATURE",
        )


def test_a_registration_needs_proof_of_its_key(client, node):
    body = build_registration(node, "m1", MINER_KEY)
    assert client.post("/v1/miners/register", json={**body, "miner_id": "m2"}).status_code == 400
    answer = client.post("/v1/miners/register", json=body)
    assert (answer.status_code, answer.json()["public_key"]) == (201, MINER_KEY.account)


def test_claiming_again_gives_the_same_lease_and_a_heartbeat_a_longer_one(client, node):
    place, first = claimed(client, node, heartbeat=True)
    assert first["lease"]["heartbeat_interval_ms"] > 0
    again = client.post(f"{place}/claim", json={"miner_id": "m1", "heartbeat": True}).json()
    assert again["lease"] == first["lease"]
    node.now_ms += 10_000
    renewed = client.post(f"{place}/heartbeat", json={"miner_id": "m1"}).json()
    assert renewed["expires_in_ms"] == first["lease"]["expires_in_ms"]
    assert renewed["expires_at"] > first["lease"]["expires_at"]


def test_a_released_job_is_as_if_never_started_but_for_its_count(client, node):
    place, _ = claimed(client, node)
    job = client.post(f"{place}/release", json={"miner_id": "m1"}).json()
    assert (job["status"], job["status_reason"], job["attempt"]) == ("pending", "requeued", 1)
    assert job.keys().isdisjoint({"started_at", "completed_at", "miner_id"})
    assert job["queue"] == {"position": 1, "eligible_miners": 1}
    lost = client.post(f"{place}/heartbeat", json={"miner_id": "m1"})
    assert (lost.status_code, lost.json()["error_code"]) == (409, "JOB_LEASE_LOST")


def test_a_failed_attempt_is_tried_again_unless_the_miner_says_never(client, node):
    place, _ = claimed(client, node)
    body = {"miner_id": "m1", "reason": "out of memory"}
    assert client.post(f"{place}/fail", json=body).json()["status"] == "pending"
    client.post(f"{place}/claim", json={"miner_id": "m1"})
    job = client.post(f"{place}/fail", json={**body, "retryable": False}).json()
    assert (job["status"], job["status_reason"]) == ("failed", "miner_error")
    assert job["error"] == "out of memory"
    cancel = client.post(f"{place}/cancel")
    assert (cancel.status_code, cancel.json()["error_code"]) == (409, "JOB_ALREADY_COMPLETED")


def test_no_result_is_taken_for_a_cancelled_job(client, node):
    place, claim = claimed(client, node)
    client.post(f"{place}/cancel")
    report = sign_report(claim, MINER_KEY, miner="m1", result="r", completed_at_ms=node.now_ms)
    answer = client.post(f"{place}/complete", json=report)
    assert (answer.status_code, answer.json()["error_code"]) == (409, "JOB_ALREADY_CANCELLED")
    assert client.get("/v1/receipts").json() == []


def test_a_miner_says_that_it_is_alive(client, node):
    client.post("/v1/miners/register", json={"miner_id": "m1", "capabilities": ["a"]})
    node.now_ms += 5_000
    miner = client.post("/v1/miners/m1/heartbeat").json()
    assert miner == {
        "miner_id": "m1",
        "capabilities": ["a"],
        "registered_at": "2026-01-01T00:00:00.000Z",
        "last_seen_at": "2026-01-01T00:00:05.000Z",
    }


def test_a_receipt_names_whoever_the_miner_was_when_it_claimed(client, node):
    place, claim = claimed(client, node)
    client.post(
        "/v1/miners/register", json=build_registration(node, "m1", build_key("another key"))
    )
    report = sign_report(claim, MINER_KEY, miner="m1", result="r", completed_at_ms=node.now_ms)
    answer = client.post(f"{place}/complete", json=report)
    assert answer.status_code == 200, answer.text
    assert answer.json()["provider"] == MINER_KEY.account


def test_an_admin_who_changes_a_miner_does_not_take_it_from_its_key(node):
    with node.client("dev", "miner") as owner, node.client("dev", "admin") as admin:
        body = build_registration(node, "m1", MINER_KEY)
        assert owner.post("/v1/miners/register", json=body).status_code == 201
        assert admin.post("/v1/miners/register", json=body).status_code == 201
        assert owner.post("/v1/miners/register", json=body).status_code == 201


def test_a_page_of_jobs_ends_where_its_texts_are_long_and_the_next_goes_on(client, monkeypatch):
    monkeypatch.setattr("ledger.store.lists.MAX_LISTED_CHARS", 10)
    made = [
        client.post("/v1/jobs", json={"prompt": "long prompt"}).json()["job_id"] for _ in range(3)
    ]
    seen, path = [], "/v1/jobs?limit=2"
    for _ in range(4):
        answer = client.get(path)
        seen.append([job["job_id"] for job in answer.json()])
        path = answer.links["next"]["url"] if "next" in answer.links else None
        if path is None:
            break
    assert seen == [[made[2]], [made[1]], [made[0]], []]


def test_a_miner_waits_in_few_polls_at_once_and_further_ones_are_answered(client, node):
    client.post("/v1/miners/register", json={"miner_id": "m1", "capabilities": ["x"]})
    node.coordinator._polls["m1"] = 4
    assert client.get("/v1/jobs/available?miner_id=m1&wait=30").json() is None
    assert node.coordinator._polls["m1"] == 4


@pytest.mark.parametrize(
    ("tokens", "blamed_path"),
    [
        ({"prompt_tokens": 10**6, "completion_tokens": 1}, "prompt_tokens"),
        ({"prompt_tokens": 1}, "completion_tokens"),
        ({"completion_tokens": 1}, "prompt_tokens"),
    ],
)
def test_a_value_that_the_market_refuses_is_named_like_one_that_the_parser_does(
    client, node, tokens, blamed_path
):
    place, _ = claimed(client, node)
    report = {"miner_id": "m1", "result": "r", **tokens}
    report["signature"] = {"alg": "Ed25519", "key_id": MINER_KEY.account, "sig": "A" * 86}
    report["completed_at_ms"] = node.now_ms
    answer = client.post(f"{place}/complete", json=report)
    assert (answer.status_code, answer.json()["error_code"]) == (400, "VALIDATION_FAILED")
    (blamed,) = answer.json()["errors"]
    assert blamed["path"] == blamed_path
    assert answer.json()["detail"] == f"{blamed['path']}: {blamed['message']}"


def test_a_heartbeat_that_waits_holds_no_room_of_bodies(node, monkeypatch):
    rooms = []

    async def wait(*_arguments, **_options):
        assert rooms[0]._taken == 0
        raise MarketError("JOB_LEASE_LOST", "it was seen")

    monkeypatch.setattr("api.app.BodyRoom", lambda: rooms.append(BodyRoom()) or rooms[0])
    monkeypatch.setattr(node.coordinator, "heartbeat", wait)
    with node.client("dev", "admin") as client:
        place, _ = claimed(client, node, heartbeat=True)
        answer = client.post(f"{place}/heartbeat", json={"miner_id": "m1", "wait": 30})
    assert answer.json()["error_code"] == "JOB_LEASE_LOST"
