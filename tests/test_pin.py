"""A chain that begins at a pinned checkpoint: new blocks at once, history behind, then whole."""

import asyncio
import contextlib
import sqlite3

import msgspec
import pytest

from ledger.authorities import hash_authority_set
from ledger.block import VerifiedBlock
from ledger.encoding import encode
from ledger.errors import HistoryMissingError, InvalidBlockError, LedgerError, StoreError
from ledger.pin import Pin, parse_pin
from ledger.proof import verify_bundle
from ledger.store.chain import ChainStore
from ledger.store.fsck import verify_chain
from ledger.store.market import open_market
from ledger.store.reading import build_pin
from ledger.views import LedgerViews, TreeViews
from node.p2p.blocks import BlockStream
from node.p2p.frames import HEIGHT_HEADER
from tests.builders import (
    Chain,
    build_certificate,
    build_chain,
    build_genesis,
    build_members,
    build_receipt,
)
from tests.sync_peer import ScriptedPeer, build_frames, catch_up, serve_chain
from tests.test_block_stream import Head, ask
from tests.test_chain_store import fill


def build_changing_chain() -> Chain:
    """Seven blocks; the authorities change in the second, and again in the fifth."""
    chain = build_chain(4, blocks=(3,))
    chain.change_authorities(build_members(3, epoch=1), build_receipt(chain.genesis, 10))
    chain.append(build_receipt(chain.genesis, 11))
    chain.append(build_receipt(chain.genesis, 12), build_receipt(chain.genesis, 13))
    chain.change_authorities(build_members(2, epoch=2))
    chain.append(build_receipt(chain.genesis, 14))
    chain.append(*(build_receipt(chain.genesis, i) for i in range(15, 20)))
    return chain


PLAIN = build_chain(4, blocks=(1, 3, 2, 5, 1, 4))
CHANGING = build_changing_chain()
CHAINS = {"plain": PLAIN, "changing": CHANGING}
PLACES = [(name, height) for name, c in CHAINS.items() for height in range(1, c.tip.height + 1)]


def make_pin(chain: Chain, height: int, tmp_path) -> Pin:
    with contextlib.closing(fill(tmp_path / "pinned.db", chain, blocks=height)) as store:
        pin = build_pin(store.database.reader)
    for file in tmp_path.glob("pinned.db*"):
        file.unlink()
    return pin


def verified(chain: Chain, *heights: int) -> list[VerifiedBlock]:
    """Blocks as a sync hands them in."""
    return [
        VerifiedBlock(
            block=chain.blocks[height - 1],
            certificate=chain.certificates[height - 1],
            set_hash=bytes.fromhex(chain.blocks[height - 1].header.set_hash),
        )
        for height in heights
    ]


