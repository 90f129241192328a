"""Stores what a recipe tells: signed by many processes, sealed and stored in order by one.

Blocks enter many at a time. The vote of the last one of a batch is on disk before the batch is, as
with an authority; those below are final then, and their votes may be forgotten. What is stored is
whole batches: a run that is broken off loses no more than one, and the next goes on after it.
"""

from __future__ import annotations

import contextlib
import signal
import sqlite3
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context

from ledger import merkle
from ledger.block import Block, Certificate, Tip, advance_tip, hash_genesis
from ledger.keys import KeyPair
from ledger.rules import build_block
from ledger.store.appending import append_block
from ledger.store.chain import ChainStore
from ledger.store.votes import VoteStore
from ledger.transaction import Transaction, parse_transaction
from ledger.vote import VoteRecord, cast_vote
from node.datadir import DataDirectory, load_key
from scripts.generating.story import Recipe, recall

BATCHES_AHEAD = 3
"""Batches per process that may be signed before they are stored."""

CACHE_KB = 512_000

Progress = Callable[[int], None]
"""Gets the number of transactions that the chain has, after every batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Signed:
    """A block to be sealed, as it comes from another process."""

    time_ms: int
    envelopes: list[bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sealed:
    """A block with its certificate, and the tip it follows."""

    tip: Tip
    block: Block
    certificate: Certificate


def store_story(
    data: DataDirectory,
    recipe: Recipe,
    *,
    done: int = 0,
    processes: int = 1,
    progress: Progress = lambda _stored: None,
) -> Tip:
    """Append the blocks of a recipe from number `done` on to a directory that no node runs on.

    Raises:
        StoreError: the directory is missing, damaged or in use.
    """
    authority, instance = load_key(data.authority_key)
    genesis = data.load_genesis()
    digest = hash_genesis(genesis)
    with (
        contextlib.closing(
            VoteStore.open(
                data.votes, instance=instance, account=authority.account, genesis_hash=digest
            )
        ) as votes,
        contextlib.closing(ChainStore(data.ledger, genesis)) as chain,
    ):
        chain.database.write(_enlarge_cache).result()
        stored: Future[None] | None = None
        for batch in _sign_all(recipe, done=done, processes=processes):
            bodies = [(signed.time_ms, _parse(signed)) for signed in batch]
            # While one batch is stored the next one is read; it is sealed upon what is stored.
            if stored is not None:
                stored.result()
                progress(chain.tip().tree_size)
            stored = _store(chain, votes, authority, bodies)
        if stored is not None:
            stored.result()
        progress(chain.tip().tree_size)
        return chain.tip()


def _enlarge_cache(connection: sqlite3.Connection) -> None:
    # Receipts come in no order that an index has: with all its pages in memory none is read again.
    connection.execute(f"PRAGMA cache_size = -{CACHE_KB}")


def _parse(signed: _Signed) -> list[Transaction]:
    return [parse_transaction(envelope) for envelope in signed.envelopes]


def _store(
    chain: ChainStore,
    votes: VoteStore,
    authority: KeyPair,
    bodies: Sequence[tuple[int, Sequence[Transaction]]],
) -> Future[None]:
    sealed: list[_Sealed] = []
    added: dict[tuple[int, int], bytes] = {}
    tip = chain.tip()

    def read(level: int, index: int) -> bytes:
        return added[level, index] if (level, index) in added else chain.read_node(level, index)

    for time_ms, transactions in bodies:
        block = build_block(
            tip, transactions, time_ms=time_ms, proposer=authority.account, read=read
        )
        vote = cast_vote(
            authority, member=0, tip=tip, kind="finalize", view=0, block_hash=block.hash.hex()
        )
        certificate = Certificate(view=0, votes=((0, vote.sig),))
        sealed.append(_Sealed(tip=tip, block=block, certificate=certificate))
        leaves = [merkle.hash_leaf(transaction.envelope) for transaction in transactions]
        added |= merkle.append_leaves(tip.tree_size, leaves, read)
        tip = advance_tip(tip, block)
    # A run that was broken off may have recorded it, and stored nothing.
    if not votes.load(tip.height).votes:
        votes.record(VoteRecord(height=tip.height, votes=(vote,)))
    return chain.database.write(lambda connection: _append(connection, sealed))


def _append(connection: sqlite3.Connection, sealed: Sequence[_Sealed]) -> None:
    for one in sealed:
        append_block(connection, one.block, one.certificate, one.tip, {})


def _sign_all(recipe: Recipe, *, done: int, processes: int) -> Iterator[list[_Signed]]:
    """Yield the batches in order, signed a bounded number ahead.

    A batch ends at a multiple of its size, wherever the first one begins.
    """
    size = recipe.batch_blocks
    left = (
        (max(start, done), min(start + size, recipe.blocks))
        for start in range(done - done % size, recipe.blocks, size)
    )
    with ProcessPoolExecutor(processes, get_context("spawn"), _ignore_interrupts) as pool:
        waiting: deque[Future[list[_Signed]]] = deque(
            pool.submit(_sign, recipe, *range_)
            for range_ in islice(left, BATCHES_AHEAD * processes)
        )
        try:
            while waiting:
                batch = waiting.popleft().result()
                waiting.extend(pool.submit(_sign, recipe, *range_) for range_ in islice(left, 1))
                yield batch
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _ignore_interrupts() -> None:
    # Ctrl-C reaches all of them; the one that stores says how it ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _sign(recipe: Recipe, start: int, end: int) -> list[_Signed]:
    story = recall(recipe)
    return [
        _Signed(time_ms=block.time_ms, envelopes=[draft.sign().envelope for draft in block.drafts])
        for block in map(story.tell, range(start, end))
    ]
