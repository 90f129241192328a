"""Following a job: its progress at once, and again whenever something has changed."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from api.ports import Market
from ledger.jobs import ENDED, Progress

BEAT_S = 15.0
"""Nothing for so long, and the same progress comes again: a sign of life for whoever waits."""


async def follow_job(
    market: Market, job_id: str, *, beat_s: float = BEAT_S
) -> AsyncGenerator[Progress, None]:
    """Yield how far a job is until it has ended, or the node does.

    Raises:
        MarketError: JOB_NOT_FOUND.
    """
    with market.watch(job_id) as watch:
        while True:
            progress = market.progress(job_id)
            yield progress
            if progress.job.state in ENDED or not await watch.wait(beat_s):
                return
