"""Webhooks as clients make, see, try and delete them."""

import base64
import json

import pytest

from api.errors import RequestError
from api.nomarket import NoMarket
from api.resource import ApiSettings
from tests.api_node import run_job

URL = "https://hooks.example/aitbc?token=x"
EVENTS = ["job.completed", "job.failed", "job.cancelled", "receipt.final"]


@pytest.fixture
def client(node):
    with node.client("strict", "client") as client:
        yield client


def make(client, **body) -> dict:
    answer = client.post("/v1/webhooks", json={"url": URL, **body})
    assert answer.status_code == 201, answer.text
    return answer.json()


def refusal(answer) -> tuple[int, str]:
    return answer.status_code, answer.json()["error_code"]


def test_the_secret_is_in_the_first_answer_and_in_no_other(client):
    answer = client.post("/v1/webhooks", json={"url": URL})
    made = answer.json()
    place = f"/v1/webhooks/{made['id']}"
    secret = made.pop("secret")
    assert secret.startswith("whsec_")
    assert len(base64.b64decode(secret.removeprefix("whsec_"), validate=True)) == 32
    assert answer.headers["location"] == place
    assert made["id"].startswith("whk_")
    assert made == {
        "id": made["id"],
        "url": URL,
        "events": EVENTS,
        "created_at": "2026-01-01T00:00:00.000Z",
        "status": "active",
        "waiting": 0,
        "given_up": 0,
    }
    assert client.get(place).json() == made
    assert client.get("/v1/webhooks").json() == [made]
    ping = client.post(f"{place}/ping")
    for text in (client.get(place).text, client.get("/v1/webhooks").text, ping.text):
        assert secret.removeprefix("whsec_") not in text


def test_no_two_webhooks_have_one_secret(client):
    assert len({make(client)["secret"] for _ in range(5)}) == 5


def test_the_events_that_were_asked_for_are_kept_each_once(client):
    asked = ["receipt.final", "job.failed", "receipt.final"]
    assert make(client, events=asked)["events"] == ["receipt.final", "job.failed"]
    assert make(client, events=None)["events"] == EVENTS


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({}, "url"),
        ({"url": 7}, "url"),
        ({"url": None}, "url"),
        ({"url": URL, "events": []}, "events"),
        ({"url": URL, "events": ["job.started"]}, "events[0]"),
        ({"url": URL, "events": ["webhook.ping"]}, "events[0]"),
        ({"url": URL, "events": ["job.failed"] * 17}, "events"),
        ({"url": URL, "events": "job.failed"}, "events"),
    ],
)
def test_a_wrong_field_is_named(client, body, path):
    answer = client.post("/v1/webhooks", json=body)
    assert refusal(answer) == (400, "VALIDATION_FAILED")
    assert answer.json()["errors"][0]["path"] == path


@pytest.mark.parametrize(
    "url",
    [
        "http://hooks.example/",
        "https://127.0.0.1/",
        "https://a:b@hooks.example/",
        "x",
        "https://x y/",
    ],
)
def test_a_url_that_leads_inside_or_nowhere_is_refused(client, url):
    answer = client.post("/v1/webhooks", json={"url": url})
    assert refusal(answer) == (400, "VALIDATION_FAILED")
    assert answer.json()["detail"].startswith("url: ")


def test_a_body_that_is_too_large_or_no_json_is_refused(client):
    long = client.post("/v1/webhooks", json={"url": "https://x/" + "x" * 9000})
    assert refusal(long) == (413, "VALIDATION_BODY_TOO_LARGE")
    plain = client.post("/v1/webhooks", content=b"url=x", headers={"content-type": "text/plain"})
    assert refusal(plain) == (415, "VALIDATION_MEDIA_TYPE")


def test_a_key_has_ten_webhooks_at_most_and_another_key_its_own_ten(client, node):
    made = [make(client) for _ in range(10)]
    assert refusal(client.post("/v1/webhooks", json={"url": URL})) == (409, "WEBHOOK_LIMIT_REACHED")
    with node.client("strict") as other:
        other.headers["X-Api-Key"] = node.create_key("client", "other")
        make(other)
    assert client.delete(f"/v1/webhooks/{made[3]['id']}").status_code == 204
    make(client)


