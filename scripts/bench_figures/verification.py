"""How fast blocks, whole ledgers and proof bundles are verified, beside bare libsodium."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import cycle

from ledger.block import (
    Block,
    Certificate,
    Tip,
    build_genesis_tip,
    hash_genesis,
    verify_certificate,
)
from ledger.encoding import encode
from ledger.keys import forget_signatures
from ledger.rules import validate_block
from ledger.store.chain import ChainStore, load_block
from ledger.store.fsck import verify_chain
from ledger.store.market import open_market
from ledger.views import LedgerViews, ReceiptFilter
from node.clock import read_clock_ms
from node.datadir import DataDirectory
from scripts import verify_receipt
from scripts.bench_figures.measure import Plan, Row, Work, measure_rates
from scripts.bench_figures.node_process import make_data_directory
from scripts.bench_figures.references import Signatures
from scripts.generate import INTERVAL_MS, generate

BLOCK_RECEIPTS = 100
SMALL_BLOCKS = 200
BUNDLES = 50

Step = tuple[Block, Certificate, Tip]
"""A block with its certificate, and the tip that it stands on."""


def measure_verification(plan: Plan) -> Iterator[Row]:
    """Verify on one core; every receipt carries two signatures, every certificate one."""
    large = _make_chain(plan, "large", receipts=plan.receipts, block_receipts=BLOCK_RECEIPTS)
    small = _make_chain(plan, "small", receipts=SMALL_BLOCKS, block_receipts=1)
    with contextlib.ExitStack() as stack:
        chains = [stack.enter_context(_open_chain(data)) for data in (large, small)]
        works = {
            "verify": Signatures().verify,
            "receipts": _validate_blocks(chains[0]),
            "blocks": _validate_blocks(chains[1]),
            "fsck": _check_ledger(large, plan.receipts),
            "bundles": _verify_bundles(large, chains[0]),
        }
        rates = measure_rates(works, rounds=plan.rounds, slice_s=plan.slice_s)
    # Figure, its name in the table, signatures of one operation, goal.
    for name, figure, signatures, goal in (
        ("receipts", f"receipts validated, blocks of {BLOCK_RECEIPTS}", 2, "ratio >= 0.85"),
        ("blocks", "blocks of one receipt validated", 3, ""),
        ("fsck", "receipts verified from disk (fsck)", 2, ""),
        ("bundles", "bundles verified (verify_receipt.py)", 3, ""),
    ):
        yield Row(
            figure=figure,
            value=rates[name].per_second,
            unit="/s",
            reference=f"{signatures} libsodium verifications",
            reference_value=rates["verify"].per_second / signatures,
            goal=goal,
            cpu_micros=rates[name].cpu_micros,
        )


def _make_chain(plan: Plan, name: str, *, receipts: int, block_receipts: int) -> DataDirectory:
    created_ms = read_clock_ms() - receipts * INTERVAL_MS
    data = make_data_directory(plan.folder / name, created_ms=created_ms)
    generate(data, receipts=receipts, block_receipts=block_receipts)
    return data


def _open_chain(data: DataDirectory) -> contextlib.closing[ChainStore]:
    return contextlib.closing(ChainStore(data.ledger, data.load_genesis()))


def _list_steps(chain: ChainStore) -> Sequence[Step]:
    steps: list[Step] = []
    tip = build_genesis_tip(chain.genesis)
    while found := load_block(chain.database.reader, tip.height + 1):
        steps.append((*found, tip))
        block, header = found[0], found[0].header
        tip = replace(
            tip,
            height=header.height,
            hash=block.hash,
            time_ms=header.time_ms,
            tree_size=header.tree_size,
        )
    return steps


def _validate_blocks(chain: ChainStore) -> Work:
    """Check parsed blocks with their certificates; counts receipts."""
    steps = cycle(_list_steps(chain))

    def validate() -> int:
        block, certificate, tip = next(steps)
        forget_signatures()
        validate_block(block, tip, chain.read_node)
        verify_certificate(certificate, header=block.header, authority_set=tip.authority_set)
        return len(block.transactions)

    return validate


def _check_ledger(data: DataDirectory, receipts: int) -> Work:
    genesis = data.load_genesis()

    def check() -> int:
        forget_signatures()
        verify_chain(data.ledger, genesis, lambda _height, _last: None)
        return receipts

    return check


def _verify_bundles(data: DataDirectory, chain: ChainStore) -> Work:
    """Parse and verify bundles as the stand-alone script does."""
    genesis = verify_receipt.parse_genesis(encode(chain.genesis))
    with contextlib.closing(open_market(data.market, hash_genesis(chain.genesis))) as market:
        views = LedgerViews(chain, market)
        receipts = views.receipts(ReceiptFilter(), limit=BUNDLES)
        bundles = cycle([views.bundle(receipt.payload.receipt_id) or b"" for receipt in receipts])

    def verify() -> int:
        verdict = verify_receipt.verify(verify_receipt.parse_bundle(next(bundles)), genesis, {})
        assert verdict["verified"]
        return 1

    return verify
