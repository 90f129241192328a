"""Who the miners are, and how one leaves."""

import pytest

from ledger.store import jobs as job_store
from ledger.store import registry
from tests.api_node import MINER_KEY, build_registration, run_job
from tests.market_node import MINER, MarketNode


@pytest.fixture
def client(node):
    with node.client("strict", "admin") as client:
        yield client


def register(client, name: str = "m1", **headers) -> None:
    body = {"miner_id": name, "capabilities": ["*"], "gpu_info": {"name": "GPU"}}
    client.post("/v1/miners/register", json=body, headers=headers).raise_for_status()


def submit(client) -> str:
    return f"/v1/jobs/{client.post('/v1/jobs', json={'prompt': 'p'}).json()['job_id']}"


def claim(client, place: str, name: str = "m1"):
    return client.post(f"{place}/claim", json={"miner_id": name})


def told(answer) -> tuple[int, str]:
    return answer.status_code, answer.json()["error_code"]


# --- seeing -----------------------------------------------------------------------------------


def test_anybody_sees_who_a_miner_is_but_not_whose(client, node):
    client.post("/v1/miners/register", json=build_registration(node, "m1", MINER_KEY))
    claim(client, submit(client))
    with node.client("strict") as stranger:
        shown = stranger.get("/v1/miners/m1")
        (listed,) = stranger.get("/v1/miners").json()
    assert shown.json() == listed | {
        "audited": {"passed": 0, "failed": 0, "tokens": 0, "exact_tokens": 0}
    }
    assert listed == {
        "miner_id": "m1",
        "capabilities": ["llama3.2"],
        "public_key": MINER_KEY.account,
        "registered_at": "2026-01-01T00:00:00.000Z",
        "last_seen_at": "2026-01-01T00:00:00.000Z",
        "active": True,
        "draining": False,
        "running_jobs": 1,
    }
    assert node.keys["admin"].split("_")[1] not in shown.text


def test_a_miner_that_was_not_heard_of_for_two_minutes_is_not_active(client, node):
    register(client)
    node.now_ms += 120_000
    assert client.get("/v1/miners/m1").json()["active"] is True
    node.now_ms += 1
    assert client.get("/v1/miners/m1").json()["active"] is False


def test_miners_are_listed_by_name_page_by_page(client, monkeypatch):
    names = ["B", "a", "a-1", "b", "z"]
    for name in names[::-1]:
        register(client, name)
    seen, path = [], "/v1/miners?limit=2"
    while path:
        page = client.get(path)
        seen += [miner["miner_id"] for miner in page.json()]
        path = page.links.get("next", {}).get("url")
    assert seen == names
    assert page.headers["X-Total-Count"] == "5"
    assert client.get("/v1/miners?limit=0").json() == []
    monkeypatch.setattr(registry, "MAX_COUNTED_MINERS", 4)
    assert "X-Total-Count" not in client.get("/v1/miners").headers


@pytest.mark.parametrize("name", ["m2", "a b", "%00", "x" * 129])
def test_an_unknown_miner_is_not_found(client, name):
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/drain")):
        answer = client.request(method, f"/v1/miners/{name}{path}")
        assert told(answer) == (404, "MINER_NOT_FOUND")


# --- draining ---------------------------------------------------------------------------------


def test_a_draining_miner_finishes_what_it_runs_and_gets_nothing_more(client):
    register(client)
    running, waiting = submit(client), submit(client)
    claim(client, running)
    drained = client.post("/v1/miners/m1/drain")
    assert (drained.status_code, drained.json()["draining"]) == (200, True)
    assert client.post("/v1/miners/m1/drain").json() == drained.json()
    assert client.get("/v1/jobs/available?miner_id=m1").json() is None
    assert told(claim(client, waiting)) == (409, "MINER_DRAINING")
    assert claim(client, running).status_code == 200
    assert client.get(waiting).json()["queue"]["eligible_miners"] == 0
    done = client.post(f"{running}/complete", json={"miner_id": "m1", "result": "r"})
    assert done.status_code == 200


def test_registering_again_ends_draining(client):
    register(client)
    client.post("/v1/miners/m1/drain")
    register(client)
    assert client.get("/v1/miners/m1").json()["draining"] is False
    assert claim(client, submit(client)).status_code == 200


def test_a_miner_that_waits_for_a_job_when_it_drains_is_offered_none(client, node):
    register(client)
    node.coordinator._store.write(lambda c: registry.drain_miner(c, "m1")).result()
    submit(client)
    assert client.get("/v1/jobs/available?miner_id=m1&wait=0").json() is None


# --- looking for some models --------------------------------------------------------------------


def offered(client, query: str) -> str | None:
    job = client.get(f"/v1/jobs/available?miner_id=m1{query}").json()
    return job and job["model"]


