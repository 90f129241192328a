"""JSON of the chain and of the node: blocks, transactions, authorities, figures, health."""

from __future__ import annotations

from api.render import Json, format_micros, format_time
from ledger.transaction import AuditPayload, AuthoritySetPayload, EvidencePayload, ReceiptPayload
from ledger.views import (
    AuthoritiesView,
    BlockView,
    EpochView,
    HeadView,
    StatsView,
    SyncProgress,
    TransactionView,
)


def render_block(block: BlockView) -> Json:
    """Return a Block."""
    return {
        "height": block.height,
        "hash": block.hash,
        "timestamp": format_time(block.time_ms),
        "transactions": block.transactions,
        "prev_hash": block.prev_hash,
        "tree_size": block.tree_size,
        "tree_root": block.tree_root,
        "proposer": block.proposer,
        "proposer_name": block.proposer_name,
        "signatures": block.signed,
        "quorum": block.quorum,
        "authorities": len(block.votes),
        "size_bytes": block.size_bytes,
    }


def render_transaction(transaction: TransactionView) -> Json:
    """Return one transaction of the list."""
    shown: Json = {
        "transaction_id": transaction.id,
        "type": transaction.type,
        "status": transaction.finality,
        "timestamp": format_time(transaction.time_ms),
        "size_bytes": transaction.size_bytes,
        "signers": [{"role": s.role, "key_id": s.key_id} for s in transaction.signatures],
    }
    payload = transaction.payload
    match payload:
        case AuditPayload():
            shown |= {"receipt_id": payload.receipt_id, "verdict": payload.verdict}
        case ReceiptPayload():
            shown["receipt_id"] = payload.receipt_id
        case AuthoritySetPayload():
            shown["epoch"] = payload.authority_set.epoch
        case EvidencePayload():
            shown["accused"] = payload.accused
    if transaction.height is not None:
        shown["block_height"] = transaction.height
    if transaction.leaf is not None:
        shown["leaf"] = transaction.leaf
    return shown


def render_authorities(authorities: AuthoritiesView) -> Json:
    """Return Authorities."""
    return {
        "epoch": authorities.epoch,
        "set_hash": authorities.set_hash,
        "from_height": authorities.from_height,
        "height": authorities.height,
        "quorum": authorities.quorum,
        "members": [
            {
                "account": member.account,
                "name": member.name,
                "url": member.url,
                "evidence": member.evidence,
            }
            for member in authorities.members
        ],
        "coordinators": list(authorities.coordinators),
        "epochs": [_render_epoch(epoch) for epoch in authorities.epochs],
        "evidence": [
            {
                "transaction_id": found.transaction_id,
                "block_height": found.block_height,
                "accused": found.accused,
                "height": found.height,
                "view": found.view,
            }
            for found in authorities.evidence
        ],
    }


def _render_epoch(epoch: EpochView) -> Json:
    shown: Json = {
        "epoch": epoch.epoch,
        "set_hash": epoch.set_hash,
        "from_height": epoch.from_height,
        "members": epoch.members,
        "quorum": epoch.quorum,
    }
    if epoch.transaction_id is not None:
        shown["transaction_id"] = epoch.transaction_id
    return shown


def render_stats(stats: StatsView) -> Json:
    """Return NetworkStats."""
    shown: Json = {
        "total_jobs": stats.total_jobs,
        "active_miners": stats.active_miners,
        "total_receipts": stats.total_receipts,
        "block_height": stats.block_height,
        "jobs_24h": stats.jobs_24h,
    }
    if stats.median_price_micros is not None:
        shown["median_price"] = format_micros(stats.median_price_micros)
    if stats.block_time_ms is not None:
        shown["block_time_ms"] = stats.block_time_ms
    return shown


def render_health(head: HeadView, *, version: str, sync: SyncProgress | None) -> Json:
    """Return what `/health` says of a node that answers."""
    health: Json = {
        "status": "ok",
        "version": version,
        "network": head.network,
        "genesis": head.genesis,
        "height": head.height,
        "final_height": head.height,
        "head_hash": head.hash,
        "head_time": format_time(head.time_ms),
        "authorities": head.authorities,
        "pending_transactions": head.pending_transactions,
    }
    if sync is not None:
        health["sync"] = _render_sync(sync)
    if head.missing:
        health["missing"] = {"from": head.missing[0], "to": head.missing[-1]}
    return health


def _render_sync(sync: SyncProgress) -> Json:
    shown: Json = {
        "state": sync.state,
        "height": sync.height,
        "target_height": sync.target_height,
        "blocks_per_s": round(sync.blocks_per_s, 1),
        "receipts_per_s": round(sync.receipts_per_s, 1),
    }
    optional = {"eta_s": sync.eta_s, "source": sync.source, "last_error": sync.last_error}
    return shown | {name: value for name, value in optional.items() if value is not None}
