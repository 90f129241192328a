"""Keys and roles, and who may read what, in both modes."""

import pytest

from tests.api_node import ApiNode, run_job

UNKNOWN_JOB = "job_" + "0" * 26
WRITES = (
    ("client", "/v1/jobs", {"prompt": "p"}),
    ("client", f"/v1/jobs/{UNKNOWN_JOB}/cancel", None),
    ("miner", f"/v1/jobs/{UNKNOWN_JOB}/claim", {"miner_id": "x"}),
    ("miner", f"/v1/jobs/{UNKNOWN_JOB}/complete", {"miner_id": "x", "result": "r"}),
    ("miner", f"/v1/jobs/{UNKNOWN_JOB}/heartbeat", {"miner_id": "x"}),
    ("miner", f"/v1/jobs/{UNKNOWN_JOB}/release", {"miner_id": "x"}),
    ("miner", f"/v1/jobs/{UNKNOWN_JOB}/fail", {"miner_id": "x"}),
    ("miner", "/v1/miners/register", {"miner_id": "registered", "capabilities": []}),
    ("miner", "/v1/miners/x/heartbeat", None),
)
READS = (
    *("/health", "/health/ready", "/v1/jobs", "/v1/receipts", "/v1/genesis", "/openapi.yaml"),
    *("/explorer/blocks", "/explorer/transactions", "/explorer/receipts", "/explorer/stats"),
)
PRIVATE = {"prompt", "result", "params", "disclosure"}


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    node = ApiNode(tmp_path_factory.mktemp("access"))
    yield node
    node.close()


@pytest.fixture(scope="module", params=["dev", "strict"])
def client(node, request):
    with node.client(request.param) as client:
        client.mode = request.param
        yield client


def refused(answer) -> tuple[int, str]:
    return answer.status_code, answer.json()["error_code"]


@pytest.mark.parametrize(
    "path", [*READS, "/v1/jobs/available?miner_id=x", f"/v1/jobs/{UNKNOWN_JOB}"]
)
@pytest.mark.parametrize(
    "headers",
    [
        [("X-Api-Key", "aik_wrong_key")],
        [("X-Api-Key", "x" * 300)],
        [("X-Api-Key", "é".encode())],
        [("Authorization", "Bearer aik_wrong_key")],
        [("Authorization", "Basic dXNlcjpwYXNz")],
    ],
)
def test_a_bad_key_is_refused_even_where_none_is_needed(client, path, headers):
    answer = client.get(path, headers=headers)
    assert refused(answer) == (401, "AUTH_INVALID_KEY")
    assert answer.headers["WWW-Authenticate"] == 'Bearer realm="aitbc", error="invalid_token"'


@pytest.mark.parametrize("path", READS)
def test_reads_need_no_key(client, path):
    assert client.get(path).status_code == 200


def test_both_ways_to_send_a_key_mean_the_same(client, node):
    key = node.keys["client"]
    for headers in (
        {"X-Api-Key": key},
        {"Authorization": f"Bearer {key}"},
        {"Authorization": f"bearer  {key}"},
        {"X-Api-Key": key, "Authorization": f"Bearer {key}"},
    ):
        answer = client.post("/v1/jobs", json={"prompt": "p"}, headers=headers)
        assert answer.status_code == 201


def test_an_empty_key_is_no_key(client):
    headers = {"X-Api-Key": "", "Authorization": "Bearer "}
    assert client.get("/health", headers=headers).status_code == 200
    answer = client.post("/v1/jobs", json={"prompt": "p"}, headers=headers)
    assert refused(answer) == (401, "AUTH_MISSING_KEY")


def test_two_different_keys_are_refused_though_both_are_good(client, node):
    client_key, admin_key = node.keys["client"], node.keys["admin"]
    for headers in (
        [("X-Api-Key", client_key), ("Authorization", f"Bearer {admin_key}")],
        [("X-Api-Key", client_key), ("X-Api-Key", admin_key)],
    ):
        assert refused(client.get("/health", headers=headers)) == (401, "AUTH_INVALID_KEY")


@pytest.mark.parametrize(("role", "path", "body"), WRITES)
def test_a_write_without_a_key_is_refused_where_it_needs_one(client, role, path, body):
    answer = client.post(path, json=body)
    if client.mode == "strict" or path == "/v1/jobs":
        assert refused(answer) == (401, "AUTH_MISSING_KEY")
        assert answer.headers["WWW-Authenticate"] == 'Bearer realm="aitbc"'
    else:
        assert answer.status_code in {201, 404}


