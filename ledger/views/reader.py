"""Reads of both faces over ledger.db and the public part of node.db.

Short and synchronous: by primary key, or by an index in its own order.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Sequence
from itertools import pairwise
from statistics import median
from typing import Literal

from ledger.audits import AuditTotals
from ledger.authorities import AuthoritySet
from ledger.block import parse_certificate
from ledger.hashing import build_receipt_id
from ledger.jobs import JobState, Queue
from ledger.keys import is_account
from ledger.store.chain import ChainStore, load_tip, read_node
from ledger.store.lists import count_jobs
from ledger.store.marketstore import MarketStore
from ledger.store.reading import find_missing, load_pin
from ledger.totals import Share
from ledger.views.accounts import load_account, took_part
from ledger.views.audits import load_audit_totals
from ledger.views.authorities import load_authorities, load_epoch
from ledger.views.bundles import build_path, load_bundle, load_header, load_raw_block
from ledger.views.charts import load_pace, load_usage, rank_models
from ledger.views.counts import count_receipts
from ledger.views.jobs import find_job, find_queue, list_jobs
from ledger.views.lists import (
    Page,
    list_audits,
    list_block_transactions,
    list_provider_audits,
    list_receipts,
    list_spellings,
    list_transactions,
)
from ledger.views.models import (
    MAX_PAGE,
    AccountView,
    AuthoritiesView,
    BlockView,
    HeadView,
    InclusionView,
    JobView,
    NetworkWatch,
    NodeView,
    PaceView,
    PeerView,
    ReceiptFilter,
    ReceiptView,
    SearchHit,
    StatementLineView,
    StatementView,
    StatsView,
    TransactionView,
    UsageView,
)
from ledger.views.rows import view_blocks, view_final, view_receipts, view_waiting
from ledger.views.statements import (
    list_lines,
    list_shares,
    load_statement,
    load_statement_bundle,
)
from ledger.views.suggest import suggest

ACTIVE_MINER_MS = 120_000
"""A miner unheard for longer is not counted as active."""
DAY_MS = 86_400_000
MAX_COUNTED = 10_000
"""Pending transactions, and jobs of a day, are counted no further than this."""
MAX_HEIGHT = 2**53 - 1

_RECEIPT_ID = re.compile(r"rcp_[a-z2-7]{26}")
_JOB_ID = re.compile(r"job_[0-9A-HJKMNP-TV-Z]{26}")
_HASH = re.compile(r"[0-9a-f]{64}")
_HEIGHT = re.compile(r"#?([0-9]{1,15})")


class LedgerViews:
    """The public reads of one node."""

    def __init__(
        self, chain: ChainStore, market: MarketStore, *, network: NetworkWatch | None = None
    ) -> None:
        self._chain = chain
        self._market = market
        self._watch = network
        self._network = chain.genesis.network

    @property
    def _ledger(self) -> sqlite3.Connection:
        return self._chain.database.reader

    # --- chain ----------------------------------------------------------------------------------

    def head(self) -> HeadView:
        """Return where the chain stands."""
        (pending,) = self._market.reader.execute(
            "SELECT count(*) FROM (SELECT 1 FROM mempool LIMIT ?) AS found", (MAX_COUNTED,)
        ).fetchone()
        with self._chain.database.snapshot() as ledger:
            tip, missing = load_tip(ledger), find_missing(ledger)
            votes = _count_votes(ledger, tip.height)
        return HeadView(
            network=self._network,
            genesis=tip.genesis_hash.hex(),
            height=tip.height,
            hash=tip.hash.hex(),
            time_ms=tip.time_ms,
            votes=votes,
            authorities=len(tip.authority_set.members),
            pending_transactions=pending,
            missing=missing,
            sync=self._watch.sync() if self._watch else None,
        )

    def node(self) -> NodeView:
        """Return what there is to say of this node itself."""
        (size_bytes,) = self._ledger.execute(
            "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size"
        ).fetchone()
        account = self._watch.account() if self._watch else ""
        return NodeView(account=account, ledger_bytes=size_bytes)

    def peers(self) -> Sequence[PeerView]:
        """Return the nodes that this one talks to."""
        return self._watch.peers() if self._watch else ()

    def blocks(self, *, limit: int, before: int | None = None) -> list[BlockView]:
        """Return blocks below height `before`, newest first."""
        rows = self._ledger.execute(
            "SELECT * FROM blocks WHERE height < ? ORDER BY height DESC LIMIT ?",
            (MAX_HEIGHT if before is None else before, _bound(limit)),
        ).fetchall()
        return view_blocks(self._ledger, rows)

    def block(self, height: int) -> BlockView | None:
        """Return the block at a height."""
        return self._find_block("height", height)

    def block_by_hash(self, hash_hex: str) -> BlockView | None:
        """Return the block with this hash."""
        return self._find_block("hash", _parse_hash(hash_hex))

    def raw_block(self, height: int) -> bytes | None:
        """Return canonical JSON of a block's header and certificate."""
        return load_raw_block(self._ledger, height)

    def block_transactions(
        self, height: int, *, limit: int, after: int | None = None
    ) -> list[TransactionView]:
        """Return a block's transactions above leaf `after`, in their order."""
        return list_block_transactions(self._ledger, height, Page(limit=limit, after=after))

    def inclusion(self, leaf: int, height: int) -> InclusionView:
        """Return the path of a leaf to the tree root of block `height`."""
        with self._chain.database.snapshot() as ledger:
            header, _ = load_header(ledger, height)
            path = build_path(ledger, leaf, header.tree_size)
            return InclusionView(
                leaf=leaf,
                leaf_hash=read_node(ledger, 0, leaf).hex(),
                path=tuple(path),
                tree_size=header.tree_size,
                tree_root=header.tree_root,
            )

    # --- transactions and receipts --------------------------------------------------------------

    def transactions(self, *, limit: int, before: int | None = None) -> list[TransactionView]:
        """Return transactions below cursor `before`, pending ones first, then newest first."""
        page = Page(limit=limit, before=before)
        return list_transactions(self._ledger, self._market.reader, page)

    def transaction(self, id_hex: str) -> TransactionView | None:
        """Return the transaction with this id."""
        return self._find_transaction("id = ?", _parse_hash(id_hex))

    def receipts(
        self,
        wanted: ReceiptFilter,
        *,
        limit: int,
        before: int | None = None,
        after: int | None = None,
    ) -> list[ReceiptView]:
        """Return receipts below cursor `before`, pending ones first, then newest first.

        With `after` those next above that cursor, in the same order.
        """
        page = Page(limit=limit, before=before, after=after)
        rows = list_receipts(self._ledger, self._market.reader, wanted, page)
        return view_receipts(self._market.reader, rows)

    def count_receipts(self, wanted: ReceiptFilter) -> int | None:
        """Return how many receipts `receipts` would list in all; None where that is not cheap."""
        if wanted.from_ms is not None or wanted.to_ms is not None:
            return None
        market = self._market.reader
        spellings = list_spellings(market, wanted)
        counts = [count_receipts(self._ledger, market, columns) for columns in spellings]
        known = [count for count in counts if count is not None]
        return sum(known) if len(known) == len(counts) else None

    def receipt(self, receipt_id: str) -> ReceiptView | None:
        """Return a receipt, final or pending."""
        found = self._find_pending("receipt_id = ?", receipt_id)
        found = self._find_final_receipt(receipt_id) or found
        return view_receipts(self._market.reader, [found])[0] if found else None

    def bundle(self, receipt_id: str) -> bytes | None:
        """Return the canonical proof bundle of a final receipt."""
        with self._chain.database.snapshot() as ledger:
            return load_bundle(ledger, receipt_id)

    # --- jobs of this node ---------------------------------------------------------------------

    def jobs(
        self,
        state: JobState | None,
        *,
        limit: int,
        before: int | None = None,
        after: int | None = None,
    ) -> list[JobView]:
        """Return jobs below cursor `before`, or next above `after`, newest first."""
        return list_jobs(self._market.reader, state, limit=limit, before=before, after=after)

    def job(self, job_id: str) -> JobView | None:
        """Return the job with this id."""
        return find_job(self._market.reader, job_id)

    def queue(self, job_id: str, *, now_ms: int) -> Queue | None:
        """Return where a job stands; None of one that does not wait."""
        since_ms = now_ms - ACTIVE_MINER_MS
        return find_queue(self._market.reader, job_id, active_since_ms=since_ms)

    def count_jobs(self, state: JobState) -> int:
        """Return how many jobs are in a state, by a count that is kept."""
        return count_jobs(self._market.reader, state=state)

    # --- audits ---------------------------------------------------------------------------------

    def audits(
        self, receipt_id: str, *, limit: int, before: int | None = None
    ) -> list[TransactionView]:
        """Return audits of a receipt below cursor `before`, pending ones first, newest first."""
        page = Page(limit=limit, before=before)
        return list_audits(self._ledger, self._market.reader, receipt_id, page)

    def provider_audits(
        self, provider: str, *, limit: int, before: int | None = None
    ) -> list[TransactionView]:
        """Return final audits of a provider's answers below cursor `before`, newest first."""
        return list_provider_audits(self._ledger, provider, Page(limit=limit, before=before))

    def audit_totals(self, provider: str) -> AuditTotals:
        """Return what the audits of a provider come to.

        Raises:
            HistoryMissingError: blocks are missing.
        """
        return load_audit_totals(self._ledger, provider)

    # --- authorities ----------------------------------------------------------------------------

    def authorities(self) -> AuthoritiesView:
        """Return who seals the next block, the sets since genesis, and evidence."""
        with self._chain.database.snapshot() as ledger:
            return load_authorities(ledger)

    def authority_set(self, epoch: int) -> AuthoritySet | None:
        """Return the authority set of an epoch that has begun."""
        return load_epoch(self._ledger, epoch)

    def account(self, account: str) -> AccountView | None:
        """Return what an account did; None of one that is unknown here.

        Raises:
            HistoryMissingError: blocks are missing.
        """
        with self._chain.database.snapshot() as ledger:
            return load_account(ledger, self._market.reader, account)

    # --- sums over time -----------------------------------------------------------------------

    def usage(
        self, span_ms: int, *, from_ms: int, to_ms: int, model: str | None = None
    ) -> list[UsageView]:
        """Return what became final in the spans of a time, of one model or of all."""
        return load_usage(self._ledger, span_ms, from_ms=from_ms, to_ms=to_ms, model=model)

    def top_models(self, span_ms: int, *, from_ms: int, to_ms: int, limit: int) -> list[str]:
        """Return the models with the most receipts in a time."""
        return rank_models(self._ledger, span_ms, from_ms=from_ms, to_ms=to_ms, limit=limit)

    def pace(self, span_ms: int, *, from_ms: int, to_ms: int) -> list[PaceView]:
        """Return how many blocks were sealed in the spans of a time."""
        return load_pace(self._ledger, span_ms, from_ms=from_ms, to_ms=to_ms)

    # --- statements: bounded, but not short; read them in a thread of their own -----------------

    def statement(self, account: str, *, from_ms: int, to_ms: int) -> StatementView:
        """Return what an account earned and spent in blocks of a period, from final receipts."""
        with self._chain.database.snapshot() as ledger:
            return load_statement(ledger, account, from_ms=from_ms, to_ms=to_ms)

    def statement_lines(
        self, statement: StatementView, *, limit: int, after: int | None = None
    ) -> list[StatementLineView]:
        """Return the lines of a statement above leaf `after`, oldest first."""
        return list_lines(self._ledger, statement, after=after, limit=limit)

    def statement_shares(
        self,
        statement: StatementView,
        by: Literal["counterparty", "model"],
        *,
        limit: int,
        after: str = "",
    ) -> list[Share]:
        """Return its totals of each model or counterparty with a name above `after`."""
        return list_shares(self._ledger, statement, by, after=after, limit=limit)

    def statement_bundle(self, account: str, *, from_ms: int, to_ms: int) -> bytes | None:
        """Return the canonical bundle that proves a statement, None if it has no line."""
        with self._chain.database.snapshot() as ledger:
            return load_statement_bundle(ledger, account, from_ms=from_ms, to_ms=to_ms)

    # --- figures and search ---------------------------------------------------------------------

    def stats(self, now_ms: int) -> StatsView:
        """Return the network's figures."""
        market = self._market.reader
        (jobs_24h,) = market.execute(
            "SELECT count(*) FROM (SELECT 1 FROM jobs WHERE created_at_ms >= ? LIMIT ?) AS found",
            (now_ms - DAY_MS, MAX_COUNTED),
        ).fetchone()
        (miners,) = market.execute(
            "SELECT count(*) FROM miners WHERE last_seen_at_ms >= ?", (now_ms - ACTIVE_MINER_MS,)
        ).fetchone()
        with self._chain.database.snapshot() as ledger:
            (receipts,) = ledger.execute(
                "SELECT value FROM counters WHERE name = 'receipts'"
            ).fetchone()
            prices = _column(
                ledger, "SELECT price_micros FROM receipts ORDER BY leaf DESC LIMIT ?", MAX_PAGE
            )
            times = _column(
                ledger, "SELECT time_ms FROM blocks ORDER BY height DESC LIMIT ?", MAX_PAGE
            )
            height = load_tip(ledger).height
        gaps = [newer - older for newer, older in pairwise(times)]
        return StatsView(
            total_jobs=count_jobs(market),
            jobs_24h=jobs_24h,
            active_miners=miners,
            total_receipts=receipts,
            block_height=height,
            median_price_micros=round(median(prices)) if prices else None,
            block_time_ms=round(median(gaps)) if gaps else None,
        )

    def suggest(self, prefix: str) -> list[str]:
        """Return ids and names that begin with `prefix`, a few of each kind."""
        return suggest(self._ledger, self._market.reader, prefix)

    def search(self, query: str) -> SearchHit | None:
        """Find the one thing that `query` names exactly: height, hash, id or account."""
        query = query.strip()
        if match := _HEIGHT.fullmatch(query):
            block = self.block(int(match[1]))
            return SearchHit(kind="block", key=str(block.height)) if block else None
        if _HASH.fullmatch(query.lower()):
            return self._search_hash(query.lower())
        if _RECEIPT_ID.fullmatch(query.lower()):
            receipt = self.receipt(query.lower())
            return SearchHit(kind="receipt", key=query.lower()) if receipt else None
        if _JOB_ID.fullmatch(query):
            return self._search_job(query)
        return self._search_account(query) if is_account(query) else None

    def _search_account(self, account: str) -> SearchHit | None:
        if self._chain.tip().authority_set.allows_coordinator(account):
            return SearchHit(kind="authority", key=account)
        if took_part(self._ledger, self._market.reader, account):
            return SearchHit(kind="account", key=account)
        return None

    def _search_hash(self, hash_hex: str) -> SearchHit | None:
        if block := self.block_by_hash(hash_hex):
            return SearchHit(kind="block", key=str(block.height))
        if self.transaction(hash_hex):
            return SearchHit(kind="transaction", key=hash_hex)
        return None

    def _search_job(self, job_id: str) -> SearchHit | None:
        tip = self._chain.tip()
        members = [member.account for member in tip.authority_set.members]
        for coordinator in (*members, *tip.authority_set.coordinators):
            receipt_id = build_receipt_id(
                genesis=tip.genesis_hash.hex(), coordinator=coordinator, job_id=job_id
            )
            if self.receipt(receipt_id):
                return SearchHit(kind="receipt", key=receipt_id)
        return SearchHit(kind="job", key=job_id) if self.job(job_id) else None

    # --- rows to views --------------------------------------------------------------------------

    def _find_block(self, column: str, value: object) -> BlockView | None:
        row = self._ledger.execute(
            f"SELECT * FROM blocks WHERE {column} = ?",  # noqa: S608 - a column named above
            (value,),
        ).fetchone()
        return view_blocks(self._ledger, [row])[0] if row else None

    def _find_transaction(self, condition: str, value: object) -> TransactionView | None:
        pending = self._find_pending(condition, value)
        row = self._ledger.execute(
            "SELECT t.*, b.time_ms FROM transactions t"  # noqa: S608 - a condition named above
            f" JOIN blocks b USING (height) WHERE t.{condition}",
            (value,),
        ).fetchone()
        return view_final(row) if row else pending

    def _find_pending(self, condition: str, value: object) -> TransactionView | None:
        row = self._market.reader.execute(
            f"SELECT * FROM waiting WHERE {condition}",  # noqa: S608 - a condition named above
            (value,),
        ).fetchone()
        return view_waiting(row) if row else None

    def _find_final_receipt(self, receipt_id: str) -> TransactionView | None:
        row = self._ledger.execute(
            "SELECT t.*, b.time_ms FROM receipts r JOIN transactions t USING (leaf)"
            " JOIN blocks b USING (height) WHERE r.receipt_id = ?",
            (receipt_id,),
        ).fetchone()
        return view_final(row) if row else None


def _count_votes(ledger: sqlite3.Connection, height: int) -> int:
    """Return how many signed the newest block, 0 at genesis."""
    if (pin := load_pin(ledger)) and pin.height == height:
        return len(pin.certificate.votes)
    row = ledger.execute("SELECT certificate FROM blocks WHERE height = ?", (height,)).fetchone()
    return len(parse_certificate(row[0].encode()).votes) if row else 0


def _bound(limit: int) -> int:
    # To SQLite a negative limit is none at all.
    return max(0, min(limit, MAX_PAGE))


def _column(ledger: sqlite3.Connection, statement: str, limit: int) -> list[int]:
    return [row[0] for row in ledger.execute(statement, (limit,))]


def _parse_hash(text: str) -> bytes:
    return bytes.fromhex(text) if _HASH.fullmatch(text) else b""
