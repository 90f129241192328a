"""Submits jobs to Celery and waits for their results, always the oldest of those under way.

One thread does all of it: Celery's connection for results is not made for several.
"""

from __future__ import annotations

import gc
import os
import time
from collections import deque
from typing import Any

from scripts.bench_peers.runners.celery_app import answer_job
from scripts.bench_peers.work import (
    MAX_TOKENS,
    MODEL,
    PROMPT,
    TEXT,
    WARM_UP_S,
    Report,
    read_order,
    say_begin,
    say_report,
)

RESULT_TIMEOUT_S = 60


def main() -> None:
    """Warm up, then measure."""
    # A result that the collector finds while another is awaited unsubscribes, within a lock that is
    # taken: Celery would wait for itself, for ever.
    gc.disable()
    order = read_order()
    go_on(order.connections, WARM_UP_S)
    began_s, began_cpu_s = say_begin(), time.process_time()
    count = go_on(order.connections, order.seconds)
    say_report(
        Report(
            count=count,
            seconds=time.perf_counter() - began_s,
            cpu_s=time.process_time() - began_cpu_s,
        )
    )


def go_on(connections: int, length_s: float) -> int:
    """Keep so many jobs under way; returns how many ended."""
    until_s, count = time.perf_counter() + length_s, 0
    under_way: deque[Any] = deque()
    while under_way or not count:
        while len(under_way) < connections and time.perf_counter() < until_s:
            under_way.append(answer_job.delay(PROMPT, MODEL, MAX_TOKENS))
        assert under_way.popleft().get(timeout=RESULT_TIMEOUT_S)["text"] == TEXT
        count += 1
    return count


if __name__ == "__main__":
    main()
    # Results would unsubscribe while the interpreter ends, and complain.
    os._exit(0)
