"""A ledger of copies is long, opens as any other, and is read to its end."""

import shutil
from contextlib import closing

import pytest

from ledger.block import hash_genesis
from ledger.errors import LedgerError, StoreError
from ledger.store.chain import ChainStore
from ledger.store.fsck import verify_chain
from ledger.store.market import open_market
from ledger.views import LedgerViews, ReceiptFilter
from node.datadir import DataDirectory
from scripts.multiply import multiply
from tests.generated_ledger import ORDER

TIMES = 3


@pytest.fixture(scope="module")
def source(generated, tmp_path_factory):
    """One that no other test holds open."""
    root = tmp_path_factory.mktemp("source") / "data"
    shutil.copytree(generated.root, root)
    return DataDirectory(root)


@pytest.fixture(scope="module")
def multiplied(source, tmp_path_factory):
    data = DataDirectory(tmp_path_factory.mktemp("multiplied") / "data")
    leaves = multiply(source, data, times=TIMES)
    return data, leaves


def test_every_receipt_is_there_so_many_times_under_ids_of_its_own(multiplied):
    data, leaves = multiplied
    with closing(ChainStore(data.ledger, data.load_genesis())) as chain:
        assert chain.tip().tree_size == leaves
        read = chain.database.reader.execute
        for column, table in (("receipt_id", "receipts"), ("job_id", "receipts")):
            (count,) = read(f"SELECT count(DISTINCT {column}) FROM {table}").fetchone()
            assert count == TIMES * ORDER.receipts
        (count,) = read("SELECT count(DISTINCT id) FROM transactions").fetchone()
        assert count == leaves
        (first, last, blocks) = read(
            "SELECT min(height), max(height), count(*) FROM blocks"
        ).fetchone()
        assert (first, last) == (1, blocks)
        times_ms = [row[0] for row in read("SELECT time_ms FROM blocks ORDER BY height")]
        assert times_ms == sorted(times_ms)


def test_views_lead_through_all_copies_and_count_them(multiplied):
    data, leaves = multiplied
    genesis = data.load_genesis()
    with (
        closing(ChainStore(data.ledger, genesis)) as chain,
        closing(open_market(data.market, hash_genesis(genesis))) as market,
    ):
        views = LedgerViews(chain, market)
        seen, before = [], None
        while page := views.receipts(ReceiptFilter(), limit=500, before=before):
            seen += page
            before = page[-1].transaction.leaf
        assert len(seen) == TIMES * ORDER.receipts == views.stats(ORDER.end_ms).total_receipts
        assert seen[0].transaction.leaf < leaves
        newest = seen[0].payload.receipt_id
        copy = views.receipt(newest)
        assert copy is not None
        assert copy.payload.receipt_id == newest


def test_only_the_newest_block_of_the_copies_is_true(multiplied):
    data, _ = multiplied
    with pytest.raises(LedgerError):
        verify_chain(data.ledger, data.load_genesis(), lambda *_: None)


def test_a_second_call_finds_it_whole_and_another_one_is_refused(source, multiplied, tmp_path):
    data, leaves = multiplied
    assert multiply(source, data, times=TIMES) == leaves
    with pytest.raises(StoreError, match="holds 3 times"):
        multiply(source, data, times=TIMES + 1)
    broken = DataDirectory(tmp_path / "broken")
    broken.root.mkdir()
    with pytest.raises(StoreError, match="broken off"):
        multiply(source, broken, times=TIMES)
