"""What the explorer is given: read models, and a bell that rings when the chain grows.

`ledger.views.LedgerViews` is a `Views`; the node supplies the `HeadWatch`, and its coordinator is
the `Market`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ledger.audits import AuditTotals
from ledger.authorities import AuthoritySet
from ledger.jobs import JobState, MinerStanding, Queue
from ledger.views import (
    AccountView,
    AuthoritiesView,
    BlockView,
    HeadView,
    InclusionView,
    JobView,
    NodeView,
    PaceView,
    PeerView,
    ReceiptFilter,
    ReceiptView,
    SearchHit,
    StatsView,
    TransactionView,
    UsageView,
)


class ClosingError(Exception):
    """The node is shutting down: whoever waits for the head ends now."""


class HeadWatch(Protocol):
    """Tells when there is a newer head."""

    async def wait(self, height: int) -> int:
        """Return the head's height as soon as it is above `height`. May be cancelled.

        Raises:
            ClosingError: the node is shutting down. Must be raised, to waiting and to later
                callers, when the stop signal arrives and not in the lifespan's end: a server
                waits for its open responses before it ends the lifespan.
        """
        ...


class Market(Protocol):
    """What everybody may see of a coordinator's market. A node that takes no jobs has none."""

    def miners(self, *, after: str, limit: int) -> Sequence[MinerStanding]:
        """Return miners in the order of their names, above `after`."""
        ...

    def miner(self, miner_id: str, /) -> MinerStanding:
        """Return one miner.

        Raises:
            MarketError: there is none of this name.
        """
        ...


class Views(Protocol):
    """The short, synchronous reads that pages are made of. Lists are newest first."""

    def head(self) -> HeadView:
        """Return where the chain stands."""
        ...

    def node(self) -> NodeView:
        """Return what there is to say of this node itself."""
        ...

    def peers(self) -> Sequence[PeerView]:
        """Return the nodes that this one talks to."""
        ...

    def stats(self, now_ms: int) -> StatsView:
        """Return the figures of the home page."""
        ...

    def blocks(self, *, limit: int, before: int | None = None) -> list[BlockView]:
        """Return final blocks below height `before`."""
        ...

    def block(self, height: int) -> BlockView | None:
        """Return one block."""
        ...

    def block_by_hash(self, hash_hex: str) -> BlockView | None:
        """Return one block."""
        ...

    def block_transactions(
        self, height: int, *, limit: int, after: int | None = None
    ) -> list[TransactionView]:
        """Return a block's transactions in leaf order, above leaf `after`."""
        ...

    def transaction(self, id_hex: str) -> TransactionView | None:
        """Return one transaction, final or pending."""
        ...

    def receipts(
        self,
        wanted: ReceiptFilter,
        /,
        *,
        limit: int,
        before: int | None = None,
        after: int | None = None,
    ) -> list[ReceiptView]:
        """Return receipts below cursor `before`, or next above `after`, pending ones first."""
        ...

    def jobs(
        self,
        state: JobState | None,
        /,
        *,
        limit: int,
        before: int | None = None,
        after: int | None = None,
    ) -> list[JobView]:
        """Return jobs of this node below cursor `before`, or next above `after`."""
        ...

    def job(self, job_id: str, /) -> JobView | None:
        """Return one job of this node."""
        ...

    def queue(self, job_id: str, /, *, now_ms: int) -> Queue | None:
        """Return where a job stands; None of one that waits no more."""
        ...

    def count_jobs(self, state: JobState, /) -> int:
        """Return how many jobs are in a state, by a count that is kept."""
        ...

    def usage(
        self, span_ms: int, /, *, from_ms: int, to_ms: int, model: str | None = None
    ) -> list[UsageView]:
        """Return what became final in the spans of a time, of one model or of all."""
        ...

    def top_models(self, span_ms: int, /, *, from_ms: int, to_ms: int, limit: int) -> list[str]:
        """Return the models with the most receipts in a time."""
        ...

    def pace(self, span_ms: int, /, *, from_ms: int, to_ms: int) -> list[PaceView]:
        """Return how many blocks were sealed in the spans of a time."""
        ...

    def audits(
        self, receipt_id: str, /, *, limit: int, before: int | None = None
    ) -> list[TransactionView]:
        """Return audits of a receipt, pending ones first."""
        ...

    def provider_audits(
        self, provider: str, /, *, limit: int, before: int | None = None
    ) -> list[TransactionView]:
        """Return final audits of a provider's answers."""
        ...

    def audit_totals(self, provider: str, /) -> AuditTotals:
        """Return what the audits of a provider come to."""
        ...

    def account(self, account: str, /) -> AccountView | None:
        """Return what an account did; None of one that is unknown here."""
        ...

    def receipt(self, receipt_id: str) -> ReceiptView | None:
        """Return one receipt, final or pending."""
        ...

    def inclusion(self, leaf: int, height: int) -> InclusionView:
        """Return the path of a leaf to the root of the block at `height`."""
        ...

    def suggest(self, prefix: str, /) -> list[str]:
        """Return ids and names that begin like this, a few of each kind."""
        ...

    def search(self, query: str) -> SearchHit | None:
        """Return what the query names exactly."""
        ...

    def authorities(self) -> AuthoritiesView:
        """Return who seals the next block, the sets since genesis, and evidence."""
        ...

    def authority_set(self, epoch: int) -> AuthoritySet | None:
        """Return the authority set of an epoch that has begun."""
        ...

    def raw_block(self, height: int) -> bytes | None:
        """Return the canonical JSON of a block's header and certificate."""
        ...