@pytest.mark.parametrize(("role", "path", "body"), WRITES)
def test_a_key_is_held_to_its_role_where_one_is_needed(client, node, role, path, body):
    other = "miner" if role == "client" else "client"
    answer = client.post(path, json=body, headers={"X-Api-Key": node.keys[other]})
    if client.mode == "strict" or path == "/v1/jobs":
        assert refused(answer) == (403, "AUTH_INSUFFICIENT_SCOPE")
    else:
        assert answer.status_code in {201, 404}
    for own in (role, "admin"):
        name = f"by-{own}-{client.mode}"
        allowed = {**body, "miner_id": name} if body and "miner_id" in body else body
        answer = client.post(path, json=allowed, headers={"X-Api-Key": node.keys[own]})
        assert answer.status_code in {201, 404}


def test_the_key_is_asked_for_before_the_body_is_looked_at(client):
    answer = client.post("/v1/jobs", content=b"x" * 2_000_000)
    assert refused(answer) == (401, "AUTH_MISSING_KEY")


def test_the_owner_and_admins_cancel_and_in_dev_mode_whoever_has_no_key(client, node):
    def submit() -> str:
        made = client.post(
            "/v1/jobs", json={"prompt": "p"}, headers={"X-Api-Key": node.keys["client"]}
        )
        return f"/v1/jobs/{made.json()['job_id']}/cancel"

    stranger = node.create_key("client")
    path = submit()
    assert refused(client.post(path, headers={"X-Api-Key": stranger}))[0] == 403
    answer = client.post(path, headers={"X-Api-Key": node.keys["client"]})
    assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    again = client.post(path, headers={"X-Api-Key": node.keys["admin"]})
    assert again.status_code == 200
    assert client.post(submit()).status_code == (200 if client.mode == "dev" else 401)


def test_text_is_shown_to_the_owner_the_miner_and_admins_only(tmp_path):
    node = ApiNode(tmp_path)
    stranger, other_miner = node.create_key("client"), node.create_key("miner")
    with node.client("strict", "miner") as client:
        job, _ = run_job(client, node, prompt="secret")
        del client.headers["X-Api-Key"]
        place = f"/v1/jobs/{job['job_id']}"
        for key in (node.keys["client"], node.keys["miner"], node.keys["admin"]):
            shown = client.get(place, headers={"X-Api-Key": key}).json()
            assert shown.keys() >= PRIVATE
            (listed,) = client.get("/v1/jobs", headers={"X-Api-Key": key}).json()
            assert (listed["prompt"], listed["result"]) == ("secret", "Rayleigh.")
        for headers in ({}, {"X-Api-Key": stranger}, {"X-Api-Key": other_miner}):
            hidden = client.get(place, headers=headers)
            assert hidden.status_code == 200
            assert hidden.json().keys().isdisjoint(PRIVATE)
            assert hidden.json()["status"] == "completed"
            assert "secret" not in client.get("/v1/jobs", headers=headers).text
    with node.client("dev") as client:
        assert client.get(place).json().keys() >= PRIVATE
    node.close()


def test_a_pending_job_is_offered_to_a_miner_without_its_text_in_strict_mode(tmp_path):
    node = ApiNode(tmp_path)
    with node.client("strict", "miner") as client:
        client.post("/v1/miners/register", json={"miner_id": "m", "capabilities": ["*"]})
        key = {"X-Api-Key": node.keys["client"]}
        job = client.post("/v1/jobs", json={"prompt": "secret"}, headers=key).json()
        offered = client.get("/v1/jobs/available?miner_id=m").json()
        assert offered["job_id"] == job["job_id"]
        assert offered.keys().isdisjoint(PRIVATE)
        claimed = client.post(f"/v1/jobs/{job['job_id']}/claim", json={"miner_id": "m"}).json()
        assert claimed["prompt"] == "secret"
        released = client.post(f"/v1/jobs/{job['job_id']}/release", json={"miner_id": "m"}).json()
        assert (released["status"], "prompt" in released) == ("pending", False)
    node.close()


def test_a_key_lists_its_own_jobs(client, node):
    own = node.create_key("client", "lister")
    headers = {"X-Api-Key": own}
    made = client.post("/v1/jobs", json={"prompt": "mine"}, headers=headers).json()
    listed = client.get("/v1/jobs?owner=me", headers=headers).json()
    assert [job["job_id"] for job in listed] == [made["job_id"]]
    assert refused(client.get("/v1/jobs?owner=me")) == (401, "AUTH_MISSING_KEY")
