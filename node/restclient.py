"""A node's REST API as other processes use it: submit a job, wait, fetch proofs and checkpoints.

The node need not be trusted: every answer is bounded in size and time, however it drips, and is
taken as bytes that are compressed by nobody.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import msgspec

from explorer_ui.format import visible
from ledger.consistency import MAX_CONSISTENCY_BYTES
from ledger.errors import LedgerError
from ledger.jobs import ENDED
from ledger.note import MAX_NOTE_BYTES

POLL_S = 0.2
LOOK_S = 1
"""How long a node may hold its answer about a job, so that whoever waits hears of other things."""
NOT_FOUND = 404
MAX_ANSWER_BYTES = 32 << 20
"""Of most answers; a proof bundle, the longest, takes half of it."""
MAX_GENESIS_BYTES = 1 << 20
MAX_ANSWER_S = 60.0
"""Most time for one answer."""
_TIMEOUT_S = 30.0
_SHOWN_CHARS = 200
_MAX_REFUSAL_BYTES = 64 << 10
_OK, _NO_CONTENT = 200, 204
_GOOD = frozenset({200, 201, 202})


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
        # Compressed bytes could be a thousand times as many once they are taken apart.
        headers = {"Accept-Encoding": "identity"} | ({"X-Api-Key": key} if key else {})
        self._http = httpx2.Client(headers=headers, timeout=_TIMEOUT_S, trust_env=False)
        self.url = url.rstrip("/")

    def __enter__(self) -> RestClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def health(self) -> dict[str, Any]:
        """Return the node's health."""
        return self._ask("GET", "/health")

    def submit(self, prompt: str, *, model: str | None, params: dict[str, Any]) -> dict[str, Any]:
        """Submit a job and return it."""
        body: dict[str, Any] = {"prompt": prompt, "params": params}
        if model is not None:
            body["model"] = model
        return self._ask("POST", "/v1/jobs", json=body)

    def job(self, job_id: str, *, wait_s: int = 0) -> dict[str, Any]:
        """Return a job: as it is now, or once it has ended or `wait_s` are over."""
        query = f"?wait={wait_s}" if wait_s else ""
        return self._ask("GET", f"/v1/jobs/{job_id}{query}")

    def cancel(self, job_id: str) -> dict[str, Any]:
        """Cancel a job and return it."""
        return self._ask("POST", f"/v1/jobs/{job_id}/cancel")

    @contextlib.contextmanager
    def stream_events(
        self, job_id: str, position: str, *, silence_s: float
    ) -> Iterator[Iterator[bytes] | None]:
        """Open a job's event stream behind a position; None if nothing can follow.

        Raises:
            RequestFailedError: it is refused, or breaks off, or is silent for so long.
        """
        path = f"/v1/jobs/{job_id}/events"
        headers = {"Last-Event-ID": position} if position else {}
        timeout = httpx2.Timeout(_TIMEOUT_S, read=silence_s)
        try:
            with self._http.stream(
                "GET", self.url + path, headers=headers, timeout=timeout
            ) as answer:
                if answer.status_code not in {_OK, _NO_CONTENT}:
                    refusal = next(answer.iter_raw(_MAX_REFUSAL_BYTES), b"")
                    raise RequestFailedError(
                        f"GET {path}: {answer.status_code}: {_describe(refusal)}",
                        status=answer.status_code,
                    )
                yield answer.iter_raw() if answer.status_code == _OK else None
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise self._fail(error) from error

    def wait_for_job(
        self, job_id: str, *, timeout_s: float, progress: Callable[[dict[str, Any]], None]
    ) -> dict[str, Any]:
        """Return the job once it has ended; `progress` sees it at least every `LOOK_S`."""
        deadline = time.monotonic() + timeout_s
        while True:
            asked = time.monotonic()
            job = self.job(job_id, wait_s=LOOK_S)
            progress(job)
            if job["status"] in ENDED:
                return job
            if time.monotonic() >= deadline:
                raise RequestFailedError(
                    f"job {job_id} is still {job['status']} after {timeout_s:.0f} s; "
                    "it is not lost, ask for it later"
                )
            if time.monotonic() - asked < LOOK_S:  # a node that shuts down answers at once
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
                receipt = self._ask("GET", f"/v1/receipts/{receipt_id}")
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
        """Return the bytes at a path, whatever they are."""
        return self._call("GET", path)

    def checkpoint(self) -> bytes:
        """Return the newest checkpoint, whatever it holds."""
        return self._call("GET", "/checkpoint", max_bytes=MAX_NOTE_BYTES)

    def consistency(self, from_size: int, to_size: int) -> bytes:
        """Return a consistency document, whatever it holds."""
        path = f"/v1/consistency?from={from_size}&to={to_size}"
        return self._call("GET", path, max_bytes=MAX_CONSISTENCY_BYTES)

    def genesis(self) -> bytes:
        """Return the genesis document that the node names."""
        return self._call("GET", "/v1/genesis", max_bytes=MAX_GENESIS_BYTES)

    def submit_transaction(self, envelope: bytes) -> dict[str, Any]:
        """Hand in a transaction that proves itself, and return how it stands."""
        headers = {"Content-Type": "application/json"}
        return self._ask("POST", "/v1/transactions", content=envelope, headers=headers)

    def transaction(self, transaction_id: str) -> dict[str, Any]:
        """Return how a transaction stands."""
        return self._ask("GET", f"/v1/transactions/{transaction_id}")

    def proof(self, receipt_id: str) -> bytes:
        """Return the proof bundle of a final receipt."""
        return self._call("GET", f"/v1/receipts/{receipt_id}/proof")

    def _ask(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        data = self._call(method, path, **request)
        try:
            return msgspec.json.decode(data, type=dict[str, Any])
        except (ValueError, RecursionError) as error:
            raise RequestFailedError(f"{self.url}{path}: expected a JSON object") from error

    def _call(
        self, method: str, path: str, *, max_bytes: int = MAX_ANSWER_BYTES, **request: Any
    ) -> bytes:
        deadline = time.monotonic() + MAX_ANSWER_S
        data = bytearray()
        try:
            with self._http.stream(method, self.url + path, **request) as answer:
                for chunk in answer.iter_raw():
                    data += chunk
                    if len(data) > max_bytes:
                        raise RequestFailedError(
                            f"{self.url}{path}: expected at most {max_bytes} bytes"
                        )
                    if time.monotonic() > deadline:
                        raise RequestFailedError(
                            f"{self.url}{path}: the answer took over {MAX_ANSWER_S:.0f} s"
                        )
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise self._fail(error) from error
        except ValueError as error:  # a number that is none, text that is not Unicode
            raise RequestFailedError(f"this cannot be sent: {error}") from error
        if answer.status_code not in _GOOD:
            raise RequestFailedError(
                f"{method} {path}: {answer.status_code}: {_describe(bytes(data))}",
                status=answer.status_code,
            )
        return bytes(data)

    def _fail(self, error: Exception) -> RequestFailedError:
        if isinstance(error, (httpx2.UnsupportedProtocol, httpx2.InvalidURL)):
            return RequestFailedError(f"{self.url}: expected an address like http://127.0.0.1:8001")
        return RequestFailedError(
            f"{self.url}: no answer ({type(error).__name__}); is the node running there?"
        )


def _describe(refusal: bytes) -> str:
    try:
        body = msgspec.json.decode(refusal)
        text = f"{body['detail']} ({body.get('error_code', 'no code')})"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        text = refusal[:_SHOWN_CHARS].decode(errors="replace")
    return visible(text)
