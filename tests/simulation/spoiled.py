"""Blocks that break one rule each, by proposers whose turn it is."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import msgspec

from ledger.block import Block, hash_header
from ledger.rules import build_block
from ledger.transaction import Transaction, build_transaction, parse_transaction
from tests.builders import build_change_payload, build_key, sign_change
from tests.simulation.forgery import Forger
from tests.simulation.machine import Machine
from tests.simulation.material import KEYS, build_set, build_simulated_audit

FAR = "ab" * 32
"""The hash of nothing."""
UNSEALED_RECEIPT = 39
"""Nobody ever puts this one into a block."""


def spoil_header(rng: random.Random, victim: Machine, block: Block, forger: Forger) -> Block:
    tip = victim.tip
    changes: list[dict[str, Any]] = [
        {"tree_root": FAR},
        {"tree_size": block.header.tree_size + 1},
        {"prev_hash": FAR},
        {"height": tip.height + 2},
        {"set_hash": FAR},
        {"next_set_hash": FAR},
        {"time_ms": tip.time_ms},
        {"genesis": forger.other_network.hex()},
        {"proposer": build_key("miner").account},
    ]
    return replace_header(block, **rng.choice(changes))


def replace_header(block: Block, **changes: Any) -> Block:
    header = msgspec.structs.replace(block.header, **changes)
    return Block(hash=hash_header(header), header=header, transactions=block.transactions)


def rebuild(victim: Machine, block: Block, transactions: Iterable[Transaction]) -> Block:
    """Return `block` with another body, and with the header that belongs to it."""
    return build_block(
        victim.tip,
        list(transactions),
        time_ms=block.header.time_ms,
        proposer=block.header.proposer,
        read=victim.read_node,
    )


def spoil_signature(rng: random.Random, victim: Machine, block: Block, forger: Forger) -> Block:
    """A receipt whose signatures are of another receipt."""
    del rng, forger
    receipt = block.transactions[0]
    payload = msgspec.structs.replace(receipt.payload, price_micros=1_000_000_000)
    return rebuild(victim, block, [build_transaction(payload, receipt.signatures)])


def repeat_final_transaction(
    rng: random.Random, victim: Machine, block: Block, forger: Forger
) -> Block:
    """Somebody is to pay twice."""
    row = victim.disk.ledger.execute("SELECT envelope FROM transactions LIMIT 1").fetchone()
    if row is None:
        return spoil_header(rng, victim, block, forger)
    return rebuild(victim, block, [parse_transaction(row[0].encode())])


def audit_what_is_not_there(
    rng: random.Random, victim: Machine, block: Block, forger: Forger
) -> Block:
    """An audit, signed by both, of a receipt that no block holds."""
    del rng, forger
    audit = build_simulated_audit(victim.network.genesis, UNSEALED_RECEIPT)
    return rebuild(victim, block, [audit])


def change_set_alone(rng: random.Random, victim: Machine, block: Block, forger: Forger) -> Block:
    """A next set of liars, for which nobody else has signed."""
    del rng
    return rebuild(victim, block, [build_liars_change(victim, forger, epochs=1)])


def skip_epoch(rng: random.Random, victim: Machine, block: Block, forger: Forger) -> Block:
    """A change that fits another epoch."""
    return rebuild(victim, block, [build_liars_change(victim, forger, epochs=rng.choice([0, 2]))])


def replay_change(rng: random.Random, victim: Machine, block: Block, forger: Forger) -> Block:
    """A change that a quorum once signed, for an epoch that is over or has not come."""
    epoch = victim.tip.authority_set.epoch + 1
    changes = [
        change
        for change in victim.network.granted.values()
        if change.payload.authority_set.epoch != epoch
    ]
    if not changes:
        return skip_epoch(rng, victim, block, forger)
    return rebuild(victim, block, [rng.choice(changes)])


def build_liars_change(victim: Machine, forger: Forger, *, epochs: int) -> Transaction:
    liars = list(forger.own.values()) or [KEYS[-1]]
    following = build_set(liars, epoch=victim.tip.authority_set.epoch + epochs)
    return sign_change(build_change_payload(victim.tip, following), liars)


def name_unchanged_set(rng: random.Random, victim: Machine, block: Block, forger: Forger) -> Block:
    """A change that everybody signed, under a header that does not know of it."""
    del rng
    everybody = list(forger.everybody)
    following = build_set(everybody[::-1], epoch=victim.tip.authority_set.epoch + 1)
    change = sign_change(build_change_payload(victim.tip, following), everybody)
    changed = rebuild(victim, block, [change])
    return replace_header(changed, next_set_hash=changed.header.set_hash)


SPOILS = (
    spoil_header,
    spoil_signature,
    repeat_final_transaction,
    audit_what_is_not_there,
    change_set_alone,
    skip_epoch,
    replay_change,
    name_unchanged_set,
)
"""Each takes a source of chance, a node, a block that is valid on its tip, and a forger."""
