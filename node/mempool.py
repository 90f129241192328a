"""The mempool: every transaction that this node knows of and no block holds yet.

Our own are durable in node.db: whoever was told "accepted" relies on them. Those of other
coordinators are kept in memory only, since their coordinator has them on disk and sends them again
until they are final. They have a bounded share each, so that one coordinator cannot crowd out the
others.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from ledger.block import Tip
from ledger.errors import InvalidTransactionError, LedgerError
from ledger.payloads import find_receipt_id
from ledger.rules import verify_transaction
from ledger.selection import choose_transactions
from ledger.store.chain import ChainStore
from ledger.store.events import note_final
from ledger.store.marketstore import MarketStore
from ledger.store.mempool import (
    insert_transaction,
    is_waiting,
    list_mempool,
    remove_from_mempool,
    take_from_mempool,
)
from ledger.store.sessions import Connection
from ledger.store.webhooks import has_webhooks
from ledger.store.writequeue import DatabaseBusyError, DatabaseLostError
from ledger.transaction import Transaction, parse_transaction

MAX_FOREIGN_BYTES = 64 << 20
"""Of other coordinators' transactions together."""
_PAGE = 1024

logger = logging.getLogger(__name__)


class Mempool:
    """Any thread may add and read; the sealer alone decides what leaves."""

    def __init__(
        self,
        *,
        chain: ChainStore,
        market: MarketStore,
        events_waiting: Callable[[], None] = lambda: None,
    ) -> None:
        """`events_waiting()` is called, from any thread, when webhooks are to hear something."""
        self._chain = chain
        self._market = market
        self._events_waiting = events_waiting
        self._lock = threading.Lock()
        self._foreign: dict[bytes, tuple[str, Transaction]] = {}
        """By id, in order of arrival, with who sent it."""
        self._shares: Counter[str] = Counter()
        """Bytes by sender."""

    def add_foreign(self, sender: str, transactions: Iterable[Transaction], *, senders: int) -> int:
        """Keep verified transactions of another coordinator; returns how many were new.

        `senders` is how many there may be; what exceeds the sender's share is left out: it will
        send it again.
        """
        share = MAX_FOREIGN_BYTES // senders
        added = 0
        with self._lock:
            for transaction in transactions:
                size_bytes = len(transaction.envelope)
                if self._shares[sender] + size_bytes > share:
                    break
                if bytes(transaction.id) not in self._foreign:
                    self._foreign[bytes(transaction.id)] = sender, transaction
                    self._shares[sender] += size_bytes
                    added += 1
        return added

    def knows(self, transaction: Transaction) -> bool:
        """Tell whether a transaction of another coordinator waits here already."""
        return bytes(transaction.id) in self._foreign

    def count_foreign(self) -> int:
        """Return how many transactions of other coordinators wait here."""
        return len(self._foreign)

    def list_own(self, limit: int, *, after: int = 0) -> list[tuple[int, bytes]]:
        """Return our own transactions as (place, envelope), oldest first, above a place.

        None while their store cannot be had.
        """
        try:
            page = list_mempool(self._market.reader, limit=limit, after=after)
        except DatabaseLostError:
            return []
        return [(seq, envelope) for seq, _, _, envelope in page]

    def add_own(self, transaction: Transaction, *, now_ms: int) -> None:
        """Keep a transaction of ours, unless it waits already: durably, if the store can be had."""

        def add(connection: Connection) -> None:
            if not is_waiting(connection, transaction.id):
                insert_transaction(connection, transaction, now_ms=now_ms)

        try:
            self._market.write(add).result()
        except DatabaseLostError as error:
            logger.warning("%s: transaction %s is kept in memory", error, transaction.id.hex())
            self.add_foreign("", [transaction], senders=1)

    def choose(self, tip: Tip, *, limit: int | None = None) -> tuple[Transaction, ...]:
        """Return the oldest transactions that may stand in the block after `tip`, ours first.

        None only if there are none. What can never stand in a block is removed.
        """
        leaving: list[bytes] = []
        found = self._iterate(leaving, min(limit or _PAGE, _PAGE))
        selection = choose_transactions(found, tip, limit=limit)
        for transaction, error in selection.invalid:
            _log_eviction(bytes(transaction.id), transaction.envelope, error)
            leaving.append(bytes(transaction.id))
        if leaving:
            self.remove(leaving)
        return selection.chosen

    def remove(self, ids: list[bytes]) -> bool:
        """Forget transactions; what stays is skipped, and removed another time.

        In the same transaction webhooks are to hear of receipts that are final: each leaves once,
        whichever block, restart or sync it was that made it final here.
        """
        with self._lock:
            for transaction_id in ids:
                if found := self._foreign.pop(transaction_id, None):
                    sender, transaction = found
                    self._shares[sender] -= len(transaction.envelope)
        try:
            is_heard = self._market.write(lambda c: self._remove_own(c, ids)).result()
        except DatabaseBusyError as error:
            logger.warning("%s: %d transactions stay in the mempool for now", error, len(ids))
            return False
        if is_heard:
            self._events_waiting()
        return True

    def _remove_own(self, connection: Connection, ids: list[bytes]) -> bool:
        """Remove rows; tells whether webhooks are to hear of any."""
        if not has_webhooks(connection):
            remove_from_mempool(connection, ids)
            return False
        is_heard = False
        for transaction_id in ids:
            receipt_id, received_at_ms = take_from_mempool(connection, transaction_id) or (None, 0)
            if receipt_id is not None:
                is_heard |= note_final(
                    connection,
                    receipt_id,
                    received_at_ms=received_at_ms,
                    locate=self._chain.locate_receipt,
                )
        return is_heard

    def evict_invalid(self, tip: Tip) -> bool:
        """Remove what was chosen for the block after `tip` and is not valid there.

        Returns whether anything left. Only a fault of this node lets such a thing in.
        """
        invalid = []
        for transaction in self.choose(tip):
            try:
                verify_transaction(transaction, tip)
            except LedgerError as error:
                _log_eviction(bytes(transaction.id), transaction.envelope, error)
                invalid.append(bytes(transaction.id))
        return bool(invalid) and self.remove(invalid)

    def _iterate(self, leaving: list[bytes], first_page: int) -> Iterator[Transaction]:
        """Yield what is not final yet: ours from disk, then the others'.

        Puts into `leaving` what is final already, what is no transaction at all, and audits that no
        block may hold. Audits whose receipt is not on the chain yet are passed over. The first look
        at the disk reads `first_page` rows.
        """
        for transaction_id, receipt_id, found in self._list_rows(first_page):
            if self._chain.contains(transaction_id, receipt_id):
                leaving.append(transaction_id)  # a crash between two commits left it behind
                continue
            try:
                transaction = parse_transaction(found) if isinstance(found, bytes) else found
                is_due = self._chain.is_due(transaction)
            except InvalidTransactionError as error:
                envelope = found if isinstance(found, bytes) else found.envelope
                _log_eviction(transaction_id, envelope, error)
                leaving.append(transaction_id)
            else:
                if is_due:
                    yield transaction

    def _list_rows(self, limit: int) -> Iterator[tuple[bytes, str | None, bytes | Transaction]]:
        """Yield (id, receipt id, envelope or transaction); `limit` is for the first page."""
        try:
            yield from self._list_own_rows(limit)
        except DatabaseLostError as error:
            # They are not lost: whoever finds the database again kicks the sealer.
            logger.warning("%s: our own transactions wait for it", error)
        with self._lock:
            foreign = [transaction for _, transaction in self._foreign.values()]
        for transaction in foreign:
            yield bytes(transaction.id), find_receipt_id(transaction.payload), transaction

    def _list_own_rows(self, limit: int) -> Iterator[tuple[bytes, str | None, bytes]]:
        seq = 0
        while page := list_mempool(self._market.reader, limit=limit, after=seq):
            limit = _PAGE
            for seq, transaction_id, receipt_id, envelope in page:  # noqa: B007
                yield transaction_id, receipt_id, envelope


def _log_eviction(transaction_id: bytes, envelope: bytes, error: LedgerError) -> None:
    # Envelopes are public, so the log may keep what the mempool gives up.
    logger.error(
        "transaction %s can never be final and leaves the mempool: %s: %s",
        transaction_id.hex(),
        error,
        envelope.decode(errors="replace"),
    )
