"""Who seals blocks, since when, by which transaction, and what there is against whom."""

from __future__ import annotations

import sqlite3

from ledger.authorities import AuthoritySet
from ledger.encoding import decode
from ledger.store.chain import load_tip
from ledger.store.reading import require_history
from ledger.views.models import (
    MAX_PAGE,
    AuthoritiesView,
    AuthorityView,
    EpochView,
    EvidenceView,
)


def load_authorities(ledger: sqlite3.Connection) -> AuthoritiesView:
    """Return the set that certifies the next block, how it came about, and all evidence.

    Raises:
        HistoryMissingError: changes or evidence may be missing.
    """
    require_history(ledger)
    tip = load_tip(ledger)
    current = tip.authority_set
    names = {member.account: member.name for member in current.members}
    epochs = _load_epochs(ledger)
    return AuthoritiesView(
        height=tip.height,
        epoch=current.epoch,
        set_hash=epochs[0].set_hash,
        from_height=epochs[0].from_height,
        quorum=current.quorum,
        members=tuple(
            AuthorityView(
                index=index,
                account=member.account,
                name=member.name,
                url=member.url,
                evidence=_count_evidence(ledger, member.account),
            )
            for index, member in enumerate(current.members)
        ),
        coordinators=current.coordinators,
        epochs=epochs,
        evidence=_load_evidence(ledger, names),
    )


def load_epoch(ledger: sqlite3.Connection, epoch: int) -> AuthoritySet | None:
    """Return the authority set of an epoch that has begun."""
    row = ledger.execute("SELECT document FROM authority_sets WHERE epoch = ?", (epoch,)).fetchone()
    return decode(row[0].encode(), AuthoritySet) if row else None


def _count_evidence(ledger: sqlite3.Connection, account: str) -> int:
    (count,) = ledger.execute(
        "SELECT count(*) FROM (SELECT 1 FROM evidence WHERE accused = ? LIMIT ?)",
        (account, MAX_PAGE),
    ).fetchone()
    return int(count)


def _load_epochs(ledger: sqlite3.Connection) -> tuple[EpochView, ...]:
    rows = ledger.execute(
        "SELECT s.hash, s.from_height, s.document, t.id FROM authority_sets s"
        " LEFT JOIN transactions t ON t.leaf = s.leaf ORDER BY s.epoch DESC LIMIT ?",
        (MAX_PAGE,),
    )
    return tuple(
        _view_epoch(decode(document.encode(), AuthoritySet), set_hash, from_height, transaction_id)
        for set_hash, from_height, document, transaction_id in rows
    )


def _view_epoch(
    authority_set: AuthoritySet, set_hash: bytes, from_height: int, transaction_id: bytes | None
) -> EpochView:
    return EpochView(
        epoch=authority_set.epoch,
        set_hash=set_hash.hex(),
        from_height=from_height,
        members=len(authority_set.members),
        quorum=authority_set.quorum,
        transaction_id=transaction_id.hex() if transaction_id is not None else None,
    )


def _load_evidence(ledger: sqlite3.Connection, names: dict[str, str]) -> tuple[EvidenceView, ...]:
    rows = ledger.execute(
        "SELECT t.id, t.height, e.accused, e.height, e.view FROM evidence e"
        " JOIN transactions t USING (leaf) ORDER BY e.leaf DESC LIMIT ?",
        (MAX_PAGE,),
    )
    return tuple(
        EvidenceView(
            transaction_id=transaction_id.hex(),
            block_height=block_height,
            accused=accused,
            name=names.get(accused),
            height=height,
            view=view,
        )
        for transaction_id, block_height, accused, height, view in rows
    )
