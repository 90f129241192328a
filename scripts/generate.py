"""Make a data directory with a long chain: really signed receipts in certified blocks.

    .venv/bin/python -m scripts.generate DIRECTORY --receipts 1000000

Worker processes sign, one block each; this process seals and stores what they send, in order, so
memory does not grow with the chain. Everything is as a node would have made it: fsck finds no
fault, and `./aitbc run --data DIRECTORY` goes on from there. Jobs and texts behind the receipts
there are none. On a directory that has a chain the new blocks follow its last one.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from functools import cache
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

from blake3 import blake3

from ledger.block import Certificate, Tip, hash_genesis
from ledger.errors import LedgerError
from ledger.hashing import build_receipt_id, hash_text, hash_tokens
from ledger.jobs import build_job_id, format_job_id
from ledger.keys import KeyPair
from ledger.rules import build_block
from ledger.store.chain import ChainStore
from ledger.store.votes import VoteStore
from ledger.transaction import (
    MICROS,
    ReceiptPayload,
    Transaction,
    build_transaction,
    parse_transaction,
    sign_payload,
)
from ledger.vote import VoteRecord, cast_vote
from node.datadir import DataDirectory, create_data_directory, load_key

DEFAULT_BLOCK_RECEIPTS = 500
INTERVAL_MS = 250
"""Between two receipts; a new directory's genesis lies so far back that the last one is of now."""
BLOCKS_AHEAD = 2
"""Blocks per process that may be signed before they are stored."""

CLIENTS = 1000
MINERS = 16
MODELS = ("smollm2:135m", "llama3.2", "mistral:7b")
TOKEN_PRICE_MICROS = 10

Progress = Callable[[int], None]
"""Gets the number of receipts stored, after every block."""


class ReceiptMaker:
    """Builds and signs receipts of one network. The same number gives the same receipt."""

    def __init__(self, data: DataDirectory) -> None:
        genesis = data.load_genesis()
        self._genesis = hash_genesis(genesis).hex()
        self._created_ms = genesis.created_ms
        self._coordinator, _ = load_key(data.authority_key)
        self._miners = [
            KeyPair.from_seed(blake3(f"generated miner {i}".encode()).digest())
            for i in range(MINERS)
        ]

    def make(self, number: int) -> Transaction:
        """Return the receipt at leaf `number`."""
        miner = self._miners[number % MINERS]
        payload = self._build_payload(number, miner.account)
        signatures = (
            sign_payload(payload, self._coordinator, "coordinator"),
            sign_payload(payload, miner, "provider"),
        )
        return build_transaction(payload, signatures)

    def _build_payload(self, number: int, provider: str) -> ReceiptPayload:
        started_ms = self._created_ms + number * INTERVAL_MS
        job_id = format_job_id(build_job_id(now_ms=started_ms, entropy=number.to_bytes(10, "big")))
        salt = blake3(f"generated salt {number}".encode()).digest()
        prompt_tokens, completion_tokens = 20 + number % 180, 1 + number % 120
        tokens = prompt_tokens + completion_tokens
        return ReceiptPayload(
            genesis=self._genesis,
            receipt_id=build_receipt_id(
                genesis=self._genesis, coordinator=self._coordinator.account, job_id=job_id
            ),
            job_id=job_id,
            attempt=1,
            client=f"client-{number % CLIENTS}",
            provider=provider,
            coordinator=self._coordinator.account,
            model=MODELS[number % len(MODELS)],
            model_digest=blake3(b"generated model").hexdigest(),
            prompt_digest=hash_text(salt, f"prompt {number}").hex(),
            result_digest=hash_text(salt, f"result {number}").hex(),
            tokens_digest=hash_tokens(salt, (number % 2**32,)).hex(),
            max_tokens=128,
            temperature_micros=700_000,
            top_p_micros=900_000,
            seed=number,
            sampler="aitbc-gumbel-v1",
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            unit_type="tokens",
            units_micros=tokens * MICROS,
            price_micros=tokens * TOKEN_PRICE_MICROS,
            started_at_ms=started_ms,
            completed_at_ms=started_ms + INTERVAL_MS - 1,
            metered_by="provider",
        )


