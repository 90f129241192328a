"""How things stand on a node, read when its metrics are: bounded queries, none of them long."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ledger.store.chain import ChainStore
from ledger.store.deliveries import read_figures
from ledger.store.draws import count_audits, count_open_audits
from ledger.store.lists import count_open_jobs
from ledger.store.marketstore import MarketStore
from ledger.store.mempool import count_waiting, find_oldest_ms
from ledger.store.registry import count_active_miners
from ledger.views import SyncProgress
from ledger.views.reader import ACTIVE_MINER_MS
from node.coordinator import Coordinator
from node.head import HeadWatch
from node.p2p.peers import Peer

MAX_COUNTED = 10_000
"""Rows are counted no further than this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeState:
    """Where a node's gauges are read from."""

    chain: ChainStore
    market: MarketStore
    clock_ms: Callable[[], int]
    sync: Callable[[], SyncProgress]
    peers: Callable[[], Sequence[Peer]] = tuple
    count_foreign: Callable[[], int] = int
    """How many transactions of other coordinators wait here."""
    waiters: Mapping[str, Callable[[], int]]
    """How many requests wait now, by what they wait for."""


def list_waiters(
    head: HeadWatch, coordinator: Coordinator | None = None
) -> dict[str, Callable[[], int]]:
    """Return what tells how many requests wait for a block, and at a coordinator for its news."""
    waiters: dict[str, Callable[[], int]] = {"block": lambda: head.signal.waiting}
    if coordinator is not None:
        waiters["work"] = lambda: coordinator.job_waiting.waiting
        waiters["audit"] = lambda: coordinator.audit_waiting.waiting
        waiters["job"] = lambda: coordinator.feed.waiting
    return waiters


class StateCollector(Collector):
    """Fulfils what a registry asks of a collector."""

    def __init__(self, state: NodeState) -> None:
        self._state = state

    def collect(self) -> Iterable[Metric]:
        """Read every gauge."""
        yield from self._collect_market()
        yield from self._collect_audits()
        yield from self._collect_webhooks()
        yield from self._collect_ledger()
        yield from self._collect_network()
        yield _labelled(
            "aitbc_writer_queue",
            "Writes that wait for the disk.",
            "database",
            {
                "ledger.db": self._state.chain.database.waiting_writes,
                "node.db": self._state.market.waiting_writes,
            },
        )
        yield _labelled(
            "aitbc_waiters",
            "Long polls and streams that wait now, by what they wait for.",
            "news",
            {news: count() for news, count in self._state.waiters.items()},
        )

    def _collect_market(self) -> Iterable[GaugeMetricFamily]:
        reader, now_ms = self._state.market.reader, self._state.clock_ms()
        yield _labelled(
            "aitbc_jobs",
            "Jobs that have not ended.",
            "state",
            count_open_jobs(reader),
        )
        yield GaugeMetricFamily(
            "aitbc_active_miners",
            f"Miners heard in the last {ACTIVE_MINER_MS // 1000} s.",
            count_active_miners(reader, now_ms - ACTIVE_MINER_MS, MAX_COUNTED),
        )
        yield _labelled(
            "aitbc_mempool_transactions",
            f"Transactions that no block holds yet, own ones counted up to {MAX_COUNTED}.",
            "origin",
            {"own": count_waiting(reader, MAX_COUNTED), "foreign": self._state.count_foreign()},
        )
        oldest_ms = find_oldest_ms(reader)
        yield GaugeMetricFamily(
            "aitbc_final_lag_seconds",
            "How long the oldest own transaction waits for its block; 0 if none waits.",
            0 if oldest_ms is None else max(now_ms - oldest_ms, 0) / 1000,
        )

    def _collect_webhooks(self) -> Iterable[Metric]:
        figures = read_figures(self._state.market.reader)
        yield GaugeMetricFamily(
            "aitbc_webhook_waiting", "Webhook deliveries that wait.", figures.get("waiting", 0)
        )
        deliveries = CounterMetricFamily(
            "aitbc_webhook_deliveries",
            "Webhook deliveries that have ended, over all lives of the node.",
            labels=("outcome",),
        )
        for outcome in ("delivered", "given_up"):
            deliveries.add_metric((outcome,), figures.get(outcome, 0))
        yield deliveries
        yield CounterMetricFamily(
            "aitbc_webhook_failed_attempts",
            "Attempts of webhook deliveries that failed, over all lives of the node.",
            figures.get("failed", 0),
        )

    def _collect_audits(self) -> Iterable[Metric]:
        reader = self._state.market.reader
        yield _labelled(
            "aitbc_open_audits",
            "Audits that were drawn and are not done.",
            "state",
            count_open_audits(reader),
        )
        ended = CounterMetricFamily(
            "aitbc_audits",
            "Audits that this node has drawn, and what became of them, over all lives of the node.",
            labels=("event",),
        )
        for event, count in count_audits(reader).items():
            ended.add_metric((event,), count)
        yield ended

    def _collect_ledger(self) -> Iterable[GaugeMetricFamily]:
        tip, progress = self._state.chain.tip(), self._state.sync()
        yield GaugeMetricFamily("aitbc_ledger_height", "Height of the newest block.", tip.height)
        yield GaugeMetricFamily(
            "aitbc_ledger_time_seconds",
            "Time of the newest block; no block comes while there is nothing to seal.",
            tip.time_ms / 1000,
        )
        yield GaugeMetricFamily(
            "aitbc_sync_lag_blocks",
            "Final blocks that a source has and this node lacks.",
            max(progress.target_height - tip.height, 0),
        )
        yield GaugeMetricFamily(
            "aitbc_sync_stalled",
            "1 while blocks are missing and no source can be used.",
            int(progress.state == "stalled"),
        )

    def _collect_network(self) -> Iterable[GaugeMetricFamily]:
        answering = [peer.failure is None for peer in self._state.peers()]
        yield GaugeMetricFamily(
            "aitbc_authorities",
            "Members of the authority set.",
            len(self._state.chain.tip().authority_set.members),
        )
        yield _labelled(
            "aitbc_peers",
            "Other authorities that this one talks to.",
            "answers",
            {"yes": answering.count(True), "no": answering.count(False)},
        )


def _labelled(name: str, text: str, label: str, values: Mapping[str, int]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=(label,))
    for value, count in values.items():
        family.add_metric((value,), count)
    return family
