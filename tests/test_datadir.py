"""A node's data directory: private where it must be, whole or not there, held by one node."""

import contextlib
import json
import os
import stat
import threading

import pytest

from ledger.block import hash_genesis
from ledger.errors import LedgerError, StoreError
from ledger.store.market import open_market
from ledger.store.votes import VoteStore
from node.datadir import (
    DataDirectory,
    create_data_directory,
    create_key,
    load_key,
)
from node.files import write_private
from tests.builders import CREATED_MS, build_key


def make(root, **changes) -> DataDirectory:
    fields = {"network": "test-net", "name": "first", "now_ms": CREATED_MS, **changes}
    return create_data_directory(root, **fields)


def mode(path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def data(tmp_path):
    return make(tmp_path / "data")


# --- making one -------------------------------------------------------------------------------


def test_it_holds_genesis_keys_and_votes_that_belong_together(data):
    genesis = data.load_genesis()
    key, instance = load_key(data.authority_key)
    (member,) = genesis.authority_set.members
    assert (member.account, member.name) == (key.account, "first")
    assert (genesis.network, genesis.created_ms) == ("test-net", CREATED_MS)
    assert len(instance) == 32
    miner, no_instance = load_key(data.miner_key)
    assert miner.account != key.account
    assert no_instance == ""
    assert data.votes.is_file()


def test_nobody_else_may_read_what_is_private(data, monkeypatch):
    assert mode(data.root) == mode(data.authority_key.parent) == 0o700
    assert mode(data.authority_key) == mode(data.miner_key) == mode(data.votes) == 0o600
    assert mode(data.genesis) & 0o077 == 0o044
    open_market(data.market, hash_genesis(data.load_genesis())).close()
    assert mode(data.market) == 0o600


def test_two_directories_share_nothing(tmp_path):
    one, two = make(tmp_path / "one"), make(tmp_path / "two")
    assert one.load_genesis() != two.load_genesis()
    assert load_key(one.authority_key)[1] != load_key(two.authority_key)[1]


def test_nothing_is_made_where_something_is(data, tmp_path):
    before = sorted(path.name for path in data.root.iterdir())
    with pytest.raises(StoreError, match="is not an empty directory"):
        make(data.root)
    assert sorted(path.name for path in data.root.iterdir()) == before
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(StoreError, match="is not an empty directory"):
        make(file)
    assert file.read_text() == "mine"


def test_an_empty_directory_and_missing_parents_will_do(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir(mode=0o755)
    assert mode(make(empty).root) == 0o700
    assert make(tmp_path / "a" / "b" / "c").genesis.is_file()


def test_a_mounted_volume_is_refused_with_a_way_out(tmp_path, monkeypatch):
    volume = tmp_path / "volume"
    volume.mkdir()
    with monkeypatch.context() as mounted:
        mounted.setattr(type(volume), "is_mount", lambda path: path == volume)
        with pytest.raises(StoreError, match=r"choose one inside, such as --data .*volume/node"):
            make(volume)
    assert make(volume / "node").genesis.exists()


@pytest.mark.parametrize(
    "names",
    [
        {"network": "Not Good"},
        {"network": ""},
        {"network": "-x"},
        {"name": ""},
        {"name": "x" * 65},
        {"name": "a\nb"},
    ],
)
def test_a_name_that_no_genesis_may_hold_makes_nothing(tmp_path, names):
    with pytest.raises(LedgerError):
        make(tmp_path / "data", **names)
    assert list(tmp_path.iterdir()) == []


# --- keys and private files -------------------------------------------------------------------


def test_a_key_file_is_read_as_it_was_written(tmp_path):
    key = create_key(tmp_path / "keys" / "mine.json", instance="abc")
    loaded, instance = load_key(tmp_path / "keys" / "mine.json")
    assert (loaded.account, instance) == (key.account, "abc")
    assert loaded.sign(b"x") == key.sign(b"x")


def break_account(stored: dict) -> str:
    return json.dumps({**stored, "account": build_key("other").account})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (break_account, "its seed belongs to"),
        (lambda stored: json.dumps({**stored, "seed": "AAAA"}), "is not a key file"),
        (lambda stored: json.dumps({**stored, "seed": "!" * 43}), "is not a key file"),
        (lambda stored: json.dumps({**stored, "more": 1}), "is not a key file"),
        (lambda stored: json.dumps({**stored, "v": 2}), "is not a key file"),
        (lambda stored: json.dumps({"account": stored["account"]}), "is not a key file"),
        (lambda stored: "[]", "is not a key file"),
        (lambda stored: "", "is not a key file"),
    ],
)
def test_a_key_file_that_is_none_is_refused_without_showing_the_seed(data, spoil, message):
    stored = json.loads(data.miner_key.read_bytes())
    data.miner_key.write_text(spoil(stored))
    with pytest.raises(StoreError, match=message) as caught:
        load_key(data.miner_key)
    assert stored["seed"] not in str(caught.value)


def test_a_missing_key_file_is_named(tmp_path):
    with pytest.raises(StoreError, match=r"none\.json: cannot be read: No such file"):
        load_key(tmp_path / "none.json")


def test_a_private_file_is_replaced_whole_and_stays_private(tmp_path):
    path = tmp_path / "secret"
    (tmp_path / "secret.draft").write_text("what a crash left")
    for content in (b"one", b"two"):
        write_private(path, content)
        assert (path.read_bytes(), mode(path)) == (content, 0o600)
    assert [entry.name for entry in tmp_path.iterdir()] == ["secret"]


def test_a_private_file_is_private_from_its_first_moment(tmp_path, monkeypatch):
    """A mode that is set afterwards comes too late for whoever opened the file before."""
    seen = []
    fsync = os.fsync

    def look(descriptor):
        seen.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", look)
    write_private(tmp_path / "secret", b"x")
    assert seen[0] == 0o600


# --- genesis and lock -------------------------------------------------------------------------


def test_a_directory_without_genesis_says_how_to_make_one(tmp_path):
    with pytest.raises(StoreError, match=r"make a data directory with \./aitbc init --data"):
        DataDirectory(tmp_path).load_genesis()


@pytest.mark.parametrize("spoil", [lambda b: b[:-5], lambda b: b" " + b, lambda b: b"{}"])
def test_a_genesis_that_is_none_is_refused(data, spoil):
    data.genesis.write_bytes(spoil(data.genesis.read_bytes()))
    with pytest.raises(StoreError, match=r"genesis\.json"):
        data.load_genesis()


def test_a_directory_is_held_by_one_node_at_a_time(data):
    with (
        data.lock(),
        pytest.raises(StoreError, match="another node runs on this data directory"),
        data.lock(),
    ):
        pass
    with data.lock():
        pass


def test_of_several_creators_one_wins_and_its_directory_is_whole(tmp_path):
    for number in range(20):
        root = tmp_path / f"data-{number}"
        barrier, made = threading.Barrier(3), []

        def create(root=root, barrier=barrier, made=made):
            barrier.wait()
            with contextlib.suppress(StoreError):
                made.append(create_data_directory(root, network="n", name="a", now_ms=CREATED_MS))

        threads = [threading.Thread(target=create) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(made) == 1
        data = DataDirectory(root)
        key, instance = load_key(data.authority_key)
        genesis = data.load_genesis()
        assert genesis.authority_set.members[0].account == key.account
        VoteStore.open(
            data.votes,
            instance=instance,
            account=key.account,
            genesis_hash=hash_genesis(genesis),
        ).close()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        f"data-{number}" for number in range(20)
    )
