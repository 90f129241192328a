"""A node's REST API as a miner uses it: one method per call, every failure in three kinds.

No answer or 429/5xx: `UnreachableError`, worth trying again. 409 of a job: `LeaseLostError`.
Other 4xx: `RefusedError`. What does not parse: `BadAnswerError`. Their texts go to a log, so they
never quote an answer but for the node's own words of refusal, cut to one short line.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias, TypeVar
from urllib.parse import quote

import httpx2
import msgspec

from miner.audit.order import AuditOffer, AuditOrder
from miner.errors import BadAnswerError, LeaseLostError, RefusedError, UnreachableError
from miner.wire import ClaimedJob, ErrorAnswer, Health, Job, Lease, TextAnswer

T = TypeVar("T")
Query: TypeAlias = dict[str, str | int | Sequence[str | int | float | bool | None]]

MAX_ANSWER_BYTES: Final = 16 << 20
MAX_RETRY_AFTER_S: Final = 300.0
CONNECT_TIMEOUT_S: Final = 10.0
ANSWER_TIMEOUT_S: Final = 30.0
BEAT_TIMEOUT_S: Final = 10.0
"""Beyond what a heartbeat waits: it must be tried again before the lease is over."""
KEPT_CONNECTIONS: Final = 64
MAX_SHOWN: Final = 300
"""Characters of a node's refusal that are shown."""


