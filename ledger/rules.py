"""When a transaction or a block is valid. Pure functions: the same answer on every node, for ever.

Transactions and blocks are valid on a tip, which holds the set that certifies the next block.
Receipts are judged here, audits in `audits.py`, changes of the set in `changes.py`, evidence in
`evidence.py`. What needs the whole chain is the store's part: uniqueness (one transaction id, one
receipt id, one audit of a receipt by one auditor), and that an audit's receipt is there.
"""

from __future__ import annotations

from collections.abc import Sequence

from ledger import merkle
from ledger.audits import verify_audit
from ledger.authorities import hash_authority_set
from ledger.block import Block, Header, Tip, find_next_set, hash_header
from ledger.changes import verify_change
from ledger.errors import InvalidBlockError, InvalidSignatureError, InvalidTransactionError
from ledger.evidence import verify_evidence
from ledger.hashing import build_receipt_id
from ledger.keys import ACCOUNT_PREFIX, is_account
from ledger.payloads import find_unique_name
from ledger.transaction import (
    MICROS,
    AuditPayload,
    AuthoritySetPayload,
    EvidencePayload,
    ReceiptPayload,
    Role,
    Transaction,
    verify_signers,
)

CLOCK_DRIFT_MS = 10_000
"""How far a fresh block's time may lie from a voter's clock."""
MAX_BLOCK_CHANGES = 1
"""A header names one next set, and a second change would rest on a set that never certified."""
_MICROS_PER_MS = 1000
"""Micro-seconds of one millisecond: `units_micros` of `gpu_seconds` are micro-seconds."""


def verify_transaction(transaction: Transaction, tip: Tip) -> None:
    """Check a transaction for the block after `tip`, apart from what needs the whole chain.

    Raises:
        InvalidTransactionError: a field breaks a rule.
        InvalidSignatureError: a signature is missing, spare or wrong.
    """
    payload = transaction.payload
    match payload:
        case ReceiptPayload():
            _verify_receipt(transaction, payload, tip)
        case AuditPayload():
            verify_audit(transaction, payload, tip)
        case AuthoritySetPayload():
            verify_change(transaction, payload, tip)
        case EvidencePayload():
            verify_evidence(transaction, payload, tip)


def _verify_receipt(transaction: Transaction, payload: ReceiptPayload, tip: Tip) -> None:
    validate_receipt(payload, genesis_hash=tip.genesis_hash)
    if not tip.authority_set.allows_coordinator(payload.coordinator):
        raise InvalidSignatureError(f"{payload.coordinator} is not a coordinator of this network")
    verify_signers(transaction, list_signers(payload))


def list_signers(payload: ReceiptPayload) -> list[tuple[Role, str]]:
    """Return who must sign, in envelope order. A provider without a key cannot."""
    signers: list[tuple[Role, str]] = [("coordinator", payload.coordinator)]
    if is_account(payload.provider):
        signers.append(("provider", payload.provider))
    return signers


def validate_receipt(payload: ReceiptPayload, *, genesis_hash: bytes) -> None:
    """Check the fields of a receipt against each other.

    Raises:
        InvalidTransactionError: they contradict each other or belong to another network.
    """
    genesis = genesis_hash.hex()
    receipt_id = build_receipt_id(
        genesis=genesis, coordinator=payload.coordinator, job_id=payload.job_id
    )
    _require(payload.genesis == genesis, "genesis", genesis, payload.genesis)
    _require(payload.receipt_id == receipt_id, "receipt_id", receipt_id, payload.receipt_id)
    _require(is_account(payload.coordinator), "coordinator", "an account", payload.coordinator)
    _require(
        is_account(payload.provider) or not payload.provider.startswith(ACCOUNT_PREFIX + "1"),
        "provider",
        "an account, or a name that does not look like one",
        payload.provider,
    )
    _require(
        payload.completed_at_ms >= payload.started_at_ms,
        "completed_at_ms",
        f"at least started_at_ms {payload.started_at_ms}",
        payload.completed_at_ms,
    )
    _require(
        payload.completion_tokens <= payload.max_tokens,
        "completion_tokens",
        f"at most max_tokens {payload.max_tokens}",
        payload.completion_tokens,
    )
    _validate_units(payload)


def _validate_units(payload: ReceiptPayload) -> None:
    if payload.unit_type == "tokens":
        tokens = payload.prompt_tokens + payload.completion_tokens
        _require(
            payload.units_micros == tokens * MICROS,
            "units_micros",
            tokens * MICROS,
            payload.units_micros,
        )
    else:
        elapsed = (payload.completed_at_ms - payload.started_at_ms) * _MICROS_PER_MS
        _require(
            payload.units_micros <= elapsed,
            "units_micros",
            f"at most the {elapsed} µs that the job took",
            payload.units_micros,
        )


