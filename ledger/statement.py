"""Statements: what one account earned and spent in a period, line by line, with a proof of each.

A line is a final receipt in which the account is the client, the provider or both. Its period is
decided by the time of the block that made it final, never by a clock of the parties: blocks are in
order, so a period is one range of leaves, and once it is over its statement never changes.

A statement bundle proves all lines under one header, that of the last line's block:

    entries[].envelope --leaf hash, path--> header.tree_root
    header.time_ms < to_ms                      no line is later
    opening.header.time_ms >= from_ms           no line is earlier, since the first line's leaf
    opening.parent.tree_size <= entries[0].index    belongs to that block or to a later one

Every entry with `header`, `certificate` and `epochs` is a proof bundle of its own (`proof.py`).
What no inclusion proves is that nothing was left out.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec

from ledger import merkle
from ledger.authorities import AuthoritySet
from ledger.block import (
    Certificate,
    Genesis,
    Header,
    hash_genesis,
    hash_header,
    verify_certificate,
)
from ledger.encoding import Count, Hex32, decode, encode
from ledger.errors import EncodingError, InvalidProofError, InvalidTransactionError
from ledger.proof import (
    MAX_EPOCHS,
    NOT_PROVED,
    Claim,
    Epoch,
    check_coordinator,
    check_header,
    check_inclusion,
    check_receipt,
    judge,
    judge_quorum,
    judge_signature,
    walk_epochs,
)
from ledger.totals import Line, Totals, build_line, find_role, sum_lines
from ledger.transaction import (
    MAX_SIGNATURES,
    Identifier,
    ReceiptPayload,
    Signature,
    Transaction,
    parse_transaction,
)

MAX_STATEMENT_LINES = 5_000
MAX_STATEMENT_BYTES = 32 << 20
"""Room for that many valid receipts with the longest names and paths."""

# --- the bundle -------------------------------------------------------------------------------


class ReceiptEnvelope(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An envelope that holds a receipt: nothing else is a line."""

    payload: ReceiptPayload
    signatures: Annotated[tuple[Signature, ...], msgspec.Meta(max_length=MAX_SIGNATURES)]


class Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One line with its path."""

    envelope: ReceiptEnvelope
    index: Count
    """Leaf index of the envelope in the global tree."""
    path: Annotated[tuple[Hex32, ...], msgspec.Meta(max_length=merkle.MAX_PATH_LENGTH)]
    """Inclusion path to the bundle's `header.tree_root`, leaf side first."""


