"""Celery with Redis as broker and for results; the address is in the environment."""

from __future__ import annotations

import os

from celery import Celery

from scripts.bench_peers.work import answer

address = os.environ["BENCH_REDIS"]
app = Celery("bench", broker=address, backend=address)
app.conf.update(
    task_acks_late=True,  # as a lease: a job whose worker dies is not lost
    worker_prefetch_multiplier=16,
    result_expires=60,
    broker_connection_retry_on_startup=True,
    worker_hijack_root_logger=False,
)


@app.task(name="answer_job")
def answer_job(prompt: str, model: str, max_tokens: int) -> dict[str, object]:
    """A job."""
    return answer(prompt, model, max_tokens)