def generate(
    data: DataDirectory,
    *,
    receipts: int,
    block_receipts: int = DEFAULT_BLOCK_RECEIPTS,
    processes: int = 1,
    progress: Progress = lambda _stored: None,
) -> Tip:
    """Append receipts to the chain of a data directory that no node runs on; return its new tip.

    Raises:
        StoreError: the directory is missing, damaged or in use.
    """
    authority, instance = load_key(data.authority_key)
    genesis = data.load_genesis()
    with (
        data.lock(),
        contextlib.closing(
            VoteStore.open(
                data.votes,
                instance=instance,
                account=authority.account,
                genesis_hash=hash_genesis(genesis),
            )
        ) as votes,
        contextlib.closing(ChainStore(data.ledger, genesis)) as chain,
    ):
        first = chain.tip().tree_size
        ranges = [
            (start, min(start + block_receipts, first + receipts))
            for start in range(first, first + receipts, block_receipts)
        ]
        for envelopes in _sign_all(data.root, ranges, processes):
            _seal(chain, votes, authority, [parse_transaction(envelope) for envelope in envelopes])
            progress(chain.tip().tree_size - first)
        return chain.tip()


def _seal(
    chain: ChainStore, votes: VoteStore, authority: KeyPair, transactions: list[Transaction]
) -> None:
    tip, newest = chain.tip(), transactions[-1].payload
    assert isinstance(newest, ReceiptPayload), "this script makes receipts"
    block = build_block(
        tip,
        transactions,
        time_ms=newest.completed_at_ms,
        proposer=authority.account,
        read=chain.read_node,
    )
    vote = cast_vote(
        authority, member=0, tip=tip, kind="finalize", view=0, block_hash=block.hash.hex()
    )
    votes.record(VoteRecord(height=tip.height + 1, votes=(vote,)))
    chain.append(block, Certificate(view=0, votes=((0, vote.sig),))).result()


def _sign_all(root: Path, ranges: list[tuple[int, int]], processes: int) -> Iterator[list[bytes]]:
    """Yield the envelopes of each range in order, signed a bounded number of blocks ahead."""
    left = iter(ranges)
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        waiting: deque[Future[list[bytes]]] = deque(
            pool.submit(_sign, root, *numbers) for numbers in islice(left, BLOCKS_AHEAD * processes)
        )
        while waiting:
            envelopes = waiting.popleft().result()
            waiting.extend(pool.submit(_sign, root, *numbers) for numbers in islice(left, 1))
            yield envelopes


def _sign(root: Path, start: int, end: int) -> list[bytes]:
    maker = _load_maker(root)
    return [maker.make(number).envelope for number in range(start, end)]


@cache
def _load_maker(root: Path) -> ReceiptMaker:
    return ReceiptMaker(DataDirectory(root))


def main(arguments: list[str] | None = None) -> int:
    """Run the command. Returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("directory", type=Path, help="data directory; it is made if missing")
    parser.add_argument("--receipts", type=int, default=1000)
    parser.add_argument("--block-receipts", type=int, default=DEFAULT_BLOCK_RECEIPTS)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args(arguments)
    data, began = DataDirectory(options.directory), time.monotonic()

    def show(stored: int) -> None:
        rate = stored / (time.monotonic() - began)
        print(
            f"\r{stored:,} of {options.receipts:,} receipts, {rate:,.0f}/s", end="", file=sys.stderr
        )

    try:
        if not data.root.exists():
            created_ms = time.time_ns() // 1_000_000 - options.receipts * INTERVAL_MS
            create_data_directory(
                data.root, network="aitbc-generated", name="authority-1", now_ms=created_ms
            )
        tip = generate(
            data,
            receipts=options.receipts,
            block_receipts=options.block_receipts,
            processes=options.processes,
            progress=show,
        )
    except LedgerError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"\r{data.root}: {tip.tree_size:,} receipts in {tip.height:,} blocks")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