def dump(path) -> dict[str, list]:
    """Every row of a ledger."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        tables = connection.execute(
            "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT GLOB '*sqlite_*'"
        ).fetchall()
        return {
            name: sorted(connection.execute(f"SELECT * FROM {name}").fetchall(), key=repr)
            for (name,) in tables
        }


def verify(path, chain: Chain):
    return verify_chain(path, chain.genesis, lambda _height, _last: None)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.db"


# --- the file ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "height"), PLACES)
def test_a_pin_comes_back_from_its_bytes_and_leads_to_the_tip_of_its_block(name, height, tmp_path):
    chain = CHAINS[name]
    pin = make_pin(chain, height, tmp_path)
    assert parse_pin(encode(pin) + b"\n", chain.genesis) == pin
    with contextlib.closing(fill(tmp_path / "whole.db", chain, blocks=height)) as store:
        assert pin.build_tip(chain.genesis) == store.tip()


def test_every_damage_of_a_pin_is_told(tmp_path):
    pin = make_pin(CHANGING, 5, tmp_path)
    data = encode(pin)
    for place in range(0, len(data), 11):
        damaged = bytearray(data)
        damaged[place] ^= 1
        with pytest.raises(InvalidBlockError):
            parse_pin(bytes(damaged), CHANGING.genesis)
    for size in range(0, len(data), 97):
        with pytest.raises(InvalidBlockError):
            parse_pin(data[:size], CHANGING.genesis)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peaks": ()}, "peaks of"),
        ({"peaks": ("00" * 32,) * 2}, "do not lead to"),
        ({"next_authority_set": PLAIN.genesis.authority_set}, "another next authority set"),
        ({"authority_set": CHANGING.tip.authority_set}, "another authority set"),
        (
            {"certificate": build_certificate(CHANGING.blocks[4].header, CHANGING.members)},
            "certificate",
        ),
    ],
    ids=["no peaks", "other peaks", "another next set", "another set", "another certificate"],
)
def test_a_pin_whose_parts_do_not_fit_is_refused(tmp_path, changes, message):
    pin = msgspec.structs.replace(make_pin(CHANGING, 5, tmp_path), **changes)
    with pytest.raises(InvalidBlockError, match=message):
        parse_pin(encode(pin), CHANGING.genesis)


def test_a_pin_of_another_network_is_refused(tmp_path):
    pin = make_pin(PLAIN, 3, tmp_path)
    with pytest.raises(InvalidBlockError, match="expected one of network"):
        parse_pin(encode(pin), build_genesis(4, network="other-net"))


def test_a_chain_without_blocks_or_with_a_gap_makes_no_pin(tmp_path, path):
    with contextlib.closing(ChainStore(path, PLAIN.genesis)) as store:
        with pytest.raises(StoreError, match="no block yet"):
            build_pin(store.database.reader)
        store.adopt_pin(make_pin(PLAIN, 3, tmp_path)).result()
        with pytest.raises(HistoryMissingError, match="blocks 1 to 3"):
            build_pin(store.database.reader)


# --- the chain --------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "height"), PLACES)
def test_a_pinned_chain_ends_up_as_any_other_wherever_its_lives_end(name, height, tmp_path, path):
    """After every single commit the file is closed, checked, and opened by another life."""
    chain = CHAINS[name]
    above = list(range(height + 1, chain.tip.height + 1))
    below = list(range(1, height + 1))
    with contextlib.closing(ChainStore(path, chain.genesis)) as store:
        store.adopt_pin(make_pin(chain, height, tmp_path)).result()
    while above or below:
        with contextlib.closing(ChainStore(path, chain.genesis)) as store:
            assert store.missing() == (range(below[0], height + 1) if below else None)
            if above and (len(above) >= len(below) or not below):
                tip = store.append_verified(verified(chain, above.pop(0))).result()
                assert tip == store.tip()
            else:
                store.append_history(verified(chain, below.pop(0))).result()
                assert store.history_tip().height == (below[0] - 1 if below else store.tip().height)
        if below:
            with pytest.raises(StoreError, match=rf"blocks {below[0]} to {height} are missing"):
                verify(path, chain)
    assert verify(path, chain) == chain.tip
    fill(tmp_path / "usual.db", chain).close()
    assert dump(path) == dump(tmp_path / "usual.db")


def test_a_batch_of_history_that_goes_beyond_the_pin_joins_it(tmp_path, path):
    with contextlib.closing(ChainStore(path, PLAIN.genesis)) as store:
        store.adopt_pin(make_pin(PLAIN, 3, tmp_path)).result()
        store.append_verified(verified(PLAIN, 4, 5)).result()
        store.append_history(verified(PLAIN, 1, 2, 3, 4, 5)).result()
        assert store.missing() is None
    assert verify(path, PLAIN).height == 5


def test_nothing_that_does_not_extend_the_history_enters_it(tmp_path, path):
    with contextlib.closing(ChainStore(path, PLAIN.genesis)) as store:
        store.adopt_pin(make_pin(PLAIN, 4, tmp_path)).result()
        before = dump(path)
        stale = [under_another_set(v) for v in verified(PLAIN, 1)]
        for batch in (verified(PLAIN, 2), verified(PLAIN, 1, 3), stale):
            with pytest.raises(LedgerError):
                store.append_history(batch).result()
        assert dump(path) == before


def under_another_set(item: VerifiedBlock) -> VerifiedBlock:
    """The same block, as if it had been verified under another set."""
    return VerifiedBlock(block=item.block, certificate=item.certificate, set_hash=bytes(32))


@pytest.mark.parametrize("height", range(1, 6))
def test_a_history_that_does_not_lead_to_the_pin_stops_the_node(height, tmp_path, path):
    """Both are certified by the same authorities, so one of them is of a fork."""
    fork = build_chain(4)
    for i in range(6):
        fork.append(*(build_receipt(fork.genesis, 50 + 5 * i + j) for j in range(3)))
    with contextlib.closing(ChainStore(path, PLAIN.genesis)) as store:
        store.adopt_pin(make_pin(fork, height, tmp_path)).result()
        with pytest.raises(StoreError, match="does not lead to the pinned checkpoint"):
            append_one_by_one(store, PLAIN)
        assert store.missing() is not None
        assert store.tip().hash == fork.blocks[height - 1].hash


def append_one_by_one(store: ChainStore, chain: Chain) -> None:
    for height in range(1, chain.tip.height + 1):
        store.append_history(verified(chain, height)).result()


def test_a_pin_is_adopted_once_and_by_an_empty_chain_only(tmp_path, path):
    pins = {height: make_pin(PLAIN, height, tmp_path) for height in (2, 3)}
    with contextlib.closing(ChainStore(path, PLAIN.genesis)) as store:
        store.adopt_pin(pins[2]).result()
        store.adopt_pin(pins[2]).result()
        with pytest.raises(StoreError, match="goes up to block 2 already"):
            store.adopt_pin(pins[3]).result()
        store.append_history(verified(PLAIN, 1, 2)).result()
        store.adopt_pin(pins[2]).result()
        assert store.missing() is None


def test_a_pin_of_a_fork_is_told_by_a_chain_that_knows_better(tmp_path, path):
    fork = build_chain(4)
    fork.append(build_receipt(fork.genesis, 77))
    pin = make_pin(fork, 1, tmp_path)
    with (
        contextlib.closing(fill(path, PLAIN)) as store,
        pytest.raises(StoreError, match="one of the two is of a fork"),
    ):
        store.adopt_pin(pin).result()


@pytest.mark.parametrize(
    "statement",
    [
        'UPDATE pin SET document = replace(document, \'"peaks":["\', \'"peaks":["f\')',
        "UPDATE tree_nodes SET hash = randomblob(32)",
        "DELETE FROM tree_nodes",
        "INSERT INTO tree_nodes VALUES (1000000, randomblob(32))",
        "DELETE FROM pin",
    ],
)
def test_fsck_finds_damage_beside_a_gap(tmp_path, path, statement):
    with contextlib.closing(ChainStore(path, PLAIN.genesis)) as store:
        store.adopt_pin(make_pin(PLAIN, 3, tmp_path)).result()
        store.append_verified(verified(PLAIN, 4)).result()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute(statement).rowcount > 0
        connection.commit()
    with pytest.raises(StoreError) as raised:
        verify(path, PLAIN)
    assert "everything else verifies" not in str(raised.value)


# --- what is shown meanwhile ------------------------------------------------------------------


@contextlib.contextmanager
def open_views(path, chain: Chain, pin: Pin, *above: int):
    with (
        contextlib.closing(ChainStore(path, chain.genesis)) as store,
        contextlib.closing(
            open_market(path.with_name("node.db"), chain.tip.genesis_hash)
        ) as market,
    ):
        store.adopt_pin(pin).result()
        store.append_verified(verified(chain, *above)).result()
        yield store, LedgerViews(store, market)


def test_the_views_tell_what_is_missing_and_prove_what_is_there(tmp_path, path):
    with open_views(path, PLAIN, make_pin(PLAIN, 3, tmp_path), 4, 5) as (store, views):
        head = views.head()
        assert (head.height, head.missing, head.votes) == (5, range(1, 4), 4)
        old, new = (PLAIN.transactions[i].payload.receipt_id for i in (0, -5))
        assert views.receipt(old) is None
        bundle = views.bundle(new)
        assert bundle is not None
        assert verify_bundle(bundle, genesis=PLAIN.genesis).verified
        assert [block.height for block in views.blocks(limit=10)] == [5, 4]
        store.append_history(verified(PLAIN, 1, 2, 3)).result()
        assert views.head().missing is None
        assert views.receipt(old) is not None
        assert views.stats(0).total_receipts == store.tip().tree_size


def test_right_at_the_pin_the_head_is_the_pinned_block(tmp_path, path):
    pin = make_pin(PLAIN, 3, tmp_path)
    with open_views(path, PLAIN, pin) as (_store, views):
        head = views.head()
        assert (head.height, head.hash, head.votes) == (3, PLAIN.blocks[2].hash.hex(), 4)
        assert views.stats(0).block_height == 3


def test_what_needs_the_whole_history_waits_for_it(tmp_path, path):
    with open_views(path, CHANGING, make_pin(CHANGING, 5, tmp_path), 6) as (store, views):
        tree = TreeViews(store)
        questions = [
            lambda: views.bundle(CHANGING.blocks[5].transactions[0].payload.receipt_id),
            lambda: views.statement("client-1", from_ms=0, to_ms=2**53 - 1),
            lambda: views.statement_bundle("client-1", from_ms=0, to_ms=2**53 - 1),
            views.authorities,
            lambda: tree.consistency(1, None),
            tree.head,
        ]
        for question in questions:
            with pytest.raises(HistoryMissingError, match="blocks 1 to 5"):
                question()
        store.append_history(verified(CHANGING, 1, 2, 3, 4, 5)).result()
        for question in questions:
            assert question() is not None


def test_the_block_stream_of_a_chain_with_a_gap_tells_how_far_it_goes(tmp_path, path):
    frames = build_frames(PLAIN)
    with contextlib.closing(ChainStore(path, PLAIN.genesis)) as store:
        store.adopt_pin(make_pin(PLAIN, 4, tmp_path)).result()
        store.append_verified(verified(PLAIN, 5, 6)).result()
        store.append_history(verified(PLAIN, 1, 2)).result()
        for first, height, body in (
            (1, "2", frames[:2]),
            (2, "2", frames[1:2]),
            (3, "2", []),
            (4, "2", []),
            (5, "6", frames[4:]),
        ):
            answer = asyncio.run(ask(BlockStream(store, Head()), f"from={first}"))
            assert (answer.headers[HEIGHT_HEADER], answer.body) == (height, b"".join(body))


# --- syncing ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "height"), [("plain", 4), ("changing", 5)])
def test_a_sync_from_a_pin_and_one_behind_it_make_the_whole_chain(name, height, tmp_path, path):
    chain = CHAINS[name]
    with (
        contextlib.closing(ChainStore(path, chain.genesis)) as store,
        ScriptedPeer(chain, serve_chain(chain)) as peer,
    ):
        store.adopt_pin(make_pin(chain, height, tmp_path)).result()
        catch_up(store, [peer.url], height=chain.tip.height)
        assert (store.tip(), peer.asked) == (chain.tip, [height + 1])
        progress = catch_up(
            store,
            [peer.url],
            height=height,
            tip=store.history_tip,
            apply=store.append_history,
        )
        assert (progress.last_error, peer.asked) == (None, [height + 1, 1])
        assert store.missing() is None
    assert verify(path, chain) == chain.tip


def test_the_set_of_a_pin_is_that_of_its_height():
    """The other tests rest on this: both sets differ where the chain changes them."""
    changes = [
        b.header.height for b in CHANGING.blocks if b.header.set_hash != b.header.next_set_hash
    ]
    assert changes == [2, 5]
    assert hash_authority_set(CHANGING.tip.authority_set).hex() == (
        CHANGING.blocks[-1].header.next_set_hash
    )