class Opening(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The block of the first line: it and its parent show where the period's leaves begin."""

    header: Header
    certificate: Certificate
    parent: Annotated[tuple[Header, ...], msgspec.Meta(max_length=1)]
    """The header that `header.prev_hash` names; empty at height 1."""


class StatementBundle(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an account keeps, or sends with an invoice. About 3 KB for each line."""

    v: Literal[1] = 1
    account: Identifier
    from_ms: Count
    """Block times from here on; 0 leaves the beginning open."""
    to_ms: Count
    """Block times below this; 2^53 - 1 leaves the end open."""
    entries: Annotated[
        tuple[Entry, ...], msgspec.Meta(min_length=1, max_length=MAX_STATEMENT_LINES)
    ]
    """By ascending index, each leaf once."""
    opening: Opening
    header: Header
    """Of the block that owns the last line; all paths lead to its root."""
    certificate: Certificate
    epochs: Annotated[tuple[Epoch, ...], msgspec.Meta(max_length=MAX_EPOCHS)]
    """Every set change from genesis up to `header`, oldest first."""


class FailedLine(msgspec.Struct, frozen=True, kw_only=True):
    """A line that is not proved."""

    leaf: int
    receipt_id: str
    claims: tuple[Claim, ...]
    """Those that failed."""


class StatementVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """All claims of a statement, and its totals, which count only if it is verified."""

    verified: bool
    account: str
    from_ms: int
    to_ms: int
    genesis: str
    block_height: int
    block_hash: str
    lines: int
    totals: Totals
    claims: tuple[Claim, ...]
    failed_lines: tuple[FailedLine, ...]
    not_proved: tuple[str, ...]


STATEMENT_NOT_PROVED = (
    "That the statement is complete: a receipt of this account may have been left out.",
    *NOT_PROVED,
)


def is_statement(data: bytes) -> bool:
    """Tell a statement bundle from a proof bundle by its first key: canonical keys are sorted."""
    return data.startswith(b'{"account":')


def parse_statement(data: bytes) -> StatementBundle:
    """Parse a statement bundle: canonical JSON with one optional line feed at its end.

    Raises:
        InvalidProofError: not a statement bundle, or not in its canonical spelling.
    """
    return _parse(data)[0]


def _parse(data: bytes) -> tuple[StatementBundle, list[Transaction]]:
    try:
        statement = decode(data.removesuffix(b"\n"), StatementBundle, max_bytes=MAX_STATEMENT_BYTES)
        transactions = [parse_transaction(encode(entry.envelope)) for entry in statement.entries]
    except (EncodingError, InvalidTransactionError) as error:
        raise InvalidProofError(f"statement: {error}") from error
    indexes = [entry.index for entry in statement.entries]
    if any(earlier >= later for earlier, later in itertools.pairwise(indexes)):
        raise InvalidProofError("statement: expected distinct entries, by ascending index")
    return statement, transactions


# --- the verdict ------------------------------------------------------------------------------


def verify_statement(data: bytes, *, genesis: Genesis) -> StatementVerdict:
    """Check every claim of every line against the verifier's own genesis, and add up the lines.

    Raises:
        InvalidProofError: `data` is no statement bundle; otherwise failures are in the verdict.
    """
    statement, transactions = _parse(data)
    digest = hash_genesis(genesis)
    quorum, chain, last_set = judge_quorum(
        statement.certificate, header=statement.header, epochs=statement.epochs, genesis=genesis
    )
    sets = [genesis.authority_set, *(epoch.authority_set for epoch in statement.epochs)]
    judged = [
        _judge_line(
            statement,
            entry,
            transaction,
            digest,
            sets[_count_changes(statement, entry.index)] if last_set else None,
        )
        for entry, transaction in zip(statement.entries, transactions, strict=True)
    ]
    *merged, coordinator = (_merge([line[i] for line in judged]) for i in range(len(judged[0])))
    header = judge("header", lambda: check_header(statement.header, digest))
    period = judge("period", lambda: _check_period(statement, genesis, quorum))
    claims = (*merged, header, quorum, chain, coordinator, period)
    return StatementVerdict(
        verified=all(claim.status != "failed" for claim in claims),
        account=statement.account,
        from_ms=statement.from_ms,
        to_ms=statement.to_ms,
        genesis=digest.hex(),
        block_height=statement.header.height,
        block_hash=hash_header(statement.header).hex(),
        lines=len(statement.entries),
        totals=sum_lines(_list_lines(statement, transactions)),
        claims=claims,
        failed_lines=_list_failed(statement, judged),
        not_proved=STATEMENT_NOT_PROVED,
    )


def _judge_line(
    statement: StatementBundle,
    entry: Entry,
    transaction: Transaction,
    genesis_hash: bytes,
    authority_set: AuthoritySet | None,
) -> tuple[Claim, ...]:
    """Judge one line; `authority_set` is the one that certified its block, None if unknown."""
    payload = entry.envelope.payload
    return (
        judge("account", lambda: _check_account(statement.account, payload)),
        judge("receipt", lambda: check_receipt(transaction, payload, genesis_hash)),
        judge_signature(transaction, "provider", payload.provider),
        judge_signature(transaction, "coordinator", payload.coordinator),
        judge(
            "inclusion",
            lambda: check_inclusion(
                transaction, index=entry.index, path=entry.path, header=statement.header
            ),
        ),
        judge("coordinator", lambda: _check_coordinator(payload, authority_set)),
    )


def _check_account(account: str, payload: ReceiptPayload) -> str:
    role = find_role(account, client=payload.client, provider=payload.provider)
    if role is None:
        raise InvalidProofError(
            f"account: expected {account} as client or provider, "
            f"got {payload.client} and {payload.provider}"
        )
    return f"{account} is {role}"


def _check_coordinator(payload: ReceiptPayload, authority_set: AuthoritySet | None) -> str:
    if authority_set is None:
        raise InvalidProofError("genesis does not lead to the authority set of this line")
    return check_coordinator(payload, authority_set)


def _count_changes(statement: StatementBundle, leaf: int) -> int:
    """Return how many set changes came before the block that owns a leaf."""
    return sum(epoch.header.tree_size <= leaf for epoch in statement.epochs)


def _merge(claims: Sequence[Claim]) -> Claim:
    """Return one claim about all lines: it fails with the first line that does."""
    name, lines = claims[0].name, len(claims)
    failed = [claim for claim in claims if claim.status == "failed"]
    if failed:
        detail = f"{len(failed)} of {lines} lines fail, the first: {failed[0].detail}"
        return Claim(name=name, status="failed", detail=detail)
    verified = sum(claim.status == "verified" for claim in claims)
    detail = f"{verified} of {lines} lines"
    if verified < lines:
        detail += "; the other providers have no key"
    return Claim(name=name, status="verified" if verified else "not_applicable", detail=detail)


def _check_period(statement: StatementBundle, genesis: Genesis, quorum: Claim) -> str:
    """Check that the lines' blocks lie in the period: block times and leaves ascend together."""
    if quorum.status == "failed":
        raise InvalidProofError("no quorum vouches for the time of this header")
    opening, header = statement.opening, statement.header
    check_header(opening.header, hash_genesis(genesis))
    before = [e for e in statement.epochs if e.header.height < opening.header.height]
    verify_certificate(
        opening.certificate,
        header=opening.header,
        authority_set=walk_epochs(before, header=opening.header, genesis=genesis),
    )
    first = _find_first_leaf(opening)
    if statement.entries[0].index < first:
        raise InvalidProofError(
            f"opening: expected lines from leaf {first} on, got {statement.entries[0].index}"
        )
    if not (statement.from_ms <= opening.header.time_ms and header.time_ms < statement.to_ms):
        raise InvalidProofError(
            f"period: expected block times in [{statement.from_ms}, {statement.to_ms}), "
            f"got {opening.header.time_ms} to {header.time_ms}"
        )
    return f"all lines stand in blocks {opening.header.height} to {header.height}"


def _find_first_leaf(opening: Opening) -> int:
    """Return the first leaf of the opening block, which its parent's header tells."""
    if opening.header.height == 1 and not opening.parent:
        return 0
    if [hash_header(parent).hex() for parent in opening.parent] != [opening.header.prev_hash]:
        raise InvalidProofError("opening: its parent is not the block that it names")
    return opening.parent[0].tree_size


def _list_lines(statement: StatementBundle, transactions: Sequence[Transaction]) -> list[Line]:
    """Return the lines of the account; a receipt that is not its business adds to nothing."""
    lines = (
        build_line(statement.account, entry.envelope.payload, entry.index, transaction.id)
        for entry, transaction in zip(statement.entries, transactions, strict=True)
    )
    return [line for line in lines if line is not None]


def _list_failed(
    statement: StatementBundle, judged: Sequence[tuple[Claim, ...]]
) -> tuple[FailedLine, ...]:
    return tuple(
        FailedLine(
            leaf=entry.index,
            receipt_id=entry.envelope.payload.receipt_id,
            claims=failed,
        )
        for entry, claims in zip(statement.entries, judged, strict=True)
        if (failed := tuple(claim for claim in claims if claim.status == "failed"))
    )
