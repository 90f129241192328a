"""Webhooks of a node in a process of its own: it is killed, and no event is lost."""

from __future__ import annotations

import threading

import pytest

from tests.caller import Caller
from tests.live import LiveNode
from tests.webhook_receiver import receiver, reply, verify

KILLS = 4


@pytest.fixture
def node(tmp_path):
    live = LiveNode(tmp_path / "data")
    yield live
    live.stop()


def finished(client: Caller, count: int) -> list[str]:
    """Run jobs; returns the ids of the messages that tell of their ends."""
    receipts = [client.finish_job() for _ in range(count)]
    jobs = [client.get(f"/v1/receipts/{receipt}").json()["job_id"] for receipt in receipts]
    ulids = [job.removeprefix("job_") for job in jobs]
    return [f"msg_{ulid}_{what}" for ulid in ulids for what in ("completed", "final")]


def test_no_end_of_a_job_goes_untold_when_the_node_is_killed(node):
    key = node.create_key("admin")
    expected: list[str] = []
    secret = None
    with receiver() as server:
        for _ in range(KILLS):
            node.start()
            with Caller(node.url, key) as client:
                if secret is None:
                    secret = client.post("/v1/webhooks", url=server.url).json()["secret"]
                expected += finished(client, 3)
            node.kill()
        node.start()
        server.wait_for(lambda: set(expected) <= set(server.ids))
        assert node.stop() == 0
        assert set(server.ids) == set(expected)
        assert all(verify(secret, heard) for heard in server.heard)
        bodies = {heard.id: heard.body for heard in server.heard}
        assert all(heard.body == bodies[heard.id] for heard in server.heard)


def test_a_delivery_that_was_not_answered_before_the_kill_comes_again_under_its_id(node):
    key = node.create_key("client")
    with receiver() as server:
        killed = threading.Event()
        server.answer = lambda _handler: killed.wait()
        node.start()
        with Caller(node.url, key) as client:
            client.post("/v1/webhooks", url=server.url)
            job = client.post("/v1/jobs", prompt="p").json()["job_id"]
            client.post(f"/v1/jobs/{job}/cancel")
        server.wait_for(lambda: len(server.heard) == 1)
        node.kill()
        killed.set()
        server.answer = reply(204)
        node.start()
        server.wait_for(lambda: len(server.heard) == 2)
        assert node.stop() == 0
    assert len(set(server.ids)) == 1


def test_a_node_stops_at_once_while_a_receiver_hangs_and_delivers_at_its_next_start(node):
    key = node.create_key("client")
    with receiver() as server:
        server.answer = lambda _handler: server.released.wait()
        node.start()
        with Caller(node.url, key) as client:
            client.post("/v1/webhooks", url=server.url)
            job = client.post("/v1/jobs", prompt="p").json()["job_id"]
            client.post(f"/v1/jobs/{job}/cancel")
        server.wait_for(lambda: len(server.heard) == 1)
        assert node.stop() == 0
        server.answer = reply(204)
        node.start()
        server.wait_for(lambda: len(server.heard) == 2)


def test_a_strict_node_leads_nowhere_inside_unless_its_operator_says_so(tmp_path):
    with receiver() as server:
        for options, status in (((), 400), (("--webhook-allow-private",), 201)):
            node = LiveNode(tmp_path / str(status), "--mode", "strict", *options)
            key = node.create_key("client")
            node.start()
            with Caller(node.url, key) as client:
                made = client.post("/v1/webhooks", url=server.url)
                assert made.status_code == status
                if status == 201:
                    client.post(f"/v1/webhooks/{made.json()['id']}/ping")
                    server.wait_for(lambda: len(server.heard) == 1)
            assert node.stop() == 0
