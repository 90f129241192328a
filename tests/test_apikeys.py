"""API keys: only a digest is stored, and only the whole key opens anything."""

from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.block import hash_genesis
from ledger.errors import StoreError
from ledger.store.market import open_market
from ledger.store.registry import find_key, list_keys, revoke_key
from node import apikeys
from tests.builders import CREATED_MS, build_genesis

GENESIS_HASH = hash_genesis(build_genesis())
ROLES = ("client", "miner", "admin")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store = open_market(tmp_path_factory.mktemp("keys") / "node.db", GENESIS_HASH)
    yield store
    store.close()


def create(store, role="client", client=None) -> str:
    return store.write(
        lambda c: apikeys.create_key(
            c, genesis_hash=GENESIS_HASH, role=role, client=client, now_ms=CREATED_MS
        )
    ).result()


def authenticate(store, key, genesis_hash=GENESIS_HASH):
    return apikeys.authenticate(partial(find_key, store.reader), key, genesis_hash=genesis_hash)


@pytest.mark.parametrize("role", ROLES)
def test_a_key_opens_what_it_was_made_for(store, role):
    key = create(store, role)
    prefix = key.split("_")[1]
    caller = authenticate(store, key)
    assert (caller.key, caller.role, caller.client) == (prefix, role, f"{role}-{prefix}")
    assert caller.is_admin == (role == "admin")
    named = create(store, role, "a.b@c")
    assert authenticate(store, named).client == "a.b@c"


def test_no_two_keys_are_alike(store):
    keys = [create(store) for _ in range(20)]
    assert len({key.split("_")[1] for key in keys}) == len({key[-20:] for key in keys}) == 20


def test_nothing_that_is_stored_opens_anything(store, tmp_path):
    key = create(store)
    secret = key.split("_", 2)[2]
    (stored,) = [k for k in list_keys(store.reader) if k.prefix == key.split("_")[1]]
    assert len(stored.digest) == 32
    assert secret.encode() not in store.path.read_bytes()
    for guess in (stored.digest.hex(), stored.prefix, ""):
        assert authenticate(store, f"aik_{stored.prefix}_{guess}") is None


def test_a_key_of_one_network_opens_nothing_on_another(store):
    key = create(store)
    other = hash_genesis(build_genesis(network="other-net"))
    assert authenticate(store, key, genesis_hash=other) is None


def test_every_changed_character_makes_another_key(store):
    key = create(store)
    for place in range(len(key)):
        changed = key[:place] + ("A" if key[place] != "A" else "B") + key[place + 1 :]
        assert authenticate(store, changed) is None
        assert authenticate(store, key[:place]) is None
    assert authenticate(store, key + "A") is None
    assert authenticate(store, key) is not None


def test_a_prefix_of_one_key_and_a_secret_of_another_are_no_key(store):
    one, two = create(store), create(store)
    mixed = "_".join([*one.split("_")[:2], two.split("_", 2)[2]])
    assert authenticate(store, mixed) is None


def test_a_revoked_key_opens_nothing_any_more(store):
    key = create(store)
    assert store.write(lambda c: revoke_key(c, key.split("_")[1], CREATED_MS + 1)).result()
    assert authenticate(store, key) is None


@given(st.text(max_size=150) | st.text(max_size=60).map(lambda text: f"aik_aaaaaaaa_{text}"))
def test_no_other_text_is_a_key(store, text):
    assert authenticate(store, text) is None


@pytest.mark.parametrize("client", ["", "a b", "ä", "-a", "x" * 129, "a\n", "<b>"])
def test_a_name_that_no_receipt_can_carry_is_refused_at_once(store, client):
    """Else every job of this key would be done, and none of its receipts could be issued."""
    before = list_keys(store.reader)
    with pytest.raises(StoreError, match="client name"):
        create(store, client=client)
    assert list_keys(store.reader) == before
