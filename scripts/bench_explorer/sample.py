"""What of a ledger is visited: things chosen by chance, and whose lists are longest."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from ledger.jobs import format_job_id
from ledger.store.database import open_reader
from node.datadir import DataDirectory

SAMPLE = 200
"""Receipts, blocks and jobs whose pages are visited."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What of a ledger is visited."""

    leaves: int
    height: int
    jobs: int
    receipts: Sequence[sqlite3.Row]
    blocks: Sequence[sqlite3.Row]
    job_ids: Sequence[str]
    model: str
    """With the most receipts, as the others below."""
    client: str
    provider: str
    first_ms: int
    last_ms: int


def read_sample(data: DataDirectory, random: Random) -> Sample:
    """Choose what to visit."""
    ledger, market = open_reader(data.ledger), open_reader(data.market)
    try:
        (leaves,) = ledger.execute("SELECT max(leaf) FROM receipts").fetchone()
        (height,) = ledger.execute("SELECT max(height) FROM blocks").fetchone()
        (jobs,) = market.execute("SELECT max(seq) FROM jobs").fetchone()
        first_ms, last_ms = ledger.execute(
            "SELECT (SELECT time_ms FROM blocks WHERE height = 1), time_ms FROM blocks"
            " ORDER BY height DESC LIMIT 1"
        ).fetchone()
        return Sample(
            leaves=leaves,
            height=height,
            jobs=jobs,
            receipts=[
                ledger.execute(
                    "SELECT r.*, t.id, t.height FROM receipts r JOIN transactions t USING (leaf)"
                    " WHERE leaf >= ? ORDER BY leaf LIMIT 1",
                    (random.randrange(leaves + 1),),
                ).fetchone()
                for _ in range(SAMPLE)
            ],
            blocks=[
                ledger.execute(
                    "SELECT * FROM blocks WHERE height = ?", (random.randint(1, height),)
                ).fetchone()
                for _ in range(SAMPLE)
            ],
            job_ids=[
                format_job_id(
                    market.execute(
                        "SELECT id FROM jobs WHERE seq >= ? ORDER BY seq LIMIT 1",
                        (random.randint(1, jobs),),
                    ).fetchone()[0]
                )
                for _ in range(SAMPLE)
            ],
            model=_find_largest(
                ledger,
                "SELECT model FROM usage_rollups WHERE span_ms = 86400000 AND model <> ''"
                " GROUP BY model ORDER BY sum(receipts) DESC",
            ),
            client=_find_largest(
                ledger, "SELECT account FROM accounts ORDER BY spent_receipts DESC"
            ),
            provider=_find_largest(
                ledger, "SELECT account FROM accounts ORDER BY earned_receipts DESC"
            ),
            first_ms=first_ms,
            last_ms=last_ms,
        )
    finally:
        ledger.close()
        market.close()


def _find_largest(connection: sqlite3.Connection, statement: str) -> str:
    return str(connection.execute(f"{statement} LIMIT 1").fetchone()[0])
