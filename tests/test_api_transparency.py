"""Checkpoint, tiles, entries and consistency proofs over HTTP, against a whole node."""

import json

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from api.app import build_api
from api.resource import ApiSettings
from ledger import merkle
from ledger.checkpoint import build_origin, log_keys, verify_checkpoint
from ledger.consistency import parse_consistency, verify_extension, verify_head
from ledger.tiles import TilePlace
from tests.api_node import ApiNode, run_job
from tests.tile_reader import list_places, parse_entries

JOBS = 5
IMMUTABLE = "public, max-age=31536000, immutable"


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    node = ApiNode(tmp_path_factory.mktemp("node"))
    node.start_sealing()
    with node.client() as client:
        for height in range(1, JOBS + 1):
            run_job(client, node)
            node.wait_final(height)
    yield node
    node.close()


@pytest.fixture(scope="module")
def client(node):
    with node.client() as client:
        yield client


def verify(node: ApiNode, data: bytes):
    origin = build_origin(node.genesis)
    keys = log_keys(origin, node.genesis.authority_set)
    return verify_checkpoint(data, origin=origin, keys=keys).checkpoint


@pytest.mark.parametrize("prefix", ["", "/api"])
def test_what_is_published_proves_itself_from_entry_to_signature(node, client, prefix):
    """Everything that a monitor does: bundle, tile, root, checkpoint, final block."""
    answer = client.get(f"{prefix}/checkpoint")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["cache-control"] == "no-store"
    head = verify(node, answer.content)
    assert head.size == JOBS

    (place,) = list_places(0, head.size)
    bundle = client.get(f"{prefix}/tile/entries/{place}")
    tile = client.get(f"{prefix}/tile/0/{place}")
    for found in (bundle, tile):
        assert found.headers["content-type"] == "application/octet-stream"
        assert found.headers["cache-control"] == IMMUTABLE
    leaves = [merkle.hash_leaf(entry) for entry in parse_entries(bundle.content)]
    assert b"".join(leaves) == tile.content
    nodes = merkle.append_leaves(0, leaves, lambda *_: b"")
    assert merkle.compute_root(head.size, lambda level, i: nodes[level, i]) == head.root

    answer = client.get(f"{prefix}/v1/consistency", params={"from": 2, "to": head.size})
    assert answer.headers["content-type"] == "application/json"
    proof = parse_consistency(answer.content)
    old = merkle.compute_root(2, lambda level, i: nodes[level, i])
    verify_extension(proof, old=(2, old), new=(head.size, head.root))
    verify_head(proof.head, genesis=node.genesis, size=head.size, root=head.root)


def test_a_checkpoint_is_signed_once_and_follows_the_chain(tmp_path):
    node = ApiNode(tmp_path)
    try:
        with node.client() as client:
            empty = client.get("/checkpoint").content
            assert verify(node, empty).size == 0
            assert verify(node, empty).root == merkle.EMPTY_ROOT
            assert node.checkpoints.newest() is node.checkpoints.newest()
            node.start_sealing()
            run_job(client, node)
            node.wait_final(1)
            assert verify(node, client.get("/checkpoint").content).size == 1
    finally:
        node.close()


def test_every_partial_tile_of_an_earlier_tree_stays(client):
    whole = client.get(f"/tile/0/000.p/{JOBS}").content
    for width in range(1, JOBS + 1):
        assert client.get(f"/tile/0/000.p/{width}").content == whole[: 32 * width]
        entries = client.get(f"/tile/entries/000.p/{width}").content
        assert len(parse_entries(entries)) == width


MISSING = [
    *(f"/tile/0/000.p/{JOBS + 1}", "/tile/0/000", "/tile/0/001", "/tile/1/000.p/1"),
    *("/tile/0/", "/tile/0/0", "/tile/0/x000/000.p/1", "/tile/0/000.p/0", "/tile/0/000.p/01"),
    *("/tile/00/000.p/1", "/tile/64/000.p/1", "/tile/-1/000.p/1", "/tile/data/000.p/1"),
    *("/tile/0/000.p/1/", "/tile/0//000.p/1", "/tile/63/x999/999"),
    *(f"/tile/entries/000.p/{JOBS + 1}", "/tile/entries/000", "/tile/entries/", "/tile/entries/1"),
    "/tile/entries/x999/x999/x999/x999/999",
    "/tile/0/" + "x000/" * 1000 + "000",
]


