"""A job that belongs to one request: whoever asked waits for it, and when nobody waits it ends.

However a request is left, its job has ended by then: completed, failed, or cancelled here. Clients
that ask again by themselves are told not to wherever that would make a second job of one that ran.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Literal

from api.answers import Header
from api.errors import RequestError
from api.following import follow_job
from api.openai.errors import NO_RETRY
from api.ports import Market
from api.requests import Request
from api.waiting import wait_for_news
from ledger.errors import MarketError, StoreError
from ledger.jobs import ENDED, Job, Progress
from ledger.transaction import ReceiptPayload

logger = logging.getLogger("aitbc.api")

Outcome = Literal["closing", "ended", "late"]


class JobRun:
    """A submitted job, on its way to an answer."""

    def __init__(self, market: Market, request: Request, job: Job) -> None:
        self._market = market
        self._request = request
        self.job = job
        """As far as it is known to be."""

    @property
    def headers(self) -> tuple[Header, ...]:
        """What is known from the start: a receipt's id follows from the job's."""
        receipt_id = self._market.receipt_id(self.job)
        return ((b"x-job-id", self.job.job_id.encode()), (b"x-receipt-id", receipt_id.encode()))

    @property
    def receipt(self) -> ReceiptPayload:
        """The receipt of a completed job."""
        assert self.job.receipt_id is not None, "a completed job has a receipt"
        receipt = self._market.receipt(self.job.receipt_id)
        assert receipt is not None, "a receipt is in the mempool or on the chain"
        return receipt.payload

    async def finish(self, *, timeout_s: float) -> None:
        """Return once the job is completed.

        Raises:
            ClientGoneError: nobody waits any more.
            RequestError: JOB_FAILED, JOB_TIMEOUT, JOB_ALREADY_CANCELLED, SYSTEM_SHUTTING_DOWN.
        """
        try:
            outcome = await self._wait(timeout_s)
        finally:
            await self.abandon()
        if self.job.state != "completed":
            raise self.explain(outcome)

    async def _wait(self, timeout_s: float) -> Outcome:
        now = asyncio.get_running_loop().time
        deadline = now() + timeout_s
        with self._market.watch(self.job.job_id, text=False) as watch:
            while True:
                if self._has_ended():
                    return "ended"
                if now() >= deadline:
                    return "late"
                if not await wait_for_news(watch, self._request, deadline - now()):
                    return "closing"

    def _has_ended(self) -> bool:
        job = self._market.job(self.job.job_id)
        if job.state in ENDED:
            self.job = job
        return job.state in ENDED

    async def follow(self) -> AsyncGenerator[Progress, None]:
        """Yield how far the job is, until it has ended or the node does."""
        async with aclosing(follow_job(self._market, self.job.job_id)) as news:
            async for progress in news:
                self.job = progress.job
                yield progress

    async def abandon(self) -> None:
        """Cancel the job, unless it has ended."""
        if self.job.state not in ENDED:
            # Whoever gives up waiting for this must not take it back.
            await asyncio.shield(asyncio.ensure_future(self._cancel()))

    async def _cancel(self) -> None:
        try:
            self.job = await self._market.cancel(self._request.caller, self.job.job_id)
        except MarketError:
            self.job = self._market.job(self.job.job_id)  # it has ended just now

    async def leave(self) -> None:
        """Abandon the job where there is no answer left that could tell of a failure."""
        await asyncio.shield(asyncio.ensure_future(self._leave()))

    async def _leave(self) -> None:
        try:
            await self.abandon()
        except StoreError as error:
            logger.error("job %s runs on, for nobody: %s", self.job.job_id, error)  # noqa: TRY400

    def explain(self, outcome: Outcome) -> RequestError:
        """Return why an abandoned or failed job gives no answer."""
        job, headers = self.job, self.headers[:1]
        if job.state == "failed":
            why = f"job {job.job_id} failed: {job.status_reason}"
            why += f": {job.error}" if job.error else ""
            return RequestError("JOB_FAILED", why, headers=(*headers, NO_RETRY))
        if outcome == "late":
            why = f"job {job.job_id} took too long and was cancelled; stream long answers"
            return RequestError("JOB_TIMEOUT", why, headers=(*headers, NO_RETRY))
        if outcome == "closing":
            # Asking again is right: this job costs nothing.
            why = f"this node shuts down; job {job.job_id} was cancelled"
            return RequestError("SYSTEM_SHUTTING_DOWN", why, headers=headers)
        why = f"job {job.job_id} was cancelled by its owner"
        return RequestError("JOB_ALREADY_CANCELLED", why, headers=(*headers, NO_RETRY))
