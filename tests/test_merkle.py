import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger import merkle
from ledger.errors import InvalidProofError
from tests.golden import build_tree

VECTORS = json.loads(
    (Path(__file__).parent / "vectors" / "merkle.json").read_text(encoding="utf-8")
)
LARGEST = 70
LEAVES = [merkle.hash_leaf(f"leaf {i}".encode()) for i in range(LARGEST)]
READ = build_tree(LARGEST)


def naive_root(leaves):
    """RFC 9162, section 2.1.1, as written there."""
    if not leaves:
        return hashlib.sha256().digest()
    if len(leaves) == 1:
        return leaves[0]
    k = naive_split(len(leaves))
    return hashlib.sha256(b"\1" + naive_root(leaves[:k]) + naive_root(leaves[k:])).digest()


def naive_split(n):
    k = 1
    while k * 2 < n:
        k *= 2
    return k


def naive_path(m, leaves):
    """RFC 9162, section 2.1.3.1."""
    if len(leaves) == 1:
        return []
    k = naive_split(len(leaves))
    if m < k:
        return [*naive_path(m, leaves[:k]), naive_root(leaves[k:])]
    return [*naive_path(m - k, leaves[k:]), naive_root(leaves[:k])]


def naive_consistency(m, leaves, *, whole=True):
    """RFC 9162, section 2.1.4.1 (SUBPROOF)."""
    if m == len(leaves):
        return [] if whole else [naive_root(leaves)]
    k = naive_split(len(leaves))
    if m <= k:
        return [*naive_consistency(m, leaves[:k], whole=whole), naive_root(leaves[k:])]
    return [*naive_consistency(m - k, leaves[k:], whole=False), naive_root(leaves[:k])]


def verify_leaf(index, size, path, *, root=None):
    merkle.verify_inclusion(
        leaf=LEAVES[index],
        index=index,
        size=size,
        path=path,
        root=merkle.compute_root(size, READ) if root is None else root,
    )


def verify_extension(old, new, path, *, old_root=None, new_root=None):
    merkle.verify_consistency(
        old_size=old,
        old_root=old_root or merkle.compute_root(old, READ),
        new_size=new,
        new_root=new_root or merkle.compute_root(new, READ),
        path=path,
    )


@pytest.mark.parametrize("size", range(LARGEST + 1))
def test_roots_are_those_of_the_rfc(size):
    assert merkle.compute_root(size, READ) == naive_root(LEAVES[:size])
    assert merkle.compute_root(size, READ).hex() == VECTORS["roots"][size]


@pytest.mark.parametrize("size", range(1, LARGEST + 1))
def test_each_leaf_proves_at_each_size(size):
    for index in range(size):
        path = merkle.build_inclusion_path(index, size, READ)
        assert path == naive_path(index, LEAVES[:size])
        assert len(path) <= (size - 1).bit_length()
        verify_leaf(index, size, path)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 13])
def test_each_flipped_bit_of_a_path_fails(size):
    for index in range(size):
        path = merkle.build_inclusion_path(index, size, READ)
        for place, node in enumerate(path):
            for bit in range(256):
                flipped = (int.from_bytes(node, "big") ^ 1 << bit).to_bytes(32, "big")
                with pytest.raises(InvalidProofError, match="tree root"):
                    verify_leaf(index, size, [*path[:place], flipped, *path[place + 1 :]])


@pytest.mark.parametrize("size", range(1, 18))
def test_a_path_proves_its_own_index_and_leaf_only(size):
    for index in range(size):
        path = merkle.build_inclusion_path(index, size, READ)
        root = merkle.compute_root(size, READ)
        for other in range(size):
            if other == index:
                continue
            with pytest.raises(InvalidProofError):
                merkle.verify_inclusion(
                    leaf=LEAVES[index], index=other, size=size, path=path, root=root
                )
            with pytest.raises(InvalidProofError):
                merkle.verify_inclusion(
                    leaf=LEAVES[other], index=index, size=size, path=path, root=root
                )


@pytest.mark.parametrize("size", range(1, 18))
def test_a_path_of_another_length_fails(size):
    for index in range(size):
        path = merkle.build_inclusion_path(index, size, READ)
        with pytest.raises(InvalidProofError, match="longer"):
            verify_leaf(index, size, [*path, bytes(32)])
        if path:
            with pytest.raises(InvalidProofError, match="shorter"):
                verify_leaf(index, size, path[:-1])


