"""The node's REST API as the command line uses it: submit a job, wait, fetch the proof."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import httpx2

from ledger.errors import LedgerError

POLL_S = 0.2
NOT_FOUND = 404
_TIMEOUT_S = 30.0
_FINISHED = frozenset({"completed", "failed", "cancelled"})


class RequestFailedError(LedgerError):
    """The node cannot be reached, or refused a request; the message says what to do."""

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        """HTTP status of a refusal."""


class RestClient:
    """Calls one node with one API key. Use as a context manager."""

    def __init__(self, url: str, key: str | None = None) -> None:
        if not (key or "").isascii():
            raise RequestFailedError("the API key holds a character that no key has")
        headers = {"X-Api-Key": key} if key else {}
        self._http = httpx2.Client(
            base_url=url.rstrip("/"), headers=headers, timeout=_TIMEOUT_S, trust_env=False
        )
        self.url = url

    def __enter__(self) -> RestClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def health(self) -> dict[str, Any]:
        """Return the node's health."""
        return dict(self._call("GET", "/health").json())

    def submit(self, prompt: str, *, model: str | None, params: dict[str, Any]) -> dict[str, Any]:
        """Submit a job and return it."""
        body: dict[str, Any] = {"prompt": prompt, "params": params}
        if model is not None:
            body["model"] = model
        return dict(self._call("POST", "/v1/jobs", json=body).json())

    def job(self, job_id: str) -> dict[str, Any]:
        """Return a job."""
        return dict(self._call("GET", f"/v1/jobs/{job_id}").json())

    def wait_for_job(
        self, job_id: str, *, timeout_s: float, progress: Callable[[dict[str, Any]], None]
    ) -> dict[str, Any]:
        """Return the job once it has ended; `progress` sees it after every look."""
        deadline = time.monotonic() + timeout_s
        while True:
            job = self.job(job_id)
            progress(job)
            if job["status"] in _FINISHED:
                return job
            if time.monotonic() >= deadline:
                raise RequestFailedError(
                    f"job {job_id} is still {job['status']} after {timeout_s:.0f} s; "
                    "it is not lost, ask for it later"
                )
            time.sleep(POLL_S)

    def wait_for_receipt(
        self, receipt_id: str, *, timeout_s: float, may_be_unknown: bool = False
    ) -> dict[str, Any]:
        """Return the receipt once it is final.

        `may_be_unknown`: another node took the job, so the receipt comes with its block.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                receipt = dict(self._call("GET", f"/v1/receipts/{receipt_id}").json())
            except RequestFailedError as error:
                if not (may_be_unknown and error.status == NOT_FOUND):
                    raise
                receipt = {"status": "unknown"}
            if receipt["status"] == "final":
                return receipt
            if time.monotonic() >= deadline:
                raise RequestFailedError(f"receipt {receipt_id} is not final yet; ask later")
            time.sleep(POLL_S)

    def fetch(self, path: str) -> bytes:
        """Return the bytes at a path."""
        return bytes(self._call("GET", path).content)

    def submit_transaction(self, envelope: bytes) -> dict[str, Any]:
        """Hand in a transaction that proves itself, and return how it stands."""
        headers = {"Content-Type": "application/json"}
        answer = self._call("POST", "/v1/transactions", content=envelope, headers=headers)
        return dict(answer.json())

    def transaction(self, transaction_id: str) -> dict[str, Any]:
        """Return how a transaction stands."""
        return dict(self._call("GET", f"/v1/transactions/{transaction_id}").json())

    def proof(self, receipt_id: str) -> bytes:
        """Return the proof bundle of a final receipt."""
        return bytes(self._call("GET", f"/v1/receipts/{receipt_id}/proof").content)

    def _call(self, method: str, path: str, **request: Any) -> httpx2.Response:
        try:
            answer = self._http.request(method, path, **request)
        except httpx2.HTTPError as error:
            raise RequestFailedError(
                f"{self.url}: no answer ({type(error).__name__}); is the node running there?"
            ) from error
        except ValueError as error:  # a number that is none, text that is not Unicode
            raise RequestFailedError(f"this cannot be sent: {error}") from error
        if answer.is_error:
            raise RequestFailedError(
                f"{method} {path}: {answer.status_code}: {_detail(answer)}",
                status=answer.status_code,
            )
        return answer


def _detail(answer: httpx2.Response) -> str:
    try:
        body = answer.json()
        return f"{body['detail']} ({body.get('error_code', 'no code')})"
    except (ValueError, KeyError, TypeError):
        return answer.text[:200]