def test_a_miner_whose_other_models_are_busy_looks_for_some_of_them_only(client):
    body = {"miner_id": "m1", "capabilities": ["a", "b", "c"]}
    client.post("/v1/miners/register", json=body).raise_for_status()
    for model in ("a", "b", "d"):
        client.post("/v1/jobs", json={"prompt": "p", "model": model}).raise_for_status()
    assert offered(client, "") == "a"
    assert offered(client, "&model=B:latest") == "b"
    assert offered(client, "&model=c&model=b") == "b"
    assert offered(client, "&model=c") is None
    assert offered(client, "&model=d") is None, "it does not serve this one"


def test_a_miner_of_all_models_looks_for_one(client):
    register(client)
    for model in ("a", "b"):
        client.post("/v1/jobs", json={"prompt": "p", "model": model}).raise_for_status()
    assert offered(client, "&model=b") == "b"


# --- leaving ----------------------------------------------------------------------------------


def test_the_jobs_of_a_miner_that_leaves_are_in_the_queue_at_once(client):
    register(client)
    places = [submit(client) for _ in range(3)]
    for place in places[:2]:
        claim(client, place)
    assert client.delete("/v1/miners/m1").status_code == 204
    assert [client.get(place).json()["status"] for place in places] == ["pending"] * 3
    assert client.get("/v1/miners").json() == []
    assert told(client.delete("/v1/miners/m1")) == (404, "MINER_NOT_FOUND")
    late = client.post(f"{places[0]}/complete", json={"miner_id": "m1", "result": "r"})
    assert told(late) == (404, "MINER_NOT_FOUND")


def test_whoever_takes_the_name_of_a_miner_that_left_delivers_nothing_for_it(client, node):
    """The job remembers who lost it only as long as that is the same miner."""
    register(client)
    lost, held = submit(client), submit(client)
    claim(client, lost)
    client.post(f"{lost}/release", json={"miner_id": "m1"})
    claim(client, held)
    client.delete("/v1/miners/m1")
    register(client, **{"X-Api-Key": node.keys["miner"]})
    for place in (lost, held):
        answer = client.post(f"{place}/complete", json={"miner_id": "m1", "result": "r"})
        assert told(answer) == (409, "JOB_LEASE_LOST")


def test_a_job_that_was_tried_often_enough_fails_when_its_miner_leaves(client):
    place = submit(client)
    for _ in range(3):
        register(client)
        claim(client, place)
        client.delete("/v1/miners/m1")
    job = client.get(place).json()
    assert (job["status"], job["status_reason"]) == ("failed", "max_attempts")


def test_many_jobs_of_a_miner_that_leaves_go_back_in_several_transactions(tmp_path, monkeypatch):
    monkeypatch.setattr(job_store, "MAX_SWEPT_JOBS", 2)
    market = MarketNode(tmp_path)
    market.register()
    jobs = [market.submit() for _ in range(5)]
    for job in jobs:
        market.claim(job)
    market.do(market.coordinator.deregister(MINER, "m1"))
    assert {market.read(job).state for job in jobs} == {"pending"}
    assert {market.read(job).excluded_miner for job in jobs} == {None}
    market.close()


def test_the_receipts_of_a_miner_that_left_stay(client, node):
    _, receipt = run_job(client, node)
    client.delete("/v1/miners/m1")
    shown = client.get(f"/v1/receipts/{receipt['receipt_id']}").json()
    assert shown == receipt


def test_only_the_key_of_a_miner_and_admins_drain_and_delete_it(node):
    other = node.create_key("miner")
    with node.client("strict", "miner") as owner, node.client("strict", "admin") as admin:
        register(owner)
        for method, path in (("POST", "/v1/miners/m1/drain"), ("DELETE", "/v1/miners/m1")):
            for key, code in ((other, 403), (node.keys["client"], 403), ("", 401)):
                answer = owner.request(method, path, headers={"X-Api-Key": key})
                assert answer.status_code == code
        assert admin.post("/v1/miners/m1/drain").status_code == 200
        assert owner.delete("/v1/miners/m1").status_code == 204


def test_lists_of_receipts_say_how_many_there_are(client, node, monkeypatch):
    for number in range(3):
        run_job(client, node, miner=f"m{number % 2}")

    def count(query: str) -> str | None:
        return client.get(f"/v1/receipts{query}").headers.get("X-Total-Count")

    assert count("?limit=1") == "3"
    assert count("?provider=m0") == "2"
    assert count("?provider=m0&model=llama3.2") is None
    node.start_sealing()
    node.wait_final(1)
    assert count("") == "3"
    assert (count("?provider=m1"), count("?client=nobody")) == ("1", "0")
    monkeypatch.setattr("ledger.views.counts.MAX_COUNTED_RECEIPTS", 1)
    monkeypatch.setattr("ledger.views.counts.MAX_COUNTED_PENDING", 1)
    assert count("?model=llama3.2") is None
