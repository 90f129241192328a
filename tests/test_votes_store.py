"""`votes.db`: the rules that the database holds by itself, whose file it is, and crashes."""

import shutil
import sqlite3

import pytest

from consensus.engine import Engine
from consensus.interface import (
    BlockBuilt,
    BuildBlock,
    Commit,
    HeightOpened,
    Persist,
    Send,
    TransactionsWaiting,
)
from ledger.block import verify_certificate
from ledger.errors import StoreError
from ledger.rules import validate_block
from ledger.store.votes import KEEP_HEIGHTS, VoteStore
from ledger.vote import QuorumCertificate, Vote, VoteRecord, cast_vote
from tests.builders import build_chain, build_receipt

CHAIN = build_chain(1)
KEY = CHAIN.members[0]
BLOCK = CHAIN.propose(*(build_receipt(CHAIN.genesis, number) for number in (1, 2, 3)))
OWNER = {
    "instance": "4f1c7d20a95b4e7c8f0d3a6b1e2c9d85",
    "account": KEY.account,
    "genesis_hash": CHAIN.tip.genesis_hash,
}


def vote(kind: str, view: int = 0, block_hash: str = BLOCK.hash.hex()) -> Vote:
    named = "" if kind == "nullify" else block_hash
    return cast_vote(KEY, member=0, tip=CHAIN.tip, kind=kind, view=view, block_hash=named)


def certificate(kind: str, view: int = 0) -> QuorumCertificate:
    held = vote(kind, view)
    return QuorumCertificate(
        kind=kind, view=view, block_hash=held.block_hash, votes=((0, held.sig),)
    )


def record(*votes: Vote, height: int = 1, **rest) -> VoteRecord:
    return VoteRecord(height=height, votes=votes, **rest)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "votes.db"


@pytest.fixture
def store(path):
    store = VoteStore.create(path, **OWNER)
    yield store
    store.close()


# What it keeps


def test_what_is_recorded_is_loaded_again_in_this_and_the_next_life(store, path):
    store.record(record(vote("notarize"), blocks=(BLOCK,)))
    store.record(record(vote("finalize"), certificates=(certificate("notarize"),)))
    store.record(record(vote("nullify", 1), certificates=(certificate("nullify", 1),)))
    expected = record(
        vote("finalize"),
        vote("notarize"),
        vote("nullify", 1),
        blocks=(BLOCK,),
        certificates=(certificate("notarize"), certificate("nullify", 1)),
    )
    assert store.load(1) == expected
    assert store.load(2) == VoteRecord(height=2)
    store.close()
    again = VoteStore.open(path, **OWNER)
    assert again.load(1) == expected
    again.close()


def test_a_body_or_certificate_met_twice_is_stored_once(store):
    for kind in ("notarize", "finalize"):
        store.record(record(vote(kind), blocks=(BLOCK,), certificates=(certificate("notarize"),)))
    assert store.load(1).blocks == (BLOCK,)
    assert store.load(1).certificates == (certificate("notarize"),)


def test_old_heights_are_forgotten_and_never_voted_on_again(store):
    for height in range(1, 3 * KEEP_HEIGHTS):
        store.record(record(vote("notarize"), height=height, blocks=(BLOCK,)))
    oldest = 2 * KEEP_HEIGHTS - 1
    assert store.load(oldest).votes
    for table in ("vote", "block"):
        (rows,) = store._connection.execute(f"SELECT count(*) FROM {table}").fetchone()
        assert rows == KEEP_HEIGHTS + 1
    with pytest.raises(StoreError, match=r"votes are forgotten; ledger\.db is older"):
        store.load(oldest - 1)


# R1 and R2, held by the database


@pytest.mark.parametrize("kind", ["notarize", "nullify", "finalize"])
def test_r1_a_second_vote_of_a_kind_in_a_view_is_refused(store, kind):
    store.record(record(vote(kind)))
    other = vote(kind, block_hash="ab" * 32)
    with pytest.raises(StoreError, match="UNIQUE"):
        store.record(record(other))
    assert store.load(1).votes == (vote(kind),)


@pytest.mark.parametrize(("first", "second"), [("nullify", "finalize"), ("finalize", "nullify")])
def test_r2_nullify_and_finalize_in_one_view_are_refused(store, first, second):
    store.record(record(vote(first)))
    with pytest.raises(StoreError, match="R2"):
        store.record(record(vote(second)))
    with pytest.raises(StoreError, match="R2"):
        store.record(record(vote("notarize", 1), vote(first, 1), vote(second, 1)))
    assert store.load(1).votes == (vote(first),)
    store.record(record(vote(second, 1)))
    store.record(record(vote(second), height=2))


def test_nothing_of_a_refused_record_is_stored(store):
    store.record(record(vote("notarize")))
    with pytest.raises(StoreError):
        store.record(
            record(
                vote("finalize"),
                vote("notarize", block_hash="ab" * 32),
                blocks=(BLOCK,),
                certificates=(certificate("notarize"),),
            )
        )
    assert store.load(1) == record(vote("notarize"))


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE vote SET block_hash = zeroblob(32)",
        "UPDATE vote SET kind = 'finalize'",
        "DELETE FROM vote",
        "INSERT INTO vote VALUES (1, 1, 'notarize', NULL, 0, zeroblob(64))",
        "INSERT INTO vote VALUES (1, 1, 'nullify', zeroblob(32), 0, zeroblob(64))",
        "INSERT INTO vote VALUES (1, 1, 'abstain', zeroblob(32), 0, zeroblob(64))",
        "INSERT INTO vote VALUES (1, 1, 'notarize', zeroblob(31), 0, zeroblob(64))",
        "INSERT INTO vote VALUES (1, 1, 'notarize', zeroblob(32), 0, zeroblob(63))",
        "INSERT INTO vote VALUES (1, 1, 'notarize', zeroblob(32), 0, 'text')",
        "INSERT INTO owner VALUES (2, '', '', zeroblob(32), 0)",
    ],
)
def test_the_schema_refuses_a_changed_lost_or_shapeless_vote(store, statement):
    store.record(record(vote("notarize")))
    with pytest.raises(sqlite3.IntegrityError):
        store._connection.execute(statement)
    assert store.load(1) == record(vote("notarize"))


