"""A data directory is made by one process, or not at all."""

import contextlib
import threading

import pytest

from ledger.block import hash_genesis
from ledger.errors import LedgerError, StoreError
from ledger.store.votes import VoteStore
from node.datadir import DataDirectory, create_data_directory, load_key
from tests.builders import CREATED_MS


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


@pytest.mark.parametrize(
    ("network", "name"), [("Bad Net", "a"), ("n", "a\nb"), ("", "a"), ("n", "")]
)
def test_names_that_no_genesis_can_carry_leave_nothing_behind(tmp_path, network, name):
    with pytest.raises(LedgerError):
        create_data_directory(tmp_path / "data", network=network, name=name, now_ms=CREATED_MS)
    assert list(tmp_path.iterdir()) == []
