"""What a proposer puts into its next block: the oldest waiting transactions that may stand there.

Pure, and the same rules as for judging a block: what is chosen here passes them. Signatures of
receipts and audits are not checked again, since they were checked whole before they were let in and
signatures do not age; what may have become wrong since, by a change of the authority set, is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ledger.audits import validate_audit
from ledger.block import Tip
from ledger.errors import LedgerError
from ledger.payloads import find_unique_name
from ledger.rules import MAX_BLOCK_CHANGES, validate_receipt, verify_transaction
from ledger.transaction import (
    AuditPayload,
    AuthoritySetPayload,
    ReceiptPayload,
    Transaction,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What goes into the next block, and what can never go into any."""

    chosen: tuple[Transaction, ...]
    """May stand together in the block after the tip, in the order given."""
    invalid: tuple[tuple[Transaction, LedgerError], ...]
    """No block from now on may hold these. What is in neither may wait."""


def choose_transactions(
    candidates: Iterable[Transaction], tip: Tip, *, limit: int | None = None
) -> Selection:
    """Choose from waiting transactions, oldest first, for the block after `tip`.

    At most `limit` of them where it is given, never more than a block may hold.

    `candidates` are not final yet, were verified when they were let in, and the receipts of audits
    among them are on the chain. It is read as far as the block has room; the first one that no
    longer fits ends the block, so none is overtaken for its size.
    """
    chosen: list[Transaction] = []
    invalid: list[tuple[Transaction, LedgerError]] = []
    ids: set[bytes | str] = set()
    size_bytes = changes = 0
    most = min(limit or tip.limits.max_block_transactions, tip.limits.max_block_transactions)
    for transaction in candidates:
        if len(chosen) >= most:
            break
        names = _list_names(transaction)
        is_change = isinstance(transaction.payload, AuthoritySetPayload)
        if ids & names or (is_change and changes >= MAX_BLOCK_CHANGES):
            continue
        if _may_become_valid(transaction, tip):
            continue
        try:
            _verify(transaction, tip)
        except LedgerError as error:
            invalid.append((transaction, error))
            continue
        size_bytes += len(transaction.envelope)
        if size_bytes > tip.limits.max_block_bytes:
            break
        changes += is_change
        ids |= names
        chosen.append(transaction)
    return Selection(chosen=tuple(chosen), invalid=tuple(invalid))


def _list_names(transaction: Transaction) -> set[bytes | str]:
    """What the chain holds at most once."""
    name = find_unique_name(transaction.payload)
    return {bytes(transaction.id)} | ({name} if name is not None else set())


def _may_become_valid(transaction: Transaction, tip: Tip) -> bool:
    """Tell whether a transaction is not due yet: a later set or height may still allow it.

    A receipt states what somebody is owed, so it waits for its coordinator to be listed again, and
    with it what auditors found.
    """
    payload = transaction.payload
    if isinstance(payload, ReceiptPayload | AuditPayload):
        return not tip.authority_set.allows_coordinator(payload.coordinator)
    if isinstance(payload, AuthoritySetPayload):
        is_later = payload.authority_set.epoch > tip.authority_set.epoch + 1
        return is_later and payload.expires_height > tip.height + 1
    return payload.height > tip.height + 1


def _verify(transaction: Transaction, tip: Tip) -> None:
    if isinstance(transaction.payload, ReceiptPayload):
        validate_receipt(transaction.payload, genesis_hash=tip.genesis_hash)
    elif isinstance(transaction.payload, AuditPayload):
        validate_audit(transaction.payload, genesis_hash=tip.genesis_hash)
    else:
        verify_transaction(transaction, tip)
