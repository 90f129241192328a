"""Reads checkpoints and proofs from a node that is not trusted: every answer is bounded."""

from __future__ import annotations

import time
from types import TracebackType

import httpx2

from ledger.consistency import MAX_CONSISTENCY_BYTES
from ledger.note import MAX_NOTE_BYTES
from node.restclient import RequestFailedError

MAX_GENESIS_BYTES = 1 << 20
MAX_ANSWER_S = 60.0
"""Most time for one answer, however slowly it drips."""
_TIMEOUT_S = 10.0
_SHOWN_CHARS = 200


class TreeClient:
    """Calls one node. Use as a context manager, in one thread."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        # Compressed bytes could be a thousand times as many once they are taken apart.
        self._http = httpx2.Client(
            timeout=_TIMEOUT_S, trust_env=False, headers={"Accept-Encoding": "identity"}
        )

    def __enter__(self) -> TreeClient:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _e: BaseException | None, _t: TracebackType | None
    ) -> None:
        self._http.close()

    def checkpoint(self) -> bytes:
        """Return the newest checkpoint, whatever it holds."""
        return self._get("/checkpoint", MAX_NOTE_BYTES)

    def consistency(self, from_size: int, to_size: int) -> bytes:
        """Return a consistency document, whatever it holds."""
        path = f"/v1/consistency?from={from_size}&to={to_size}"
        return self._get(path, MAX_CONSISTENCY_BYTES)

    def genesis(self) -> bytes:
        """Return the genesis document that the node names."""
        return self._get("/v1/genesis", MAX_GENESIS_BYTES)

    def _get(self, path: str, max_bytes: int) -> bytes:
        deadline = time.monotonic() + MAX_ANSWER_S
        data = bytearray()
        try:
            with self._http.stream("GET", self.url + path) as answer:
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
        except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
            raise RequestFailedError(
                f"{self.url}: no answer ({type(error).__name__}); is the node running there?"
            ) from error
        if answer.status_code != httpx2.codes.OK:
            shown = bytes(data[:_SHOWN_CHARS]).decode("ascii", "backslashreplace")
            raise RequestFailedError(f"{self.url}{path}: {answer.status_code}: {shown!r}")
        return bytes(data)
