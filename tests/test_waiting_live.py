"""Those who wait, on real nodes that are stopped, killed and started again under them."""

import asyncio
import socket
import threading
from collections.abc import Callable

import httpx2
import pytest

from api import events
from miner.client import CoordinatorClient
from miner.engine import Completion
from miner.worker import Worker
from node import jobstream
from node.apikeys import issue_key
from node.datadir import create_data_directory
from node.jobstream import follow_job
from node.local.ports import choose_ports
from node.restclient import RestClient
from tests.authorities import serve_node
from tests.builders import build_key
from tests.caller import Caller
from tests.live import GENESIS_TIME_MS, LiveNode
from tests.scripted_engine import ScriptedEngine, until_stopped

MODEL = "tiny:1b"
PATIENCE_S = 60


class CountingClient(CoordinatorClient):
    """Counts its heartbeats."""

    heartbeats = 0

    async def heartbeat(self, job_id, miner_id, *, wait_s=0):
        self.heartbeats += 1
        return await super().heartbeat(job_id, miner_id, wait_s=wait_s)


@pytest.fixture
def node(tmp_path):
    """A strict node that keeps its address when it is started again."""
    (port,) = choose_ports(0, 1)
    live = LiveNode(tmp_path / "data", "--mode", "strict", "--port", str(port))
    live.keys = {role: live.create_key(role, role) for role in ("client", "miner")}
    live.start()
    try:
        yield live
    finally:
        live.stop()


class Mine:
    """A worker in a thread of its own."""

    def __init__(self, node: LiveNode, engine: ScriptedEngine) -> None:
        self._node, self._engine = node, engine
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._work()))
        self.client: CountingClient

    async def _work(self) -> None:
        self.client = CountingClient(url=self._node.url, api_key=self._node.keys["miner"])
        self._loop = asyncio.get_running_loop()
        self._worker = Worker(
            client=self.client,
            miner_id="m1",
            key=build_key("miner"),
            engines={MODEL: self._engine},
            clock_ms=lambda: 0,
        )
        self._ready.set()
        try:
            await self._worker.run()
        finally:
            await self.client.close()

    def __enter__(self):
        self._thread.start()
        assert self._ready.wait(PATIENCE_S)
        return self

    def __exit__(self, *_):
        self._loop.call_soon_threadsafe(self._worker.stop)
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()


