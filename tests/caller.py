"""A client, a miner and a reader of one node, over HTTP."""

from __future__ import annotations

import httpx2

from node.p2p.frames import HEIGHT_HEADER

WAIT_MS = 30_000
MAX_WAITS = 4


class Caller:
    """Talks to one node."""

    def __init__(self, url: str, key: str = "") -> None:
        headers = {"X-Api-Key": key} if key else {}
        self.http = httpx2.Client(base_url=url, headers=headers, trust_env=False, timeout=60)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.http.close()

    def post(self, path: str, **body):
        return self.http.post(path, json=body)

    def finish_job(self) -> str:
        """Run one job as client and as miner; returns its receipt's id."""
        miner = {"miner_id": "m1"}
        assert self.post("/v1/miners/register", **miner, capabilities=["*"]).is_success
        job = self.post("/v1/jobs", prompt="Why is the sky blue?").json()["job_id"]
        assert self.post(f"/v1/jobs/{job}/claim", **miner).is_success
        answer = self.post(f"/v1/jobs/{job}/complete", **miner, result="Rayleigh.")
        return answer.raise_for_status().json()["receipt_id"]

    def wait_for_block(self, height: int) -> None:
        """Wait at the block stream, which answers as soon as the block is there."""
        for _ in range(MAX_WAITS):
            answer = self.http.get(f"/p2p/blocks?from={height}&limit=1&wait_ms={WAIT_MS}")
            if int(answer.raise_for_status().headers[HEIGHT_HEADER]) >= height:
                return
        raise AssertionError(f"block {height} is not there after {MAX_WAITS} waits")

    def get(self, path: str) -> httpx2.Response:
        return self.http.get(path)