class CoordinatorClient:
    """Calls one node with one API key."""

    def __init__(self, *, url: str, api_key: str) -> None:
        self._http = httpx2.AsyncClient(
            base_url=url.rstrip("/"),
            headers={"X-Api-Key": api_key, "Accept": "application/json"},
            timeout=httpx2.Timeout(ANSWER_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
            # Every job has a heartbeat that waits and text on its way; the worker bounds the jobs.
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=KEPT_CONNECTIONS),
            # A proxy that the environment names must not see what is meant for this machine.
            trust_env=not is_loopback(url),
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def genesis(self) -> str:
        """The genesis hash of the node's chain."""
        return _parse(await self._call("GET", "/health"), Health).genesis

    async def register(self, body: Mapping[str, Any]) -> None:
        """Make this miner, its models and its account known."""
        await self._call("POST", "/v1/miners/register", body=body)

    async def available(
        self, miner_id: str, *, wait_s: int, models: Sequence[str] = ()
    ) -> Job | None:
        """A job this miner could do, waiting up to `wait_s` seconds for one.

        With `models` only jobs for one of these.
        """
        query: Query = {"miner_id": miner_id, "wait": wait_s}
        if models:
            query |= {"model": list(models)}
        answer = await self._call(
            "GET", "/v1/jobs/available", query=query, timeout_s=ANSWER_TIMEOUT_S + wait_s
        )
        return None if answer.strip() == b"null" else _parse(answer, Job)

    async def claim(self, job_id: str, miner_id: str) -> ClaimedJob:
        """Take the job, promising heartbeats."""
        body = {"miner_id": miner_id, "heartbeat": True}
        return _parse(await self._call("POST", _job_path(job_id, "claim"), body=body), ClaimedJob)

    async def heartbeat(self, job_id: str, miner_id: str, *, wait_s: int = 0) -> Lease:
        """Renew the lease, then wait up to `wait_s` seconds for the job to be lost."""
        body = {"miner_id": miner_id, "wait": wait_s}
        answer = await self._call(
            "POST", _job_path(job_id, "heartbeat"), body=body, timeout_s=BEAT_TIMEOUT_S + wait_s
        )
        return _parse(answer, Lease)

    async def tell(self, job_id: str, miner_id: str, *, offset: int, text: str) -> int:
        """Tell a piece of the answer; returns how many characters of it the node knows."""
        body = {"miner_id": miner_id, "offset": offset, "text": text}
        answer = await self._call("POST", _job_path(job_id, "text"), body=body)
        return _parse(answer, TextAnswer).received

    async def complete(self, job_id: str, body: Mapping[str, Any]) -> None:
        """Hand in the result; the same body again changes nothing."""
        await self._call("POST", _job_path(job_id, "complete"), body=body)

    async def fail(self, job_id: str, miner_id: str, *, reason: str, retryable: bool) -> None:
        """Say that the job cannot be done, here or by anybody."""
        body = {"miner_id": miner_id, "reason": reason, "retryable": retryable}
        await self._call("POST", _job_path(job_id, "fail"), body=body)

    async def release(self, job_id: str, miner_id: str) -> None:
        """Give the job back for another miner."""
        await self._call("POST", _job_path(job_id, "release"), body={"miner_id": miner_id})

    async def available_audit(self, miner_id: str, *, wait_s: int) -> AuditOffer | None:
        """An audit this miner could do, waiting up to `wait_s` seconds for one."""
        query: Query = {"miner_id": miner_id, "wait": wait_s}
        answer = await self._call(
            "GET", "/v1/audits/available", query=query, timeout_s=ANSWER_TIMEOUT_S + wait_s
        )
        return None if answer.strip() == b"null" else _parse(answer, AuditOffer)

    async def claim_audit(self, audit_id: str, miner_id: str) -> AuditOrder:
        """Take the audit, with everything that is needed for it."""
        body = {"miner_id": miner_id}
        return _parse(
            await self._call("POST", _audit_path(audit_id, "claim"), body=body), AuditOrder
        )

    async def complete_audit(self, audit_id: str, body: Mapping[str, Any]) -> None:
        """Hand in what was found; the same body again changes nothing."""
        await self._call("POST", _audit_path(audit_id, "complete"), body=body)

    async def release_audit(self, audit_id: str, miner_id: str, *, reason: str) -> None:
        """Give the audit back for another miner."""
        body = {"miner_id": miner_id, "reason": reason}
        await self._call("POST", _audit_path(audit_id, "release"), body=body)

    async def drain(self, miner_id: str) -> None:
        """Ask to be offered nothing more."""
        await self._call("POST", f"/v1/miners/{quote(miner_id, safe='')}/drain")

    async def _call(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        query: Query | None = None,
        timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> bytes:
        request = self._http.build_request(
            method,
            path,
            content=None if body is None else msgspec.json.encode(body),
            headers={} if body is None else {"Content-Type": "application/json"},
            params=query,
            timeout=httpx2.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S),
        )
        place = f"{method} {request.url.copy_with(query=None, userinfo=b'')}"
        try:
            answer = await self._http.send(request, stream=True)
            try:
                content = await _read(answer, place)
            finally:
                await answer.aclose()
        except httpx2.HTTPError as error:
            # What breaks the protocol may be a prompt, and its error quotes it.
            quiet = isinstance(error, httpx2.ProtocolError) or not str(error)
            text = type(error).__name__ if quiet else str(error)
            raise UnreachableError(f"{place}: {text}") from error
        if answer.is_success:
            return content
        raise _refusal(answer, content, place)


def is_loopback(url: str) -> bool:
    """Whether a URL's host is this machine's own."""
    host = httpx2.URL(url).host
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _parse(content: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(content, type=kind)
    except ValueError as error:
        raise BadAnswerError(f"the node's answer is not a {kind.__name__}: {error}") from error


async def _read(answer: httpx2.Response, place: str) -> bytes:
    content = bytearray()
    async for piece in answer.aiter_bytes():
        content += piece
        if len(content) > MAX_ANSWER_BYTES:
            raise BadAnswerError(f"{place}: answer is over {MAX_ANSWER_BYTES} bytes")
    return bytes(content)


def _refusal(answer: httpx2.Response, content: bytes, place: str) -> Exception:
    status = answer.status_code
    try:
        said = msgspec.json.decode(content, type=ErrorAnswer)
    except ValueError:
        said = ErrorAnswer(detail=answer.reason_phrase)
    detail = " ".join(said.detail[:MAX_SHOWN].split())
    text = f"{place}: {status} {said.error_code} {detail}".rstrip()
    if status == httpx2.codes.TOO_MANY_REQUESTS or answer.is_server_error:
        return UnreachableError(
            text,
            retry_after_s=_retry_after(answer.headers),
            is_refusal=status == httpx2.codes.SERVICE_UNAVAILABLE
            and said.error_code != "SYSTEM_SHUTTING_DOWN",
        )
    if not answer.is_client_error:
        return BadAnswerError(text)
    kind = LeaseLostError if status == httpx2.codes.CONFLICT else RefusedError
    return kind(text, status=status, error_code=said.error_code)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """The header's seconds; its other form, a date, is not used by nodes."""
    value = headers.get("retry-after", "")
    return min(float(value), MAX_RETRY_AFTER_S) if value.isascii() and value.isdigit() else None


def _job_path(job_id: str, action: str) -> str:
    return f"/v1/jobs/{quote(job_id, safe='')}/{action}"


def _audit_path(audit_id: str, action: str) -> str:
    return f"/v1/audits/{quote(audit_id, safe='')}/{action}"
