"""ledger.db: whole blocks in order or nothing, and a tail that is checked before it is trusted."""

import contextlib
import sqlite3

import msgspec
import pytest

from ledger import merkle
from ledger.authorities import hash_authority_set
from ledger.block import Block, hash_genesis, hash_header
from ledger.encoding import encode
from ledger.errors import InvalidTransactionError, StoreError
from ledger.payloads import find_receipt_id
from ledger.proof import verify_bundle
from ledger.store.chain import ChainStore, load_block, locate_node
from ledger.store.database import PAGE_SIZE_BYTES
from ledger.store.fsck import verify_chain
from ledger.views.bundles import load_bundle
from scripts import verify_receipt as script
from tests.builders import (
    Chain,
    build_certificate,
    build_chain,
    build_evidence,
    build_genesis,
    build_key,
    build_members,
    build_receipt,
)

SIZES = (1, 3, 2, 5, 1)
CHAIN = build_chain(1, blocks=SIZES)
COORDINATOR = build_key("coordinator")


def fill(path, chain: Chain = CHAIN, blocks: int | None = None) -> ChainStore:
    """A store with the first `blocks` blocks of a chain."""
    store = ChainStore(path, chain.genesis)
    for block, certificate in list(zip(chain.blocks, chain.certificates, strict=True))[:blocks]:
        store.append(block, certificate).result()
    return store


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.db"


@pytest.fixture
def store(path):
    store = fill(path)
    yield store
    store.close()


def count_rows(store: ChainStore) -> dict[str, int]:
    tables = ("blocks", "transactions", "receipts", "tree_nodes", "authority_sets")
    read = store.database.reader.execute
    counted = {name: read(f"SELECT count(*) FROM {name}").fetchone()[0] for name in tables}
    return counted | {"counter": read("SELECT value FROM counters").fetchone()[0]}


def test_an_empty_store_stands_at_genesis(path):
    genesis = build_genesis()
    with contextlib.closing(ChainStore(path, genesis)) as store:
        assert store.tip() == build_chain(1).tip
        assert load_block(store.database.reader, 1) is None


def test_the_tip_is_the_newest_block_in_this_and_the_next_life(store, path):
    assert store.tip() == CHAIN.tip
    store.close()
    with contextlib.closing(ChainStore(path, CHAIN.genesis)) as again:
        assert again.tip() == CHAIN.tip


def test_a_tip_seen_in_an_old_snapshot_is_not_kept(path):
    with contextlib.closing(ChainStore(path, CHAIN.genesis)) as store:
        with store.database.snapshot() as connection:
            connection.execute("SELECT count(*) FROM blocks").fetchone()  # the snapshot begins here
            store.append(CHAIN.blocks[0], CHAIN.certificates[0]).result()
            assert store.tip().height == 0
        assert store.tip().height == 1


def test_a_tip_is_new_as_soon_as_its_block_can_be_read(path, monkeypatch):
    store = ChainStore(path, CHAIN.genesis)
    writer = store.database._writer
    seen = []

    class Watched:
        """The writer's connection, with somebody who looks just when a commit is done."""

        def __init__(self, connection):
            self._connection = connection

        def __getattr__(self, name):
            return getattr(self._connection, name)

        def execute(self, statement, *arguments):
            if statement == "COMMIT":
                seen.append(store.tip().height)
            cursor = self._connection.execute(statement, *arguments)
            if statement == "COMMIT":
                seen.append(store.tip().height)
            return cursor

    session = writer._session
    monkeypatch.setattr(session, "connection", Watched(session.connection))
    assert store.tip().height == 0
    store.append(CHAIN.blocks[0], CHAIN.certificates[0]).result()
    assert [*seen, store.tip().height] == [0, 1, 1]
    store.close()


def test_while_a_block_is_stored_the_recent_tip_is_the_one_before_it_and_no_older_one(
    path, monkeypatch
):
    with contextlib.closing(ChainStore(path, CHAIN.genesis)) as store:
        writer = store.database._writer
        assert store.tip().height == 0
        store.append(CHAIN.blocks[0], CHAIN.certificates[0]).result()
        writer.version += 1  # as it is from just before a commit until just after it
        assert store.recent_tip().height == 1
        writer.version += 1
        assert store.recent_tip().height == 1
        writer.version += 1
        monkeypatch.setattr("ledger.store.chain.load_tip", lambda _: pytest.fail("read"))
        assert store.recent_tip().height == 1
        monkeypatch.undo()
        writer.version += 1
        store.append(CHAIN.blocks[1], CHAIN.certificates[1]).result()
        assert store.recent_tip().height == 2


def test_every_block_comes_back_as_it_went_in(store):
    for height, expected in enumerate(zip(CHAIN.blocks, CHAIN.certificates, strict=True), 1):
        assert load_block(store.database.reader, height) == expected
    assert load_block(store.database.reader, len(SIZES) + 1) is None


