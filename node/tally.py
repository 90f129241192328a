"""Requests and jobs, counted: the metrics library would lock and look up each number of each label.

Its own counters and histograms cost a request as much as reading its body.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Collection, Iterable
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from api.metering import Outcome

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0)
"""Bounds of the histogram. Above a second are long polls and streams, which wait on purpose."""


class _Times:
    """How long requests of one method and route took."""

    def __init__(self) -> None:
        self.counts = [0] * (len(SECONDS) + 1)
        """By the first bound that is not exceeded; the last of those that exceed all."""
        self.seconds = 0.0


class RequestTally(Collector):
    """Fulfils what a registry asks of a collector. Any thread may count."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._answers: dict[tuple[str, str, int], int] = {}
        """By method, route and hundreds of the status."""
        self._times: dict[tuple[str, str], _Times] = {}

    def note(self, outcome: Outcome) -> None:
        """Count an answered request."""
        method, route, seconds = outcome.method, outcome.route, outcome.seconds
        answer = method, route, outcome.status // 100
        with self._lock:
            self._answers[answer] = self._answers.get(answer, 0) + 1
            times = self._times.get((method, route))
            if times is None:
                times = self._times[method, route] = _Times()
            times.counts[bisect_left(SECONDS, seconds)] += 1
            times.seconds += seconds

    def collect(self) -> Iterable[Metric]:
        """Return both metrics as they stand."""
        answers = CounterMetricFamily(
            "aitbc_http_requests",
            "Requests of the API that were answered.",
            labels=("method", "route", "status"),
        )
        times = HistogramMetricFamily(
            "aitbc_http_request_duration_seconds",
            "From the head of a request to the end of its answer.",
            labels=("method", "route"),
        )
        with self._lock:
            for (method, route, hundreds), count in self._answers.items():
                answers.add_metric((method, route, f"{hundreds}xx"), count)
            for labels, known in self._times.items():
                times.add_metric(labels, _list_buckets(known), known.seconds)
        return answers, times


def _list_buckets(times: _Times) -> list[tuple[str, float]]:
    bounds = [*map(floatToGoString, SECONDS), "+Inf"]
    return list(zip(bounds, accumulate(times.counts), strict=True))


class JobTally(Collector):
    """The same of the transitions of jobs, by event and reason. Any thread may count."""

    def __init__(self, moves: Collection[tuple[str, str]]) -> None:
        """`moves` are all there may be; a counter that begins at its first event hides that one."""
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(moves, 0)

    def note(self, event: str, reason: str) -> None:
        """Count a transition."""
        with self._lock:
            self._counts[event, reason] += 1

    def collect(self) -> Iterable[Metric]:
        """Return the metric as it stands."""
        family = CounterMetricFamily(
            "aitbc_job_transitions",
            "Durable transitions of jobs; reason says why a job failed.",
            labels=("event", "reason"),
        )
        with self._lock:
            for labels, count in self._counts.items():
                family.add_metric(labels, count)
        return (family,)
