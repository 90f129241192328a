"""A generated ledger is a real one, and the same one each time."""

import hashlib
import sqlite3
from contextlib import closing

import pytest

from ledger.errors import StoreError
from ledger.store.chain import ChainStore
from ledger.store.fsck import verify_chain
from ledger.store.votes import VoteStore
from node.datadir import DataDirectory, load_key
from node.memory import refuse_old_votes
from scripts.generate import Order, generate_months
from scripts.generating import times
from scripts.generating.draws import Choices
from tests.generated_ledger import ORDER


class BrokenOffError(Exception):
    pass


def dump(path, table: str, order: str) -> str:
    """Stands for all rows of a table."""
    digest = hashlib.sha256()
    with closing(sqlite3.connect(path)) as connection:
        for row in connection.execute(f"SELECT * FROM {table} ORDER BY {order}"):
            digest.update(repr(row).encode())
    return digest.hexdigest()


def describe(data) -> list[str]:
    return [
        dump(data.ledger, "blocks", "height"),
        dump(data.ledger, "transactions", "leaf"),
        dump(data.market, "jobs", "seq"),
        dump(data.market, "miners", "miner_id"),
        data.authority_key.read_text(),
        data.genesis.read_text(),
    ]


def select(path, statement: str):
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(statement).fetchall()


def test_it_passes_fsck_and_its_authority_may_go_on(generated):
    tip = verify_chain(generated.ledger, generated.load_genesis(), lambda *_: None)
    assert select(generated.ledger, "SELECT count(*) FROM receipts") == [(ORDER.receipts,)]
    assert tip.tree_size > ORDER.receipts  # audits
    assert ORDER.end_ms - tip.time_ms < 3_600_000
    key, instance = load_key(generated.authority_key)
    with (
        closing(ChainStore(generated.ledger, generated.load_genesis())) as chain,
        closing(
            VoteStore.open(
                generated.votes,
                instance=instance,
                account=key.account,
                genesis_hash=chain.tip().genesis_hash,
            )
        ) as votes,
    ):
        refuse_old_votes(chain, votes, account=key.account)


def test_a_second_call_finds_it_whole(generated):
    before = describe(generated)
    generate_months(generated, ORDER)
    assert describe(generated) == before


def test_the_same_order_makes_the_same_ledger_however_often_it_is_broken_off(generated, tmp_path):
    """It takes other processes, and ends while it stores blocks and while it writes jobs."""
    data = DataDirectory(tmp_path / "data")
    reports = []

    def break_off(stored: int) -> None:
        reports.append(stored)
        if stored > 0:
            raise BrokenOffError

    for how in ({"progress": break_off}, {"progress_of_jobs": break_off}):
        with pytest.raises(BrokenOffError):
            generate_months(data, ORDER, processes=2, batch_blocks=30, **how)
    assert reports[0] < ORDER.receipts
    generate_months(data, ORDER)
    assert describe(data) == describe(generated)


def test_a_directory_of_another_order_is_left_alone(generated):
    other = Order(seed=8, receipts=1200, days=40, end_ms=ORDER.end_ms)
    with pytest.raises(StoreError, match="was made of"):
        generate_months(generated, other)


def test_there_is_something_to_see_on_every_page(generated):
    def count(path, statement: str) -> int:
        return select(path, statement)[0][0]

    assert count(generated.ledger, "SELECT count(DISTINCT model) FROM receipts") >= 10
    assert count(generated.ledger, "SELECT count(DISTINCT provider) FROM receipts") >= 25
    assert count(generated.ledger, "SELECT count(DISTINCT unit_type) FROM receipts") == 2
    assert count(generated.ledger, "SELECT count(*) FROM audits") >= 10
    days = "SELECT count(*) FROM usage_rollups WHERE span_ms = 86400000 AND model = ''"
    assert count(generated.ledger, days) >= 25
    states = dict(select(generated.market, "SELECT state, jobs FROM job_counts WHERE owner = '*'"))
    assert states["completed"] == ORDER.receipts
    assert min(states["failed"], states["cancelled"]) >= 5
    (jobs,) = select(
        generated.market,
        "SELECT count(*) FROM jobs WHERE receipt_id IS NOT NULL AND created_at_ms < started_at_ms"
        " AND started_at_ms < completed_at_ms",
    )[0]
    assert jobs == ORDER.receipts


def test_blocks_have_all_receipts_and_their_times_ascend():
    calendar = times.Calendar(seed=1, receipts=5000, days=20, created_ms=0)
    ends = times.list_block_ends(1, 5000)
    receipts = [n for number in range(len(ends)) for n in calendar.list_receipts(number)]
    assert receipts == list(range(5000))
    moments = [calendar.find_time(number) for number in range(len(ends))]
    assert moments == sorted(moments)
    assert moments[-1] == 20 * 24 * times.HOUR_MS


def test_choices_are_as_frequent_as_their_weights():
    choices = Choices("abc", [1, 0, 3])
    picked = [choices.choose(n << 22) for n in range(1 << 10)]
    assert (picked.count("a"), picked.count("b"), picked.count("c")) == (256, 0, 768)