def test_every_commit_waits_for_the_disk(store):
    (synchronous,) = store._connection.execute("PRAGMA synchronous").fetchone()
    (mode,) = store._connection.execute("PRAGMA journal_mode").fetchone()
    assert (synchronous, mode) == (2, "wal")


# Whose file it is


def test_a_missing_file_refuses_to_vote_and_says_what_to_do(path):
    with pytest.raises(StoreError) as caught:
        VoteStore.open(path, **OWNER)
    message = str(caught.value)
    assert "\n" not in message
    for part in ("refuses to vote", "authority_set", "never restore", "started anew", str(path)):
        assert part in message
    assert not path.exists()


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"instance": "another"}, "instance"),
        ({"account": build_chain(2).members[1].account}, "account"),
        ({"genesis_hash": bytes(32)}, "genesis"),
    ],
)
def test_a_foreign_file_is_refused(store, path, changed, named):
    with pytest.raises(StoreError, match=f"expected {named} ") as caught:
        VoteStore.open(path, **OWNER | changed)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_there_is_not_made_again(store, path):
    store.record(record(vote("notarize")))
    with pytest.raises(StoreError, match="exists already"):
        VoteStore.create(path, **OWNER)
    assert store.load(1).votes == (vote("notarize"),)


@pytest.mark.parametrize("content", [b"", b"not a database, though long enough to be read " * 99])
def test_a_damaged_file_is_refused(path, content):
    path.write_bytes(content)
    with pytest.raises(StoreError):
        VoteStore.open(path, **OWNER)


@pytest.mark.parametrize("table", ["block", "certificate"])
def test_a_damaged_row_is_refused(store, table):
    store.record(record(vote("notarize"), blocks=(BLOCK,), certificates=(certificate("notarize"),)))
    store._connection.execute(f"UPDATE {table} SET document = x'7b7d'")
    with pytest.raises(StoreError, match="height 1 is damaged"):
        store.load(1)


def test_an_unfinished_creation_is_started_over(path):
    for end in ("", "-wal", "-shm"):
        path.with_name("votes.db.draft" + end).write_bytes(b"torn")
    store = VoteStore.create(path, **OWNER)
    assert store.load(1) == VoteRecord(height=1)
    store.close()
    assert [entry.name for entry in path.parent.iterdir()] == ["votes.db"]


def test_a_directory_that_is_not_there_is_reported(tmp_path):
    with pytest.raises(StoreError, match=r"nowhere.*cannot be created"):
        VoteStore.create(tmp_path / "nowhere" / "votes.db", **OWNER)


# Crashes


def test_the_files_of_a_process_that_died_hold_every_recorded_vote(store, path, tmp_path):
    for view in range(20):
        store.record(record(vote("notarize", view), vote("nullify", view), blocks=(BLOCK,)))
        image = tmp_path / f"after {view}"
        image.mkdir()
        for file in path.parent.glob("votes.db*"):  # taken while the writer holds them open
            shutil.copy(file, image)
        reopened = VoteStore.open(image / "votes.db", **OWNER)
        assert reopened.load(1) == store.load(1)
        assert len(reopened.load(1).votes) == 2 * (view + 1)
        with pytest.raises(StoreError, match="UNIQUE"):
            reopened.record(record(vote("notarize", view, "ab" * 32)))
        reopened.close()


class Validator:
    def validate(self, block, tip, *, is_fresh):
        assert is_fresh
        validate_block(block, tip, CHAIN.read)


def test_one_authority_with_its_real_store_and_rules_survives_a_crash_before_and_after_it_persists(
    tmp_path,
):
    for executed in range(2):
        path = tmp_path / f"{executed}.db"
        store = VoteStore.create(path, **OWNER)
        engine = Engine(key=KEY, validator=Validator())
        engine.step(HeightOpened(tip=CHAIN.tip, record=store.load(1)))
        request, _ = engine.step(TransactionsWaiting())
        assert isinstance(request, BuildBlock)
        effects = engine.step(BlockBuilt(block=BLOCK))
        assert [type(effect) for effect in effects] == [Persist, Send, Commit]
        if executed:
            store.record(effects[0].record)
        store.close()

        store = VoteStore.open(path, **OWNER)
        again = Engine(key=KEY, validator=Validator())
        effects = again.step(HeightOpened(tip=CHAIN.tip, record=store.load(1)))
        commits = [effect for effect in effects if isinstance(effect, Commit)]
        if executed:
            assert [commit.block for commit in commits] == [BLOCK]
            assert not [effect for effect in effects if isinstance(effect, Persist)]
            verify_certificate(
                commits[0].certificate,
                header=BLOCK.header,
                authority_set=CHAIN.tip.authority_set,
            )
        else:
            assert commits == []
        store.close()
