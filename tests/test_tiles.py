"""Tiles and entry bundles: one spelling for each place, and the whole tree follows from them."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger import merkle
from ledger.store.chain import ChainStore, locate_node
from ledger.tiles import (
    MAX_LEAVES,
    TILE_WIDTH,
    TilePlace,
    encode_entries,
    fits_tree,
    parse_level,
    parse_place,
)
from ledger.transaction import MAX_ENVELOPE_BYTES, build_transaction
from ledger.views import TreeViews
from scripts import vectors
from tests.builders import build_chain, build_genesis, build_payload, sign_receipt
from tests.tile_reader import list_places, parse_entries

VECTORS = json.loads((vectors.VECTORS / "checkpoints.json").read_text(encoding="utf-8"))
CHAIN = build_chain(1, blocks=[1, 2, 4, 1])
LARGE = 70_000
"""Has tiles of three levels; the example of the specification."""
BOUNDARIES = [1, 2, 255, 256, 257, 511, 512, 513, 65_535, 65_536, 65_537, 65_792, LARGE]


# --- places -------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", VECTORS["places"], ids=lambda case: case["path"])
def test_places_are_spelled_as_the_vectors_say(case):
    place = TilePlace(index=case["index"], width=case["width"])
    assert str(place) == case["path"]
    assert parse_place(case["path"]) == place


@given(st.integers(0, MAX_LEAVES // TILE_WIDTH), st.integers(1, TILE_WIDTH))
def test_every_place_has_one_spelling(index, width):
    place = TilePlace(index=index, width=width)
    assert parse_place(str(place)) == place


NO_PLACES = [
    *("", "0", "00", "0000", "x000", "x000/000", "x001", "001/000", "x001/0", "x001/00"),
    *("x01/000", "X001/000", "x001/x000", "x001//000", "/000", "000/", "x001/000/", " 000"),
    *("000 ", "000\n", "00a", "-01", "+01", "\u0660\u0661\u0662", "1e3", "000.p", "000.p/"),
    *("000.p/0", "000.p/00", "000.p/01", "000.p/256", "000.p/257", "000.p/1000", "000.p/-1"),
    *("000.p/1/", "000.p/1.p/1", "000.P/1", "000p/1", "000.p/\u0661", "000/.p/1", "%30%30%30"),
    *("x001/x000/x000/x000/x000/000", "x" * 10_000, "../000", "000.p/1\n"),
]


@pytest.mark.parametrize("text", NO_PLACES)
def test_what_is_no_place(text):
    assert parse_place(text) is None


@given(st.text(st.sampled_from("x0123456789/.p"), max_size=12))
def test_what_is_read_as_a_place_is_its_spelling(text):
    place = parse_place(text)
    assert place is None or str(place) == text


def test_levels_are_decimal_numbers_up_to_63():
    assert [parse_level(text) for text in ("0", "1", "7", "63")] == [0, 1, 7, 63]
    for text in ("", "00", "01", "64", "100", "-1", "+1", " 1", "1 ", "1\n", "\u0661", "data"):
        assert parse_level(text) is None


def test_the_tree_of_the_specification_has_the_tiles_that_it_says():
    places = {level: list(list_places(level, LARGE)) for level in range(4)}
    assert [len(places[level]) for level in range(4)] == [274, 2, 1, 0]
    assert [row[-1].width for row in places.values() if row] == [112, 17, 1]
    assert list(list_places(0, 256)) == [TilePlace(index=0)]
    assert list(list_places(1, 256)) == [TilePlace(index=0, width=1)]
    assert list(list_places(0, 0)) == []


def test_no_tree_reaches_beyond_two_to_the_53():
    last = MAX_LEAVES // TILE_WIDTH
    assert fits_tree(0, TilePlace(index=last, width=MAX_LEAVES % TILE_WIDTH))
    assert not fits_tree(0, TilePlace(index=last))
    assert fits_tree(6, TilePlace(index=0, width=31))
    assert not fits_tree(6, TilePlace(index=0, width=32))
    assert not fits_tree(63, TilePlace(index=0, width=1))


# --- entries ------------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=300), max_size=TILE_WIDTH))
def test_entries_survive_a_round_trip(entries):
    assert parse_entries(encode_entries(entries)) == entries


def test_every_envelope_fits_the_two_bytes_before_it():
    longest = bytes(MAX_ENVELOPE_BYTES)
    assert parse_entries(encode_entries([longest])) == [longest]


def test_no_receipt_was_ever_near_the_bound_on_envelopes():
    """So a bound of one byte less than 64 KiB refuses nothing that a chain may hold."""
    genesis, largest = build_genesis(), 2**53 - 1
    payload = build_payload(
        genesis,
        attempt=1000,
        client="c" * 128,
        model="\U0001f600" * 128,
        max_tokens=1_000_000,
        prompt_tokens=largest,
        completion_tokens=1_000_000,
        unit_type="gpu_seconds",
        units_micros=0,
        price_micros=largest,
        seed=largest,
        sampler="s" * 64,
        started_at_ms=largest,
        completed_at_ms=largest,
        metered_by="coordinator",
    )
    envelope = build_transaction(payload, sign_receipt(payload)).envelope
    assert len(envelope) < 4096


# --- the tree -----------------------------------------------------------------------------------


def read_through(tiles) -> merkle.NodeReader:
    """Reads nodes from tiles alone, hashing what lies between their levels."""

    def read(level: int, index: int) -> bytes:
        row, height = divmod(level, 8)
        first = index << height
        tile = tiles(row, first // TILE_WIDTH)
        start = first % TILE_WIDTH
        nodes = [tile[32 * i : 32 * i + 32] for i in range(start, start + (1 << height))]
        assert all(len(node) == 32 for node in nodes)
        while len(nodes) > 1:
            pairs = zip(nodes[::2], nodes[1::2], strict=True)
            nodes = [merkle.hash_children(*pair) for pair in pairs]
        return nodes[0]

    return read


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A store with the nodes of a tree of 70,000 leaves `leaf 0`, `leaf 1`, … and nothing else."""
    store = ChainStore(tmp_path_factory.mktemp("tiles") / "ledger.db", build_genesis())
    leaves = [merkle.hash_leaf(f"leaf {i}".encode()) for i in range(LARGE)]
    nodes = merkle.append_leaves(0, leaves, lambda level, index: nodes[level, index])
    rows = [(locate_node(*place), node) for place, node in nodes.items()]
    store.database.write(
        lambda connection: connection.executemany("INSERT INTO tree_nodes VALUES (?, ?)", rows)
    ).result()
    yield TreeViews(store), nodes
    store.close()


