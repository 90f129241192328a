"""The explorer over a real node's stores: the fake chain of the other tests promises no more."""

import pytest
from starlette.testclient import TestClient

from tests.api_node import ApiNode, run_job
from tests.crawler import crawl, text_of
from tests.explorer_node import build_faces


@pytest.fixture(name="node")
def start_node(tmp_path):
    node = ApiNode(tmp_path)
    yield node
    node.close()


def test_a_receipt_is_shown_from_pending_to_final_and_every_link_leads_somewhere(node):
    app = build_faces(node)
    with TestClient(app, follow_redirects=False) as client:
        assert "The network test is new" in text_of(client.get("/"))
        job, receipt = run_job(client, node)
        run_job(client, node)
        address = f"/receipts/{receipt['receipt_id']}"
        assert "waiting for the next block." in text_of(client.get(address))
        assert "Miner m1 ran llama3.2 for " in text_of(client.get(address))
        node.start_sealing()
        node.wait_final(1)
        assert "final in block #1." in text_of(client.get(address))
        assert "1 of 1" in text_of(client.get("/blocks/1"))
        for query, target in {
            "1": "/blocks/1",
            job["job_id"]: address,
            receipt["receipt_id"]: address,
            node.views.head().hash: f"/blocks/{node.views.head().height}",
        }.items():
            response = client.get("/search", params={"q": query})
            assert (response.status_code, response.headers["location"]) == (303, target)
        seen = crawl(client, "", ["/", "/search?q=m1"], with_api=True)
        assert {"/miners", f"/accounts/{node.key.account}"} <= seen
        assert {"/v1/genesis", f"/v1{address}/proof", "/explorer/stats", "/blocks/1.json"} <= seen
        assert client.get("/blocks/1.json").json().keys() == {"header", "certificate"}