def test_a_webhook_of_another_key_is_as_if_it_were_not_there(client, node):
    made = make(client)
    place = f"/v1/webhooks/{made['id']}"
    with node.client("strict") as other:
        other.headers["X-Api-Key"] = node.create_key("client", "other")
        assert other.get("/v1/webhooks").json() == []
        nowhere = other.get("/v1/webhooks/whk_01KDVDNA0038H3G0ACM2QZPX42")
        for answer in (other.get(place), other.delete(place), other.post(f"{place}/ping")):
            assert refusal(answer) == (404, "WEBHOOK_NOT_FOUND")
            assert answer.json()["detail"] == nowhere.json()["detail"]
    assert client.get(place).status_code == 200
    with node.client("strict", "admin") as admin:
        assert [each["id"] for each in admin.get("/v1/webhooks").json()] == [made["id"]]
        assert admin.delete(place).status_code == 204
    assert refusal(client.get(place)) == (404, "WEBHOOK_NOT_FOUND")


@pytest.mark.parametrize("mode", ["dev", "strict"])
def test_without_a_clients_key_nothing_is_shown_or_done(node, mode):
    calls = [
        *(("GET", "/v1/webhooks"), ("POST", "/v1/webhooks"), ("GET", "/v1/webhooks/x")),
        *(("DELETE", "/v1/webhooks/x"), ("POST", "/v1/webhooks/x/ping")),
    ]
    with node.client(mode) as stranger, node.client(mode, "miner") as miner:
        for method, path in calls:
            assert refusal(stranger.request(method, path)) == (401, "AUTH_MISSING_KEY")
            assert refusal(miner.request(method, path)) == (403, "AUTH_INSUFFICIENT_SCOPE")


@pytest.mark.parametrize(
    "name",
    [
        "x",
        "whk_",
        "whk_01KDVDNA0038H3G0ACM2QZPX4",
        "job_01KDVDNA0038H3G0ACM2QZPX42",
        "whk_" + "Z" * 26,
    ],
)
def test_what_is_no_webhooks_id_is_not_found(client, name):
    assert refusal(client.get(f"/v1/webhooks/{name}")) == (404, "WEBHOOK_NOT_FOUND")


def test_pages_of_webhooks_follow_one_another(client):
    made = [make(client)["id"] for _ in range(5)]
    seen, path = [], "/v1/webhooks?limit=2"
    for _ in range(5):
        answer = client.get(path)
        seen += [each["id"] for each in answer.json()]
        path = answer.links["next"]["url"] if "next" in answer.links else None
        if path is None:
            break
    assert seen == made[::-1]


def test_what_waits_is_counted_and_deleted_with_the_webhook(node):
    with node.client("dev", "client") as client:
        made = make(client)
        place = f"/v1/webhooks/{made['id']}"
        run_job(client, node)
        assert client.get(place).json()["waiting"] == 1
        first = client.post(f"{place}/ping")
        assert first.status_code == 202
        assert client.post(f"{place}/ping").json() == first.json()
        assert client.get(place).json()["waiting"] == 2
        assert client.delete(place).status_code == 204
        assert refusal(client.delete(place)) == (404, "WEBHOOK_NOT_FOUND")


def test_a_disabled_webhook_says_why_and_takes_no_test_event(client, node):
    made = make(client)
    last = {
        "message_id": "msg_1_failed",
        "type": "job.failed",
        "at": "2026-01-01T00:00:00.000Z",
        "attempts": 3,
        "delivered": False,
        "http_status": 410,
    }
    node._store.write(
        lambda c: c.execute(
            "UPDATE webhooks SET disabled_reason = 'gone', last_delivery = ?", (json.dumps(last),)
        )
    ).result()
    shown = client.get(f"/v1/webhooks/{made['id']}").json()
    assert (shown["status"], shown["disabled_reason"]) == ("disabled", "gone")
    assert shown["last_delivery"] == last
    ping = client.post(f"/v1/webhooks/{made['id']}/ping")
    assert refusal(ping) == (409, "WEBHOOK_DISABLED")


def test_a_follower_refuses_all_of_it():
    refusing = NoMarket(RequestError("NODE_IS_FOLLOWER", "ask another"))
    paths = refusing.paths(ApiSettings(mode="dev", version="0", default_model="m"))
    assert {path for path in paths if path.startswith("/v1/webhooks")} == {
        "/v1/webhooks",
        "/v1/webhooks/{webhook_id}",
        "/v1/webhooks/{webhook_id}/ping",
    }