class Reader:
    """Follows a job as `aitbc submit --wait` does, in a thread of its own."""

    def __init__(self, node: LiveNode, job_id: str) -> None:
        self.text = ""
        self.names: list[str] = []
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._read, args=(node, job_id))
        self._thread.start()

    def _read(self, node: LiveNode, job_id: str) -> None:
        with RestClient(node.url, node.keys["client"]) as client:
            for event in follow_job(client, job_id, timeout_s=PATIENCE_S):
                with self._changed:
                    self.names.append(event.data.get("status", event.name))
                    if event.name == "token":
                        assert event.data["offset"] == len(self.text), "nothing twice or left out"
                        self.text += event.data["text"]
                    self._changed.notify_all()

    def wait_for(self, text: str) -> None:
        self._wait(lambda: self.text == text)

    def wait_for_first(self) -> None:
        self._wait(lambda: bool(self.names))

    def _wait(self, holds: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(holds, PATIENCE_S)

    def join(self) -> None:
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()


def submit(node: LiveNode) -> str:
    with RestClient(node.url, node.keys["client"]) as client:
        return client.submit("Why?", model=MODEL, params={})["job_id"]


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_a_streamed_job_goes_on_where_it_was_after_the_node_was_started_again(node, how):
    def script(_should_stop: Callable[[], bool]) -> Completion:
        engine.say("Air ")
        reader.wait_for("Air ")
        getattr(node, how)()
        node.start()
        for piece in ("scatters ", "blue"):
            engine.say(piece)
        reader.wait_for("Air scatters blue")
        return Completion(
            text="Air scatters blue light.", token_ids=(5, 2), prompt_tokens=4, finish_reason="stop"
        )

    engine = ScriptedEngine(script)
    reader = Reader(node, submit(node))
    reader.wait_for_first()
    with Mine(node, engine):
        reader.join()
    assert reader.text == "Air scatters blue light."
    told = [name for name in reader.names if name != "token"]
    assert told == ["pending", "running", "completed", "pending", "final"]


def test_a_cancelled_job_leaves_its_miner_idle_long_before_the_next_heartbeat(node):
    running, stopped = threading.Event(), threading.Event()
    second = threading.Event()

    def script(should_stop: Callable[[], bool]) -> Completion:
        if running.is_set():
            second.set()
            return until_stopped(should_stop)
        running.set()
        completion = until_stopped(should_stop)
        stopped.set()
        return completion

    with (
        Mine(node, ScriptedEngine(script)) as mine,
        RestClient(node.url, node.keys["client"]) as client,
    ):
        first = submit(node)
        assert running.wait(PATIENCE_S)
        beats = mine.client.heartbeats
        client.cancel(first)
        assert stopped.wait(PATIENCE_S)
        assert mine.client.heartbeats <= max(beats, 1), "it was told, and did not ask"
        submit(node)
        assert second.wait(PATIENCE_S), "idle, it takes the next job"


def test_a_node_that_stops_ends_streams_and_polls_properly(node):
    job = submit(node)
    port = int(node.url.rsplit(":", 1)[-1])
    requests = {"poll": b"?wait=30", "events": b"/events"}
    open_ones = {}
    for name, rest in requests.items():
        connection = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
        connection.sendall(b"GET /v1/jobs/%s%s HTTP/1.1\r\nhost: x\r\n\r\n" % (job.encode(), rest))
        open_ones[name] = connection
    stream = open_ones["events"].recv(65_536)
    while b"event: status" not in stream:
        stream += open_ones["events"].recv(65_536)
    assert node.stop() == 0
    ends = {}
    for name, connection in open_ones.items():
        data = b""
        while piece := connection.recv(65_536):
            data += piece
        ends[name] = data
        connection.close()
    assert ends["events"].endswith(b"0\r\n\r\n"), "the last chunk, not a broken connection"
    assert ends["poll"].startswith(b"HTTP/1.1 200")
    assert b'"status":"pending"' in ends["poll"]
    node.start()
    with httpx2.Client(base_url=node.url, trust_env=False) as http:
        assert http.get(f"/v1/jobs/{job}").json()["status"] == "pending"


def test_a_final_receipt_is_told_when_its_block_comes(tmp_path, monkeypatch):
    monkeypatch.setattr(events, "BEAT_S", 3_600.0)  # so nothing but the block wakes the stream
    monkeypatch.setattr(jobstream, "SILENCE_S", 3_600.0)
    data = create_data_directory(
        tmp_path / "data", network="test", name="first", now_ms=GENESIS_TIME_MS
    )
    key = issue_key(data, "admin", client=None, now_ms=GENESIS_TIME_MS)
    (port,) = choose_ports(0, 1)
    with (
        serve_node(data, f"http://127.0.0.1:{port}", batch_delay_ms=500),
        Caller(f"http://127.0.0.1:{port}", key) as caller,
        RestClient(f"http://127.0.0.1:{port}", key) as client,
    ):
        caller.post("/v1/miners/register", miner_id="m1", capabilities=["*"]).raise_for_status()
        job = client.submit("Why?", model=None, params={})["job_id"]
        names = []
        for event in follow_job(client, job, timeout_s=PATIENCE_S):
            names.append(event.data.get("status", event.name))
            if names == ["pending"]:
                caller.post(f"/v1/jobs/{job}/claim", miner_id="m1").raise_for_status()
                done = caller.post(f"/v1/jobs/{job}/complete", miner_id="m1", result="Rayleigh.")
                done.raise_for_status()
    assert names[-4:] == ["token", "completed", "pending", "final"]
