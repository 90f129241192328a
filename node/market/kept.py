"""Jobs as this process last saw them, so that claiming or completing one need not read it again.

Nothing rests on these being true: what is stored is changed only where it still is as remembered,
and else read anew (`leases.py`). Whatever ends an attempt in this process has it forgotten; what
another process ends is found out then.
"""

from __future__ import annotations

from collections import OrderedDict

from ledger.jobs import Job

MAX_KEPT = 4_096
MAX_PROMPT_CHARS = 4 << 10
"""Jobs with longer prompts are not kept: all together are 16 million characters at most."""


class KeptJobs:
    """The newest of some jobs. For the loop's thread."""

    def __init__(self) -> None:
        self._jobs: OrderedDict[bytes, Job] = OrderedDict()

    def keep(self, job: Job) -> None:
        """Remember a job as it is now."""
        if len(job.order.prompt) <= MAX_PROMPT_CHARS:
            self._jobs[job.id] = job
            if len(self._jobs) > MAX_KEPT:
                self._jobs.popitem(last=False)

    def find(self, job_id: bytes | None) -> Job | None:
        """Return a job, unless it is forgotten."""
        return self._jobs.get(job_id) if job_id else None

    def forget(self, job_id: bytes) -> None:
        """Forget a job that is not so any more."""
        self._jobs.pop(job_id, None)
