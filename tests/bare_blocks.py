"""Blocks without transactions, for tests of the engine alone, and a validator that lets them pass.

The simulator (`tests/simulation`) runs the engine on real blocks; here a test says itself what is
valid, and sees what the engine asked.
"""

from __future__ import annotations

from collections.abc import Iterable

from blake3 import blake3

from ledger.authorities import Authority, AuthoritySet, hash_authority_set
from ledger.block import (
    Block,
    Genesis,
    Header,
    Limits,
    Tip,
    build_genesis_tip,
    hash_header,
)
from ledger.errors import InvalidBlockError
from ledger.keys import KeyPair
from ledger.store.votes import VoteStore
from tests.builders import CREATED_MS
from tests.simulation.disk import VOTES, make_votes, name_owner


def build_keys(count: int) -> list[KeyPair]:
    return [KeyPair.from_seed(blake3(f"member {i}".encode()).digest()) for i in range(count)]


def build_tip(keys: Iterable[KeyPair], network: str = "bare") -> Tip:
    members = tuple(
        Authority(account=key.account, name=f"member {i}", url="") for i, key in enumerate(keys)
    )
    return build_genesis_tip(
        Genesis(
            network=network,
            created_ms=CREATED_MS,
            authority_set=AuthoritySet(epoch=0, members=members),
            limits=Limits(),
            settlement="off_chain",
        )
    )


def build_bare_block(tip: Tip, proposer: KeyPair, *, salt: str = "") -> Block:
    """A block without transactions, which only `BareValidator` accepts; `salt` varies its hash."""
    set_hash = hash_authority_set(tip.authority_set).hex()
    header = Header(
        genesis=tip.genesis_hash.hex(),
        height=tip.height + 1,
        prev_hash=tip.hash.hex(),
        time_ms=tip.time_ms + 1,
        tree_size=tip.tree_size + 1,
        tree_root=blake3(salt.encode()).hexdigest(),
        set_hash=set_hash,
        next_set_hash=set_hash,
        proposer=proposer.account,
    )
    return Block(hash=hash_header(header), header=header, transactions=())


def open_votes(tip: Tip, key: KeyPair | None) -> VoteStore:
    """The production `votes.db` of a member, in memory."""
    account = key.account if key is not None else "nobody"
    return VoteStore(VOTES, make_votes(**name_owner(account, tip.genesis_hash)))


class BareValidator:
    """Checks the header's place in the chain. Remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[bytes, bool]] = []
        self.refused: set[bytes] = set()

    def validate(self, block: Block, tip: Tip, *, is_fresh: bool) -> None:
        self.asked.append((block.hash, is_fresh))
        header = block.header
        place = (header.genesis, header.height, header.prev_hash)
        if place != (tip.genesis_hash.hex(), tip.height + 1, tip.hash.hex()):
            raise InvalidBlockError("header: it does not extend the tip")
        if header.time_ms <= tip.time_ms or block.hash in self.refused:
            raise InvalidBlockError("header: refused")