def test_every_tree_node_is_stored_once_under_its_own_number(store):
    for (level, index), node in CHAIN.nodes.items():
        assert store.read_node(level, index) == node
    assert len({locate_node(*place) for place in CHAIN.nodes}) == len(CHAIN.nodes)
    assert count_rows(store)["tree_nodes"] == len(CHAIN.nodes)
    with pytest.raises(StoreError, match="missing"):
        store.read_node(0, CHAIN.tip.tree_size)


def test_the_stored_tree_gives_the_root_of_every_header(store):
    for block in CHAIN.blocks:
        root = merkle.compute_root(block.header.tree_size, store.read_node)
        assert root.hex() == block.header.tree_root


def test_it_knows_each_transaction_by_its_id_and_its_receipt(store):
    for transaction in CHAIN.transactions:
        receipt_id = transaction.payload.receipt_id
        assert store.contains(bytes(transaction.id), receipt_id)
        assert store.contains(bytes(transaction.id), "rcp_other")
        assert store.contains(b"another id", receipt_id)
    assert not store.contains(b"another id", "rcp_other")


def test_counts_are_kept_with_the_blocks(store):
    total = sum(SIZES)
    found = count_rows(store)
    assert (found["blocks"], found["transactions"], found["receipts"]) == (5, total, total)
    assert found["counter"] == total


@pytest.mark.parametrize("held", [0, 1, 3, 5])
def test_a_block_that_does_not_extend_the_tip_is_refused(path, held):
    with contextlib.closing(fill(path, blocks=held)) as store:
        before = count_rows(store)
        for height, block in enumerate(CHAIN.blocks, 1):
            if height != held + 1:
                with pytest.raises(StoreError, match=f"expected block {held + 1} on"):
                    store.append(block, CHAIN.certificates[height - 1]).result()
        assert count_rows(store) == before


def test_a_block_on_another_parent_of_the_same_height_is_refused(path):
    other = build_chain(1)
    other.append(build_receipt(other.genesis, 77))
    other.append(build_receipt(other.genesis, 78))
    with contextlib.closing(fill(path, blocks=1)) as store:
        with pytest.raises(StoreError, match="expected block 2 on"):
            store.append(other.blocks[1], other.certificates[1]).result()
        store.append(CHAIN.blocks[1], CHAIN.certificates[1]).result()


def duplicate_transaction(chain: Chain):
    """A block that repeats a transaction of an earlier block, beside a new one."""
    return chain.append(build_receipt(chain.genesis, 90), chain.transactions[0])


def duplicate_receipt(chain: Chain):
    """A block with another receipt for a job that has one."""
    return chain.append(
        build_receipt(chain.genesis, 90), build_receipt(chain.genesis, 2, client="other")
    )


@pytest.mark.parametrize("build", [duplicate_transaction, duplicate_receipt])
def test_nothing_is_stored_of_a_block_that_repeats_what_is_final(path, build):
    chain = build_chain(1, blocks=SIZES)
    with contextlib.closing(fill(path, chain)) as store:
        before, tip = count_rows(store), store.tip()
        bad = build(chain)
        with pytest.raises(InvalidTransactionError, match="not unique"):
            store.append(bad, chain.certificates[-1]).result()
        assert count_rows(store) == before
        assert store.tip() == tip
        assert not store.contains(bytes(bad.transactions[0].id), "rcp_other")


def test_a_file_of_another_network_is_refused(store, path):
    other = build_genesis(network="other-net")
    with pytest.raises(StoreError, match=f"{hash_genesis(other).hex()[:16]}.*belongs to this data"):
        ChainStore(path, other)
    assert store.tip() == CHAIN.tip


# --- changes of the authority set, and evidence ----------------------------------------------


def build_changed_chain() -> Chain:
    """Four authorities, then five with a coordinator, then one; evidence on the way."""
    chain = build_chain(4, blocks=[2])
    five = build_members(5, epoch=1)
    chain.change_authorities(five, build_receipt(chain.genesis, 3), coordinators=[COORDINATOR])
    chain.append(
        build_evidence(chain.genesis, five[2], height=2, view=6), build_receipt(chain.genesis, 4)
    )
    chain.change_authorities(five[:1], build_evidence(chain.genesis, five[3], height=4))
    chain.append(build_receipt(chain.genesis, 5))
    return chain


CHANGED = build_changed_chain()


def test_changes_are_stored_with_what_made_them_and_where_they_begin(path):
    with contextlib.closing(fill(path, CHANGED)) as store:
        assert store.tip() == CHANGED.tip
        rows = store.database.reader.execute("SELECT * FROM authority_sets ORDER BY epoch")
        sets = [CHANGED.genesis.authority_set, *(e.authority_set for e in CHANGED.epochs)]
        assert [tuple(row) for row in rows] == [
            (epoch, hash_authority_set(s), from_height, encode(s).decode(), leaf)
            for epoch, (s, from_height, leaf) in enumerate(
                zip(sets, (1, 3, 5), (None, 3, 7), strict=True)
            )
        ]
    with contextlib.closing(ChainStore(path, CHANGED.genesis)) as again:
        assert again.tip() == CHANGED.tip