@pytest.mark.parametrize("path", MISSING)
def test_what_the_tree_has_not_is_404_and_not_kept(client, path):
    answer = client.get(path)
    assert answer.status_code == 404
    assert answer.json()["error_code"] == "TILE_NOT_FOUND"
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("path", ["/tile/0", "/tile/entries", "/api/tile/0", "/tile/"])
def test_what_is_no_tile_at_all_is_answered_in_json_too(client, path):
    answer = client.get(path)
    assert (answer.status_code, answer.json()["error_code"]) == (404, "PATH_NOT_FOUND")


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("", 400, "VALIDATION_FAILED"),
        ("from=-1", 400, "VALIDATION_FAILED"),
        ("from=x", 400, "VALIDATION_FAILED"),
        ("from=1.0", 400, "VALIDATION_FAILED"),
        ("from=2&to=1", 400, "VALIDATION_FAILED"),
        ("from=1&from=2", 400, "VALIDATION_FAILED"),
        (f"from={2**53}", 400, "VALIDATION_FAILED"),
        (f"from=0&to={2**64}", 400, "VALIDATION_FAILED"),
        (f"from=0&to={JOBS + 1}", 404, "TREE_SIZE_NOT_FOUND"),
        (f"from={JOBS + 1}", 404, "TREE_SIZE_NOT_FOUND"),
        (f"from={2**53 - 1}&to={2**53 - 1}", 404, "TREE_SIZE_NOT_FOUND"),
    ],
)
def test_sizes_that_make_no_proof_are_refused(client, query, status, code):
    answer = client.get(f"/v1/consistency?{query}")
    assert (answer.status_code, answer.json()["error_code"]) == (status, code)


def test_between_any_two_sizes_there_is_a_proof(client):
    for to in range(JOBS + 1):
        for start in range(to + 1):
            answer = client.get(f"/v1/consistency?from={start}&to={to}")
            document = json.loads(answer.content)
            assert (document["from_size"], document["to_size"]) == (start, to)
    newest = client.get("/v1/consistency?from=1").content
    assert newest == client.get(f"/v1/consistency?from=1&to={JOBS}").content


def test_a_stranger_reads_all_of_it_in_strict_mode(node):
    with node.client("strict") as client:
        for path in ("/checkpoint", "/tile/0/000.p/1", "/tile/entries/000.p/1"):
            assert client.get(path).status_code == 200
            head = client.head(path)
            assert (head.status_code, head.content) == (200, b"")
            assert client.post(path).status_code == 405
        assert client.get("/v1/consistency?from=0").status_code == 200


def test_a_node_that_signs_no_checkpoints_says_so(node):
    settings = ApiSettings(mode="dev", version="0", default_model="m")
    routes = build_api(
        node.coordinator,
        node.views,
        settings,
        tree=node.tree,
        checkpoint=lambda: None,
        genesis=b"{}",
        clock_ms=node.clock_ms,
        make_request_id=lambda: "id",
    )
    with TestClient(Starlette(routes=routes)) as client:
        answer = client.get("/checkpoint")
    assert (answer.status_code, answer.json()["error_code"]) == (404, "CHECKPOINT_NOT_FOUND")


def test_a_tile_is_read_at_the_place_that_its_address_spells(node, monkeypatch, client):
    seen = []
    monkeypatch.setattr(node.tree, "tile", lambda level, place: seen.append((level, place)))
    monkeypatch.setattr(node.tree, "entries", lambda place: seen.append(place))
    client.get("/tile/7/x001/x234/067.p/112")
    client.get("/tile/entries/x001/x234/067")
    place = TilePlace(index=1_234_067, width=112)
    assert seen == [(7, place), TilePlace(index=1_234_067)]