def build_block(
    tip: Tip,
    transactions: Sequence[Transaction],
    *,
    time_ms: int,
    proposer: str,
    read: merkle.NodeReader,
) -> Block:
    """Build the block of `transactions` on `tip`. The clock may stand still or go back.

    A change of the authority set among them takes effect one height later: this block is still
    certified, and its other transactions judged, by the current set.
    """
    leaves = [merkle.hash_leaf(transaction.envelope) for transaction in transactions]
    following = find_next_set(transactions) or tip.authority_set
    header = Header(
        genesis=tip.genesis_hash.hex(),
        height=tip.height + 1,
        prev_hash=tip.hash.hex(),
        time_ms=max(time_ms, tip.time_ms + 1),
        tree_size=tip.tree_size + len(leaves),
        tree_root=_extend_root(tip.tree_size, leaves, read).hex(),
        set_hash=hash_authority_set(tip.authority_set).hex(),
        next_set_hash=hash_authority_set(following).hex(),
        proposer=proposer,
    )
    return Block(hash=hash_header(header), header=header, transactions=tuple(transactions))


def validate_block(block: Block, tip: Tip, read: merkle.NodeReader) -> None:
    """Check a block on `tip` completely, apart from its certificate and the proposer's clock.

    Raises:
        InvalidBlockError: it does not extend `tip`, or its body is not the one its header names.
        InvalidTransactionError: one of its transactions is not valid.
    """
    # Signatures come last: they cost most, and a block that does not fit needs none of them.
    validate_extension(block, tip, read)
    verify_body(block, tip)


def validate_extension(block: Block, tip: Tip, read: merkle.NodeReader) -> None:
    """Check everything about a block on `tip` but its transactions' own validity.

    Raises:
        InvalidBlockError: it does not extend `tip`, or its body is not the one its header names.
    """
    header = block.header
    if header.proposer not in {member.account for member in tip.authority_set.members}:
        raise InvalidBlockError(f"proposer: {header.proposer} is not an authority")
    if header.time_ms <= tip.time_ms:
        raise InvalidBlockError(f"time_ms: expected above {tip.time_ms}, got {header.time_ms}")
    _validate_transactions(block, tip)
    expected = build_block(
        tip, block.transactions, time_ms=header.time_ms, proposer=header.proposer, read=read
    )
    for field in Header.__struct_fields__:
        wanted, got = getattr(expected.header, field), getattr(header, field)
        if wanted != got:
            raise InvalidBlockError(f"header {field}: expected {wanted}, got {got}")
    if block.hash != expected.hash:
        raise InvalidBlockError("block hash: it is not the hash of the header")


def validate_time(header: Header, *, now_ms: int) -> None:
    """Hold a fresh block's time against a voter's clock. Final blocks are never judged by it.

    Raises:
        InvalidBlockError: its proposer's clock or the voter's is wrong, or it waited long for a
            quorum.
    """
    drift_ms = header.time_ms - now_ms
    if abs(drift_ms) > CLOCK_DRIFT_MS:
        raise InvalidBlockError(
            f"time_ms: expected within {CLOCK_DRIFT_MS} ms of the clock, got {drift_ms} ms; "
            + ("it was proposed long ago, or " if drift_ms < 0 else "")
            + "a clock is wrong, perhaps this machine's"
        )


def verify_body(block: Block, tip: Tip) -> None:
    """Check every transaction of a block on `tip`. Reads nothing else, so any thread may.

    Raises:
        InvalidTransactionError: one of them is not valid.
    """
    for transaction in block.transactions:
        verify_transaction(transaction, tip)


def _validate_transactions(block: Block, tip: Tip) -> None:
    count = len(block.transactions)
    size_bytes = sum(len(transaction.envelope) for transaction in block.transactions)
    if not 1 <= count <= tip.limits.max_block_transactions:
        raise InvalidBlockError(
            f"transactions: expected 1 to {tip.limits.max_block_transactions}, got {count}"
        )
    if size_bytes > tip.limits.max_block_bytes:
        raise InvalidBlockError(
            f"block size: expected at most {tip.limits.max_block_bytes} bytes, got {size_bytes}"
        )
    names = [n for t in block.transactions if (n := find_unique_name(t.payload)) is not None]
    if len(set(names)) != len(names):
        raise InvalidBlockError(
            "transactions: one receipt stands in the block twice, or an auditor audits one twice"
        )
    if len({transaction.id for transaction in block.transactions}) != count:
        raise InvalidBlockError("transactions: one transaction stands in the block twice")
    changes = sum(isinstance(t.payload, AuthoritySetPayload) for t in block.transactions)
    if changes > MAX_BLOCK_CHANGES:
        raise InvalidBlockError(
            f"transactions: expected at most {MAX_BLOCK_CHANGES} change of the authority set, "
            f"got {changes}"
        )


def _extend_root(size: int, leaves: Sequence[bytes], read: merkle.NodeReader) -> bytes:
    added = merkle.append_leaves(size, leaves, read)

    def read_extended(level: int, index: int) -> bytes:
        return added[level, index] if (level, index) in added else read(level, index)

    return merkle.compute_root(size + len(leaves), read_extended)


def _require(holds: bool, field: str, expected: object, got: object) -> None:  # noqa: FBT001
    if not holds:
        raise InvalidTransactionError(f"receipt {field}: expected {expected}, got {got}")