def test_every_transaction_is_stored_under_its_type_and_counted_as_what_it_is(path):
    with contextlib.closing(fill(path, CHANGED)) as store:
        types = store.database.reader.execute("SELECT type FROM transactions ORDER BY leaf")
        assert [kind for (kind,) in types] == [t.type for t in CHANGED.transactions]
        assert {t.type for t in CHANGED.transactions} == {"receipt", "authority_set", "evidence"}
        found = count_rows(store)
        assert (found["receipts"], found["counter"], found["transactions"]) == (5, 5, 9)
        evidence = store.database.reader.execute("SELECT * FROM evidence ORDER BY leaf")
        accused = build_members(5, epoch=1)
        assert [tuple(row) for row in evidence] == [
            (4, accused[2].account, 2, 6),
            (6, accused[3].account, 4, 0),
        ]
        for transaction in CHANGED.transactions:
            receipt_id = find_receipt_id(transaction.payload)
            assert store.contains(bytes(transaction.id), receipt_id)
        assert not store.contains(b"another id", None)


def test_every_block_of_a_changed_chain_comes_back_and_verifies(path):
    with contextlib.closing(fill(path, CHANGED)) as store:
        for height, expected in enumerate(
            zip(CHANGED.blocks, CHANGED.certificates, strict=True), 1
        ):
            assert load_block(store.database.reader, height) == expected
    assert verify_chain(path, CHANGED.genesis, lambda *_: None) == CHANGED.tip


@pytest.mark.parametrize("receipt", [1, 3, 4, 5])
def test_bundles_from_the_file_prove_receipts_across_changes(path, receipt):
    receipt_id = build_receipt(CHANGED.genesis, receipt).payload.receipt_id
    with contextlib.closing(fill(path, CHANGED)) as store:
        data = load_bundle(store.database.reader, receipt_id)
    place = next(
        i for i, t in enumerate(CHANGED.transactions) if find_receipt_id(t.payload) == receipt_id
    )
    assert data == encode(CHANGED.bundle(place))
    assert verify_bundle(data, genesis=CHANGED.genesis).verified
    document = script.parse_genesis(encode(CHANGED.genesis))
    assert script.verify(script.parse_bundle(data), document, {})["verified"]


def test_a_block_whose_header_names_a_set_it_does_not_make_is_refused(path):
    chain = build_chain(4, blocks=[2])
    block = chain.propose(build_receipt(chain.genesis, 3))
    header = msgspec.structs.replace(block.header, next_set_hash="00" * 32)
    with contextlib.closing(fill(path, chain)) as store:
        before = count_rows(store)
        with pytest.raises(StoreError, match="names next set"):
            store.append(
                Block(hash=hash_header(header), header=header, transactions=block.transactions),
                build_certificate(header, chain.members),
            ).result()
        assert count_rows(store) == before


# --- the tail ---------------------------------------------------------------------------------

DAMAGE = {
    "the header": "UPDATE blocks SET header = replace(header, ',\"height\":5', ',\"height\":6')"
    " WHERE height = 5",
    "a header that is none": "UPDATE blocks SET header = '{}' WHERE height = 5",
    "the block hash": "UPDATE blocks SET hash = randomblob(32) WHERE height = 5",
    "the certificate": "UPDATE blocks SET certificate = (SELECT certificate FROM blocks"
    " WHERE height = 4) WHERE height = 5",
    "a certificate that is none": "UPDATE blocks SET certificate = '' WHERE height = 5",
    "the authority set": "UPDATE authority_sets SET hash = randomblob(32)",
    "the right edge of the tree": f"UPDATE tree_nodes SET hash = randomblob(32)"
    f" WHERE position = {locate_node(3, 0)}",
    "a missing node": f"DELETE FROM tree_nodes WHERE position = {locate_node(2, 2)}",
}


def damage(path, statement: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA foreign_keys = OFF")
        assert connection.execute(statement).rowcount > 0
        connection.commit()


@pytest.mark.parametrize("statement", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_tail_is_found_when_the_file_is_opened(store, path, statement):
    store.close()
    damage(path, statement)
    with pytest.raises(StoreError, match="run fsck"):
        ChainStore(path, CHAIN.genesis)


def test_a_file_that_is_no_ledger_is_refused(path):
    path.write_bytes(b"nonsense" * 1000)
    with pytest.raises(StoreError, match="cannot be opened as a database"):
        ChainStore(path, CHAIN.genesis)


@pytest.mark.parametrize("table", ["genesis", "blocks", "tree_nodes"])
def test_a_page_of_rubbish_is_told_as_damage(store, path, table):
    sql = "SELECT rootpage FROM sqlite_schema WHERE name = ?"
    (page,) = store.database.reader.execute(sql, (table,)).fetchone()
    store.close()
    with path.open("r+b") as file:
        file.seek((page - 1) * PAGE_SIZE_BYTES)
        file.write(b"\xff" * PAGE_SIZE_BYTES)
    with pytest.raises(StoreError, match="malformed"):
        ChainStore(path, CHAIN.genesis)
