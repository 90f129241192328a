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
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from api.errors import STATUSES
from api.metering import Outcome
from node.market.desk import FAILURES, JOB_EVENTS, JobEvent
from node.tally import JobTally, RequestTally

NodeRole = Literal["api", "authority", "follower", "witness"]


class NodeMetrics:
    """Counts, from any thread, what a node does."""

    def __init__(self, *, release: str, mode: str, role: NodeRole) -> None:
        # Each counter would have a second one beside it that only tells when it began.
        disable_created_metrics()  # type: ignore[no-untyped-call]  # its module has no annotations
        self.registry = registry = CollectorRegistry()
        self._requests = RequestTally()
        registry.register(self._requests)
        self._refusals = Counter(
            "aitbc_http_refusals",
            "Requests of the API that were refused.",
            ("error_code",),
            registry=registry,
        )
        self._jobs = JobTally(
            [
                (event, reason)
                for event in JOB_EVENTS
                for reason in (FAILURES if event == "failed" else ("",))
            ]
        )
        registry.register(self._jobs)
        # A counter that begins at its first event hides that event from every rate.
        for code in STATUSES:
            self._refusals.labels(code)
        build = Gauge(
            "aitbc_build_info",
            "Always 1; the labels say what this node is.",
            ("version", "mode", "role"),
            registry=registry,
        )
        build.labels(release, mode, role).set(1)
        ProcessCollector(registry=registry)

    def note_request(self, outcome: Outcome) -> None:
        """Count an answered request."""
        self._requests.note(outcome)
        if outcome.error_code:
            self._refusals.labels(outcome.error_code).inc()

    def note_job(self, event: JobEvent, reason: str) -> None:
        """Count a durable transition of a job."""
        self._jobs.note(event, reason)

    def render(self) -> bytes:
        """Return everything in the text format, version 0.0.4."""
        return generate_latest(self.registry)
