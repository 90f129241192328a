"""The node's metrics in Prometheus' text format, from a registry of their own.

What happens is counted as it happens; how things stand is read when somebody asks (`node.gauges`).
No label holds what a stranger chooses: routes are those of the API document; methods, states,
reasons and error codes are closed sets. No prompt, id or name is in any of it.

Another part of the node that counts something makes its counter on `NodeMetrics.registry`.
"""

from __future__ import annotations

from typing import Literal

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from api.errors import STATUSES
from api.metering import Outcome
from node.market.desk import FAILURES, JOB_EVENTS, JobEvent

NodeRole = Literal["authority", "follower", "witness"]

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0)
"""Bounds of the histogram. Above a second are long polls and streams, which wait on purpose."""


class NodeMetrics:
    """Counts, from any thread, what a node does."""

    def __init__(self, *, release: str, mode: str, role: NodeRole) -> None:
        # Each counter would have a second one beside it that only tells when it began.
        disable_created_metrics()  # type: ignore[no-untyped-call]  # its module has no annotations
        self.registry = registry = CollectorRegistry()
        self._requests = Counter(
            "aitbc_http_requests",
            "Requests of the API that were answered.",
            ("method", "route", "status"),
            registry=registry,
        )
        self._seconds = Histogram(
            "aitbc_http_request_duration_seconds",
            "From the head of a request to the end of its answer.",
            ("method", "route"),
            buckets=SECONDS,
            registry=registry,
        )
        self._refusals = Counter(
            "aitbc_http_refusals",
            "Requests of the API that were refused.",
            ("error_code",),
            registry=registry,
        )
        self._jobs = Counter(
            "aitbc_job_transitions",
            "Durable transitions of jobs; reason says why a job failed.",
            ("event", "reason"),
            registry=registry,
        )
        # A counter that begins at its first event hides that event from every rate.
        for code in STATUSES:
            self._refusals.labels(code)
        for event in JOB_EVENTS:
            for reason in FAILURES if event == "failed" else ("",):
                self._jobs.labels(event, reason)
        build = Gauge(
            "aitbc_build_info",
            "Always 1; the labels say what this node is.",
            ("version", "mode", "role"),
            registry=registry,
        )
        build.labels(release, mode, role).set(1)
        ProcessCollector(registry=registry)
        self._seen: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        """Metrics by labels, which the library would look up under a lock."""

    def note_request(self, outcome: Outcome) -> None:
        """Count an answered request."""
        labels = outcome.method, outcome.route, outcome.status // 100
        requests, seconds = self._seen.get(labels) or self._meet(*labels)
        requests.inc()
        seconds.observe(outcome.seconds)
        if outcome.error_code:
            self._refusals.labels(outcome.error_code).inc()

    def note_job(self, event: JobEvent, reason: str) -> None:
        """Count a durable transition of a job."""
        self._jobs.labels(event, reason).inc()

    def render(self) -> bytes:
        """Return everything in the text format, version 0.0.4."""
        return generate_latest(self.registry)

    def _meet(self, method: str, route: str, hundreds: int) -> tuple[Counter, Histogram]:
        metrics = (
            self._requests.labels(method, route, f"{hundreds}xx"),
            self._seconds.labels(method, route),
        )
        self._seen[method, route, hundreds] = metrics
        return metrics
