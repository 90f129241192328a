"""Running jobs as their claims left them, so that completing one need not read it again.

Nothing rests on these being true: what is stored is changed only where it still is as remembered,
and else read anew (`leases.py`). Whatever ends an attempt in this process has it forgotten; what
another process ends is found out then.
"""

from __future__ import annotations

from collections import OrderedDict

from ledger.jobs import Job

MAX_CLAIMS = 1_024
MAX_PROMPT_CHARS = 16 << 10
"""Jobs with longer prompts are not kept: all together are 16 million characters at most."""


class Claims:
    """The newest claims. For the loop's thread."""

    def __init__(self) -> None:
        self._jobs: OrderedDict[bytes, Job] = OrderedDict()

    def keep(self, job: Job) -> None:
        """Remember a job that was just claimed."""
        if len(job.order.prompt) <= MAX_PROMPT_CHARS:
            self._jobs[job.id] = job
            if len(self._jobs) > MAX_CLAIMS:
                self._jobs.popitem(last=False)

    def find(self, job_id: bytes | None, miner_id: str) -> Job | None:
        """Return a job that this miner has claimed, unless it is forgotten."""
        job = self._jobs.get(job_id) if job_id else None
        return job if job is not None and job.miner_id == miner_id else None

    def forget(self, job_id: bytes) -> None:
        """Forget a job whose attempt is over."""
        self._jobs.pop(job_id, None)
