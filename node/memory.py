"""Whether an authority's votes.db and its ledger.db fit together well enough to vote.

A ledger that is behind the votes is harmless: what was decided is fetched, or is in votes.db still.
Votes that are behind the ledger are an old copy, and whoever votes from one may contradict itself.
"""

from __future__ import annotations

from ledger.errors import StoreError
from ledger.store.chain import ChainStore, load_authority_set, load_block
from ledger.store.votes import VoteStore


def refuse_old_votes(chain: ChainStore, votes: VoteStore, *, account: str) -> None:
    """Refuse to vote from a votes.db that lacks a vote which the chain shows.

    A vote is on disk before it is said, and those of the newest heights are kept: so the vote of
    this key in the newest certificate, if there is one, stands in its votes.db.

    Raises:
        StoreError: it does not.
    """
    connection, height = chain.database.reader, chain.tip().height
    found = load_block(connection, height)
    if found is None or height < votes.forgotten_below:
        return
    block, certificate = found
    authority_set = load_authority_set(connection, bytes.fromhex(block.header.set_hash))
    member = authority_set.index_of(account)
    has_voted = any(index == member for index, _ in certificate.votes)
    if has_voted and not any(vote.kind == "finalize" for vote in votes.load(height).votes):
        raise StoreError(
            f"{votes.path}: does not know this key's vote for block {height}, which is final: it "
            "is an old copy, and this authority refuses to vote from it. Put the file back that "
            "was there before, or treat it as lost: have the other authorities replace the key (an "
            "authority_set transaction). A network of one authority has to be started anew"
        )


def refuse_to_wait_for_nobody(chain: ChainStore, votes: VoteStore) -> None:
    """Refuse to run on a ledger that ends before all that is remembered, with nobody to ask.

    Raises:
        StoreError: it does.
    """
    height, remembered = chain.tip().height, votes.forgotten_below
    if height + 1 < remembered:
        raise StoreError(
            f"{chain.database.path}: ends at block {height}, and this authority has voted on the "
            f"blocks up to {remembered - 1} and forgotten how: it must not vote on them again. "
            "Start it with --peer URL, the address of a node that has them, such as a follower; "
            "or restore a newer ledger.db. Never replace votes.db"
        )
