"""A node on a port, with a client of OpenAI's paths and miners that do what a test says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx2

from api.following import follow_job
from ledger.jobs import Job
from tests.api_node import ApiNode
from tests.api_server import serve
from tests.caller import Caller

T = TypeVar("T")

MODEL = "llama3.2"
TIMEOUT_S = 30
MAX_COMMENTS = 20
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "Why?"}]}


class ScriptedMiner:
    """A miner without a key, moved by the test."""

    def __init__(self, caller: Caller, name: str, *capabilities: str) -> None:
        self._caller = caller
        self.name = name
        self.job: dict[str, Any] = {}
        body = {"miner_id": name, "capabilities": capabilities or [MODEL]}
        caller.post("/v1/miners/register", **body).raise_for_status()

    def take(self) -> dict[str, Any]:
        """Wait for a job and claim it."""
        job = self.offered(wait_s=30)
        assert job, "there is no job"
        return job

    def offered(self, *, wait_s: int) -> dict[str, Any] | None:
        """Claim the next job; None if there is none, or it was cancelled meanwhile."""
        path = f"/v1/jobs/available?miner_id={self.name}&wait={wait_s}"
        job = self._caller.get(path).raise_for_status().json()
        if job is None:
            return None
        body = {"miner_id": self.name, "heartbeat": True}
        claimed = self._caller.post(f"/v1/jobs/{job['job_id']}/claim", **body)
        if claimed.status_code == 409:
            return None
        self.job = claimed.raise_for_status().json()
        return self.job

    def tell(self, text: str, offset: int = 0) -> None:
        self._call(self.job["job_id"], "text", offset=offset, text=text)

    def complete(self, result: str, **report: Any) -> dict[str, Any]:
        counts = {"prompt_tokens": 4, "completion_tokens": 3}
        return self._call(self.job["job_id"], "complete", result=result, **counts, **report)

    def release(self) -> None:
        self._call(self.job["job_id"], "release")

    def drain(self) -> None:
        self._caller.post(f"/v1/miners/{self.name}/drain").raise_for_status()

    def fail(self, reason: str) -> None:
        self._call(self.job["job_id"], "fail", reason=reason, retryable=False)

    def _call(self, job_id: str, action: str, **body: Any) -> dict[str, Any]:
        answer = self._caller.post(f"/v1/jobs/{job_id}/{action}", miner_id=self.name, **body)
        return answer.raise_for_status().json()


class Stage:
    """The node, its client, and requests that wait."""

    def __init__(self, node: ApiNode, url: str, pool: ThreadPoolExecutor) -> None:
        self.node = node
        self.url = url
        self.http = httpx2.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {node.keys['client']}"},
            trust_env=False,
            timeout=TIMEOUT_S,
        )
        self._miners = Caller(url, node.keys["miner"])
        self._pool = pool

    def close(self) -> None:
        self.http.close()
        self._miners.http.close()

    def miner(self, name: str = "m1", *capabilities: str) -> ScriptedMiner:
        return ScriptedMiner(self._miners, name, *capabilities)

    def post(self, path: str = "/v1/chat/completions", **body: Any) -> httpx2.Response:
        return self.http.post(path, json=body)

    def begin(self, path: str = "/v1/chat/completions", **body: Any) -> Future[httpx2.Response]:
        """Ask in a thread, while the test plays the miner."""
        return self._pool.submit(self.post, path, **body)

    @contextmanager
    def stream(self, path: str = "/v1/chat/completions", **body: Any) -> Iterator[Events]:
        with self.http.stream("POST", path, json={**body, "stream": True}) as answer:
            assert answer.status_code == 200, answer.read()
            yield Events(answer)

    def read(self, job_id: str) -> Job:
        return self.node.coordinator.job(job_id)

    def jobs(self) -> list[Job]:
        return list(self.node.coordinator.jobs(owner=None, state=None, limit=100, offset=0))

    def end_of(self, job: dict[str, Any]) -> Job:
        """Wait until a job has ended."""
        return self.run(self._follow(job["job_id"]))

    async def _follow(self, job_id: str) -> Job:
        async for progress in follow_job(self.node.coordinator, job_id):
            job = progress.job
        return job

    def shut_down(self) -> None:
        """Do what a node does first when it ends."""
        self.loop.call_soon_threadsafe(self.node.coordinator.close)

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the loop of the server."""
        return asyncio.run_coroutine_threadsafe(call, self.loop).result(TIMEOUT_S)

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        loop = self.node.coordinator.feed._loop
        assert loop is not None, "a request binds it"
        return loop


class Events:
    """The events of one stream."""

    def __init__(self, answer: httpx2.Response) -> None:
        self.headers = answer.headers
        self.comments = 0
        self.max_comments = MAX_COMMENTS
        self._lines = answer.iter_lines()

    def next(self) -> Any:
        """Return the next event: JSON, or `[DONE]`, or None at the end."""
        for line in self._lines:
            if line.startswith(":"):
                self.comments += 1
                assert self.comments < self.max_comments, "nothing but signs of life"
            elif line.startswith("data: "):
                data = line.removeprefix("data: ")
                return data if data == "[DONE]" else json.loads(data)
            else:
                assert not line
        return None

    def rest(self) -> list[Any]:
        """Return all events to the end."""
        return list(iter(self.next, None))


@contextmanager
def open_stage(root: Path, **settings: Any) -> Iterator[Stage]:
    """Serve a strict node."""
    node = ApiNode(root)
    app = node.app("strict", **settings)

    async def bound(scope, receive, send) -> None:
        node.coordinator.bind()
        await app(scope, receive, send)

    pool = ThreadPoolExecutor(max_workers=8)
    try:
        with serve(bound) as port, pool:
            stage = Stage(node, f"http://127.0.0.1:{port}", pool)
            try:
                yield stage
            finally:
                stage.close()
    finally:
        node.close()