def test_hostile_paths_are_refused_before_anything_is_hashed():
    for path in ([bytes(32)] * 64, [bytes(31)], [bytes(33)], [b""]):
        with pytest.raises(InvalidProofError, match="at most 63 hashes of 32 bytes"):
            verify_leaf(0, 2, path)
        with pytest.raises(InvalidProofError, match="at most 63 hashes of 32 bytes"):
            verify_extension(1, 2, path)


@pytest.mark.parametrize(("index", "size"), [(0, 0), (1, 1), (-1, 3), (3, 3), (0, -1)])
def test_an_index_outside_the_tree_is_refused(index, size):
    with pytest.raises(InvalidProofError, match="leaf index"):
        verify_leaf(index, size, [], root=bytes(32))
    with pytest.raises(InvalidProofError, match="leaf index"):
        merkle.build_inclusion_path(index, size, READ)


def test_an_inner_node_is_no_leaf():
    left, right = LEAVES[:2]
    inner = hashlib.sha256(b"\1" + left + right).digest()
    assert merkle.hash_children(left, right) == inner
    assert merkle.hash_leaf(left + right) != inner


def test_every_tree_is_consistent_with_every_later_one():
    for new in range(1, 41):
        for old in range(1, new + 1):
            path = merkle.build_consistency_path(old, new, READ)
            assert path == naive_consistency(old, LEAVES[:new])
            verify_extension(old, new, path)


@pytest.mark.parametrize(("old", "new"), [(1, 2), (2, 3), (3, 7), (4, 7), (6, 8), (33, 70)])
def test_a_changed_consistency_proof_fails(old, new):
    path = merkle.build_consistency_path(old, new, READ)
    for place in range(len(path)):
        with pytest.raises(InvalidProofError):
            verify_extension(old, new, [*path[:place], bytes(32), *path[place + 1 :]])
        with pytest.raises(InvalidProofError):
            verify_extension(old, new, path[:place] + path[place + 1 :])
    with pytest.raises(InvalidProofError, match="longer than the tree is high"):
        verify_extension(old, new, [*path, bytes(32)])
    with pytest.raises(InvalidProofError, match=r"shorter than the tree is high|is empty"):
        verify_extension(old, new, path[:-1])
    for changes in (
        {"path": []},
        {"path": path, "old_root": bytes(32)},
        {"path": path, "new_root": bytes(32)},
    ):
        with pytest.raises(InvalidProofError):
            verify_extension(old, new, changes.pop("path"), **changes)


def test_trees_of_one_size_need_one_root_and_no_proof():
    verify_extension(5, 5, [])
    with pytest.raises(InvalidProofError, match="one root"):
        verify_extension(5, 5, [], new_root=bytes(32))
    with pytest.raises(InvalidProofError, match="one root"):
        verify_extension(5, 5, [bytes(32)])


@pytest.mark.parametrize(("old", "new"), [(0, 1), (2, 1), (-1, 3)])
def test_consistency_of_impossible_sizes_is_refused(old, new):
    with pytest.raises(InvalidProofError, match="tree sizes"):
        verify_extension(old, new, [], old_root=bytes(32), new_root=bytes(32))
    with pytest.raises(InvalidProofError, match="tree sizes"):
        merkle.build_consistency_path(old, new, READ)


@given(st.lists(st.integers(1, 9), max_size=8))
def test_appending_in_any_portions_stores_the_same_nodes(portions):
    nodes, size = {}, 0

    def read(level, index):
        return nodes[level, index]

    for count in portions:
        added = merkle.append_leaves(size, LEAVES[size : size + count], read)
        assert not added.keys() & nodes.keys()
        size = min(size + count, LARGEST)
        nodes |= added
    assert nodes == merkle.append_leaves(0, LEAVES[:size], None)


def test_golden_paths():
    for case in VECTORS["inclusion"]:
        verify_leaf(case["index"], case["size"], [bytes.fromhex(node) for node in case["path"]])
    for case in VECTORS["consistency"]:
        path = [bytes.fromhex(node) for node in case["path"]]
        verify_extension(case["old_size"], case["new_size"], path)