@given(st.one_of(st.sampled_from(BOUNDARIES), st.integers(1, LARGE)))
def test_the_root_of_every_size_follows_from_its_tiles(large, size):
    views, nodes = large
    places = [list(list_places(level, size)) for level in range(3)]

    def tile(level: int, index: int) -> bytes:
        data = views.tile(level, places[level][index])
        assert len(data) == 32 * places[level][index].width
        return data

    expected = merkle.compute_root(size, lambda level, index: nodes[level, index])
    assert merkle.compute_root(size, read_through(tile)) == expected


def test_every_hash_of_an_upper_tile_is_the_root_of_a_full_tile_below(large):
    views, _ = large
    for level in (1, 2):
        for place in list_places(level, LARGE):
            upper = views.tile(level, place)
            for i in range(place.width):
                below = views.tile(level - 1, TilePlace(index=place.index * TILE_WIDTH + i))
                nodes = [below[32 * j : 32 * j + 32] for j in range(TILE_WIDTH)]
                tree = merkle.append_leaves(0, nodes, lambda *node, t=nodes: t[node[1]])
                assert tree[8, 0] == upper[32 * i : 32 * i + 32]


def test_every_partial_tile_is_the_beginning_of_the_full_one(large):
    views, _ = large
    full = views.tile(0, TilePlace(index=17))
    for width in range(1, TILE_WIDTH):
        assert views.tile(0, TilePlace(index=17, width=width)) == full[: 32 * width]


@pytest.mark.parametrize(
    ("level", "place"),
    [
        (0, TilePlace(index=273, width=113)),
        (0, TilePlace(index=273)),
        (0, TilePlace(index=274, width=1)),
        (1, TilePlace(index=1, width=18)),
        (1, TilePlace(index=2, width=1)),
        (2, TilePlace(index=0, width=2)),
        (3, TilePlace(index=0, width=1)),
        (8, TilePlace(index=0, width=1)),
        (63, TilePlace(index=35_184_372_088_831)),
        (0, TilePlace(index=35_184_372_088_831)),
    ],
)
def test_a_tile_that_the_tree_has_not_does_not_exist(large, level, place):
    assert large[0].tile(level, place) is None


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    store = ChainStore(tmp_path_factory.mktemp("tiles") / "ledger.db", CHAIN.genesis)
    for block, certificate in zip(CHAIN.blocks, CHAIN.certificates, strict=True):
        store.append(block, certificate).result()
    yield TreeViews(store)
    store.close()


def test_every_entry_hashes_to_its_place_in_the_tile(small):
    size = CHAIN.tip.tree_size
    for width in range(1, size + 1):
        place = TilePlace(index=0, width=width)
        entries = parse_entries(small.entries(place))
        assert entries == [transaction.envelope for transaction in CHAIN.transactions[:width]]
        assert small.tile(0, place) == b"".join(map(merkle.hash_leaf, entries))
    for place in (
        TilePlace(index=0, width=size + 1),
        TilePlace(index=0),
        TilePlace(index=1, width=1),
        TilePlace(index=35_184_372_088_831),
    ):
        assert small.entries(place) is None


def test_the_vectors_of_tile_and_entries():
    entries = parse_entries(bytes.fromhex(VECTORS["entries"]))
    assert b"".join(map(merkle.hash_leaf, entries)).hex() == VECTORS["tile"]
    assert len(entries) == VECTORS["checkpoints"][-1]["size"]


def test_the_head_is_the_newest_block(small, tmp_path):
    head = small.head()
    assert (head.height, head.size) == (CHAIN.tip.height, CHAIN.tip.tree_size)
    assert head.root == merkle.compute_root(head.size, CHAIN.read)
    empty = ChainStore(tmp_path / "ledger.db", CHAIN.genesis)
    try:
        genesis = TreeViews(empty).head()
    finally:
        empty.close()
    assert (genesis.height, genesis.size, genesis.root) == (0, 0, merkle.EMPTY_ROOT)
