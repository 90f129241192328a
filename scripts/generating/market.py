"""The jobs and miners behind the receipts, in node.db: as a node has them when texts are purged.

Some jobs failed or were cancelled, and have no receipt. A job's row has twice the number of its
receipt, so the newest row tells how far an earlier run came.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from ledger.block import hash_genesis
from ledger.jobs import Miner as StoredMiner
from ledger.jobs import build_job_id, normalize_model
from ledger.store.market import open_market
from ledger.store.registry import recount_attempts, upsert_miner
from node.datadir import DataDirectory
from scripts.generating.draws import draw, is_among
from scripts.generating.months import Deal, MarketStory, Months
from scripts.generating.people import SHARES, draw_bytes

DAY_MS = 86_400_000
KEPT_TEXTS_MS = 7 * DAY_MS
BATCH_BLOCKS = 200

_LOST = 45
"""Of a thousand jobs, how many have a neighbour that came to nothing."""
_ENDINGS = (
    ("failed", "max_attempts", "the runtime ran out of memory"),
    ("failed", "queue_timeout", None),
    ("cancelled", "cancelled_by_client", None),
)
"""State, reason, and what the miner said."""
_COLUMNS = (
    *("seq", "id", "state", "status_reason", "client", "owner", "model", "model_key", "prompt"),
    *("max_tokens", "temperature_micros", "top_p_micros", "stop", "seed", "prompt_salt"),
    *("result_salt", "price_token_micros", "price_gpu_second_micros", "created_at_ms"),
    *("started_at_ms", "completed_at_ms", "attempt", "miner_id", "provider", "error"),
    *("receipt_id", "texts_purged_at_ms"),
)
_INSERT = f"INSERT INTO jobs ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})"  # noqa: S608
"""Of own words."""


def fill_market(
    data: DataDirectory, recipe: Months, story: MarketStory, progress: Callable[[int], None]
) -> None:
    """Write what is missing; `progress` gets how many receipts have their job.

    Raises:
        StoreError: the directory is damaged.
    """
    with contextlib.closing(
        open_market(data.market, hash_genesis(data.load_genesis()))
    ) as database:
        end_ms = story.end_ms
        database.write(lambda c: _add_miners(c, story, end_ms)).result()
        (newest,) = database.reader.execute("SELECT coalesce(max(seq), 0) FROM jobs").fetchone()
        for start in range(0, recipe.blocks, BATCH_BLOCKS):
            deals = [
                deal
                for number in range(start, min(start + BATCH_BLOCKS, recipe.blocks))
                if story.list_receipts(number)[-1] * 2 + 2 > newest
                for deal in story.list_deals(number)
            ]
            rows = [row for deal in deals for row in _describe(story, deal) if row[0] > newest]
            database.write(partial(_insert, rows)).result()
            if deals:
                progress(deals[-1].number + 1)
        database.write(recount_attempts).result()


def _insert(rows: Sequence[tuple[object, ...]], connection: sqlite3.Connection) -> None:
    connection.executemany(_INSERT, rows)


def _add_miners(connection: sqlite3.Connection, story: MarketStory, end_ms: int) -> None:
    for miner in story.miners:
        share_ms = story.days * DAY_MS // SHARES
        upsert_miner(
            connection,
            StoredMiner(
                miner_id=miner.name,
                account=miner.key.account if miner.key is not None else None,
                capabilities=tuple(model.name for model in miner.models),
                gpu_name=miner.gpu[0] or None,
                gpu_memory=miner.gpu[1] or None,
                owner="",
                registered_at_ms=end_ms - (SHARES - miner.from_share) * share_ms,
                last_seen_at_ms=end_ms - (SHARES - miner.to_share) * share_ms,
                audits=miner.key is not None,
            ),
        )


def _describe(story: MarketStory, deal: Deal) -> Iterator[tuple[object, ...]]:
    receipt = story.build_receipt(deal)
    end_ms = min(deal.completed_ms + KEPT_TEXTS_MS, story.end_ms)
    seq = 2 * deal.number + 1
    yield (
        *_describe_order(story, deal, seq, deal.job_id, ("completed", "completed")),
        *(deal.created_ms, deal.started_ms, deal.completed_ms, deal.attempt),
        *(deal.miner.name, receipt.provider, None, receipt.receipt_id, end_ms),
    )
    number, which = draw(f"lost {story.seed} {deal.number}", 2)
    if not is_among(number, _LOST):
        return
    state, reason, error = _ENDINGS[which % len(_ENDINGS)]
    ran = error is not None
    job_id = build_job_id(
        now_ms=deal.created_ms, entropy=draw_bytes(f"lost {story.seed} {seq}", 10)
    )
    yield (
        *_describe_order(story, deal, seq + 1, job_id, (state, reason)),
        *(deal.created_ms, deal.started_ms if ran else None, deal.completed_ms, 3 if ran else 0),
        *((deal.miner.name, receipt.provider) if ran else (None, None)),
        *(error, None, end_ms),
    )


def _describe_order(
    story: MarketStory, deal: Deal, seq: int, job_id: bytes, state: tuple[str, str]
) -> tuple[object, ...]:
    salts = draw_bytes(f"salts {story.seed} {seq}", 64)
    name = deal.model.name
    return (
        *(seq, job_id, *state, deal.client, "", name, normalize_model(name), ""),
        *(deal.max_tokens, 700_000, 950_000, "[]", deal.seed, salts[:32], salts[32:]),
        *(deal.token_price_micros, 800),
    )
