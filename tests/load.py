"""Clients and miners of a live node, at work until it dies."""

from __future__ import annotations

import contextlib
import threading

import httpx2

WORKERS = 4


class Load:
    """Workers that submit, claim and complete jobs until the node dies, and note what it said."""

    def __init__(self, url: str, key: str) -> None:
        self.jobs: list[str] = []
        self.receipts: dict[str, str] = {}
        self._url = url
        self._key = key
        self._lock = threading.Condition()
        self._threads = [
            threading.Thread(target=self._work, args=(f"miner-{i}",)) for i in range(WORKERS)
        ]

    def run_until(self, acknowledgements: int) -> None:
        """Start; return once so many jobs and receipts were acknowledged."""
        for thread in self._threads:
            thread.start()
        with self._lock:
            assert self._lock.wait_for(
                lambda: len(self.jobs) + len(self.receipts) >= acknowledgements, timeout=60
            )

    def join(self) -> None:
        for thread in self._threads:
            thread.join(timeout=60)

    def _work(self, miner_id: str) -> None:
        headers = {"X-Api-Key": self._key}
        with (
            contextlib.suppress(httpx2.HTTPError),
            httpx2.Client(base_url=self._url, headers=headers, trust_env=False) as http,
        ):
            body = {"miner_id": miner_id, "capabilities": ["*"]}
            http.post("/v1/miners/register", json=body).raise_for_status()
            while True:
                self._one_job(http, miner_id)

    def _one_job(self, http: httpx2.Client, miner_id: str) -> None:
        job = http.post("/v1/jobs", json={"prompt": "p"}).raise_for_status().json()
        with self._lock:
            self.jobs.append(job["job_id"])
            self._lock.notify()
        path = f"/v1/jobs/{job['job_id']}"
        body = {"miner_id": miner_id}
        http.post(f"{path}/claim", json=body).raise_for_status()
        done = http.post(f"{path}/complete", json={**body, "result": "r"}).raise_for_status().json()
        with self._lock:
            self.receipts[job["job_id"]] = done["receipt_id"]
            self._lock.notify()
