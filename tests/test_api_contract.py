"""A client that knows the reference and nothing else walks all its paths on a real server.

Every answer is held to the reference's own schema: status, types, arrays, and no `null` but the
one that is announced.
"""

import http.client
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.api_node import ApiNode
from tests.api_server import serve

REFERENCE = yaml.safe_load(
    (Path(__file__).resolve().parent.parent / "docs/aitbc-reference.yaml").read_text("utf-8")
)
TYPES = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "array": list,
    "object": dict,
}


def resolve(node: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in node:
        target: Any = REFERENCE
        for key in node["$ref"].removeprefix("#/").split("/"):
            target = target[key]
        node = target
    return node


def check(value: Any, schema: dict[str, Any], place: str) -> None:
    """Fail unless `value` is what the schema says; fields that it does not know are free."""
    schema = resolve(schema)
    if value is None:
        assert schema.get("nullable"), f"{place}: null"
        return
    for part in schema.get("allOf", ()):
        check(value, part, place)
    if "type" in schema:
        assert isinstance(value, TYPES[schema["type"]]), f"{place}: {value!r}"
        assert not isinstance(value, bool), f"{place}: {value!r}"
    if "enum" in schema:
        assert value in schema["enum"], f"{place}: {value!r}"
    if schema.get("format") == "date-time":
        assert value.endswith("Z"), f"{place}: {value!r}"
        assert datetime.fromisoformat(value).utcoffset() is not None
    for name in schema.get("required", ()):
        assert name in value, f"{place}: no {name}"
    for name, child in schema.get("properties", {}).items():
        if name in value:
            check(value[name], child, f"{place}.{name}")
    for index, item in enumerate(value if "items" in schema else ()):
        check(item, schema["items"], f"{place}[{index}]")


def holds_null(value: Any) -> bool:
    if isinstance(value, dict):
        return any(holds_null(child) for child in value.values())
    if isinstance(value, list):
        return any(holds_null(child) for child in value)
    return value is None


class ReferenceClient:
    """Stdlib only; the key goes where the reference says `security`, and nowhere else."""

    def __init__(self, port: int, base: str, key: str) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        self._base = base
        self._key = key
        self.walked: set[tuple[str, str, int]] = set()

    def call(
        self, method: str, template: str, body: Any = None, *, query: str = "", key=True, **ids
    ) -> tuple[int, Any]:
        operation = REFERENCE["paths"][template][method.lower()]
        headers = {}
        if key and "security" in operation:
            headers["X-Api-Key"] = self._key
        if body is not None:
            headers["Content-Type"] = "application/json"
        self._connection.request(
            method,
            self._base + template.format(**ids) + query,
            body=None if body is None else json.dumps(body),
            headers=headers,
        )
        response = self._connection.getresponse()
        assert response.headers["Content-Type"] == "application/json"
        value = json.loads(response.read())
        self.walked.add((method, template, response.status))
        documented = resolve(operation["responses"][str(response.status)])
        content = documented["content"]["application/json"]
        check(value, content["schema"], f"{method} {template} {response.status}")
        assert value is None or not holds_null(value)
        return response.status, value

    def close(self) -> None:
        self._connection.close()


@pytest.fixture
def node(tmp_path):
    node = ApiNode(tmp_path)
    node.start_sealing()
    yield node
    node.close()


@pytest.mark.parametrize("base", ["", "/api"])
def test_a_client_written_from_the_reference_alone_walks_every_path(node, base):
    with serve(node.app("dev")) as port:
        client = ReferenceClient(port, base, node.keys["client"])
        try:
            walk(client, node)
        finally:
            client.close()
    walked = {(method.lower(), path) for method, path, status in client.walked if status < 300}
    assert walked == {(m, p) for p, methods in REFERENCE["paths"].items() for m in methods}


def walk(client: ReferenceClient, node: ApiNode) -> None:
    status, health = client.call("GET", "/health")
    assert (status, health["status"]) == (200, "ok")
    walk_jobs(client, node)
    status, page = client.call("GET", "/explorer/blocks", query="?limit=1")
    assert [block["height"] for block in page] == [1]
    assert page[0]["transactions"] == 1
    assert client.call("GET", "/explorer/transactions")[0] == 200
    assert len(client.call("GET", "/explorer/receipts")[1]) == 1
    figures = client.call("GET", "/explorer/stats")[1]
    expected = {"total_jobs": 2, "active_miners": 1, "total_receipts": 1, "block_height": 1}
    assert {name: figures[name] for name in expected} == expected


def walk_jobs(client: ReferenceClient, node: ApiNode) -> None:
    gpu = {"name": "RTX 4090", "memory": "24GB"}
    miner = {"miner_id": "miner-1", "capabilities": ["llama3.2", "gpu"], "gpu_info": gpu}
    assert client.call("POST", "/v1/miners/register", miner)[0] == 201
    assert client.call("POST", "/v1/miners/register", {"miner_id": "x"})[0] == 400
    assert client.call("GET", "/v1/jobs/available", query="?miner_id=miner-1") == (200, None)

    wanted = {
        "prompt": "Why is the sky blue?",
        "model": "llama3.2",
        "params": {"max_tokens": 64, "temperature": 0.5, "top_p": 0.8},
    }
    assert client.call("POST", "/v1/jobs", wanted, key=False)[0] == 401
    assert client.call("POST", "/v1/jobs", {"prompt": 1})[0] == 400
    status, job = client.call("POST", "/v1/jobs", wanted)
    assert (status, job["status"], job["prompt"]) == (201, "pending", wanted["prompt"])
    name = job["job_id"]
    assert client.call("GET", "/v1/jobs/{job_id}", job_id="none")[0] == 404
    status, offered = client.call("GET", "/v1/jobs/available", query="?miner_id=miner-1")
    assert offered["job_id"] == name
    assert {k: offered["params"][k] for k in wanted["params"]} == wanted["params"]

    claim = "/v1/jobs/{job_id}/claim"
    assert client.call("POST", claim, {"miner_id": "miner-1"}, job_id=name)[0] == 200
    other = {**miner, "miner_id": "miner-2", "capabilities": ["other"]}
    client.call("POST", "/v1/miners/register", other)
    assert client.call("POST", claim, {"miner_id": "miner-2"}, job_id=name)[0] == 409
    assert client.call("GET", "/v1/jobs/{job_id}", job_id=name)[1]["status"] == "running"

    node.now_ms += 130_000
    done = {"miner_id": "miner-1", "result": "Rayleigh.", "completed_at": "2024-01-15T10:30:00"}
    complete = "/v1/jobs/{job_id}/complete"
    status, receipt = client.call("POST", complete, done, job_id=name)
    assert status == 200
    again = client.call("POST", complete, done, job_id=name)[1]
    assert again["receipt_id"] == receipt["receipt_id"]
    assert client.call("POST", complete, {**done, "result": "no"}, job_id=name)[0] == 409
    cancel = "/v1/jobs/{job_id}/cancel"
    assert client.call("POST", cancel, job_id=name)[0] == 409
    assert client.call("POST", cancel, job_id="none")[0] == 404
    finished = client.call("GET", "/v1/jobs/{job_id}", job_id=name)[1]
    assert (finished["status"], finished["result"]) == ("completed", "Rayleigh.")
    assert (finished["miner_id"], receipt["provider"]) == ("miner-1", "miner-1")

    unwanted = client.call("POST", "/v1/jobs", {"prompt": "p"})[1]["job_id"]
    status, cancelled = client.call("POST", cancel, job_id=unwanted)
    assert (status, cancelled["status"]) == (200, "cancelled")
    assert client.call("POST", cancel, job_id=unwanted)[0] == 200
    newest_first = [job["job_id"] for job in client.call("GET", "/v1/jobs")[1]]
    assert newest_first == [unwanted, name]
    page = client.call("GET", "/v1/jobs", query="?status=completed&limit=1&offset=0")[1]
    assert [job["job_id"] for job in page] == [name]
    assert client.call("GET", "/v1/jobs", query="?limit=101")[0] == 400

    node.wait_final(1)
    assert client.call("GET", "/v1/receipts/{receipt_id}", receipt_id="none")[0] == 404
    stored = client.call("GET", "/v1/receipts/{receipt_id}", receipt_id=receipt["receipt_id"])[1]
    same = ("receipt_id", "job_id", "provider", "client", "units", "unit_type", "price", "model")
    assert {field: stored[field] for field in same} == {field: receipt[field] for field in same}
    assert (stored["units"], stored["price"]) == (130, 0.065)
    assert stored["completed_at"] - stored["started_at"] == 130
    query = f"?client={receipt['client']}&provider=miner-1&limit=5"
    assert client.call("GET", "/v1/receipts", query=query)[1] == [stored]
    client.call("POST", "/v1/miners/register", miner)
