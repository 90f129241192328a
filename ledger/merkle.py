"""The Merkle tree over all transactions. Tree shape and proofs: RFC 9162, section 2.1.

One global, append-only tree holds every envelope since genesis. Only hashes of full subtrees are
stored, addressed as (level, index): node (l, i) covers leaves [i·2^l, (i+1)·2^l). Roots and proofs
of any earlier size are computed from them on demand, with at most 2·log2(n) reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256

from ledger.errors import InvalidProofError

HASH_BYTES = 32
MAX_PATH_LENGTH = 63

EMPTY_ROOT = sha256(b"").digest()

NodeReader = Callable[[int, int], bytes]
"""Reads the hash of the full subtree (level, index)."""


def hash_leaf(envelope: bytes) -> bytes:
    """Return the leaf hash of one envelope."""
    return sha256(b"\x00" + envelope).digest()


def hash_children(left: bytes, right: bytes) -> bytes:
    """Return the hash of an inner node."""
    return sha256(b"\x01" + left + right).digest()


def append_leaves(
    size: int, leaves: Sequence[bytes], read: NodeReader
) -> dict[tuple[int, int], bytes]:
    """Return every full subtree that `leaves` (leaf hashes) complete in a tree of `size` leaves."""
    added: dict[tuple[int, int], bytes] = {}
    for offset, leaf in enumerate(leaves):
        level, index, node = 0, size + offset, leaf
        added[level, index] = node
        while index % 2 == 1:
            sibling = (level, index - 1)
            node = hash_children(added[sibling] if sibling in added else read(*sibling), node)
            level, index = level + 1, index // 2
            added[level, index] = node
    return added


def compute_root(size: int, read: NodeReader) -> bytes:
    """Return the root of the first `size` leaves."""
    return _range_hash(0, size, read) if size else EMPTY_ROOT


def list_peaks(size: int) -> list[tuple[int, int]]:
    """Return the full subtrees that make up the tree of `size` leaves, largest first."""
    return list(_full_subtrees(0, size))


def build_inclusion_path(index: int, size: int, read: NodeReader) -> list[bytes]:
    """Return the audit path of leaf `index` in the tree of `size` leaves, leaf side first."""
    if not 0 <= index < size:
        raise InvalidProofError(f"leaf index: expected 0 <= index < {size}, got {index}")
    path: list[bytes] = []
    start, end = 0, size
    while end - start > 1:
        middle = start + _largest_power_below(end - start)
        if index < middle:
            path.append(_range_hash(middle, end, read))
            end = middle
        else:
            path.append(_range_hash(start, middle, read))
            start = middle
    return path[::-1]


def verify_inclusion(
    *, leaf: bytes, index: int, size: int, path: Sequence[bytes], root: bytes
) -> None:
    """Check that `leaf` (a leaf hash) stands at `index` in the tree of `size` leaves.

    Source: RFC 9162, section 2.1.3.2. Lengths are checked before anything is hashed.

    Raises:
        InvalidProofError: it does not.
    """
    if not 0 <= index < size:
        raise InvalidProofError(f"leaf index: expected 0 <= index < {size}, got {index}")
    _check_hashes(path)
    node_index, last, node = index, size - 1, leaf
    for sibling in path:
        if last == 0:
            raise InvalidProofError("inclusion path is longer than the tree is high")
        if node_index % 2 == 1 or node_index == last:
            node = hash_children(sibling, node)
            while node_index % 2 == 0 and node_index != 0:
                node_index, last = node_index >> 1, last >> 1
        else:
            node = hash_children(node, sibling)
        node_index, last = node_index >> 1, last >> 1
    if last != 0:
        raise InvalidProofError("inclusion path is shorter than the tree is high")
    if node != root:
        raise InvalidProofError(f"tree root: expected {root.hex()}, path leads to {node.hex()}")


def build_consistency_path(old_size: int, new_size: int, read: NodeReader) -> list[bytes]:
    """Return the proof that the first `old_size` leaves are unchanged at `new_size`.

    Source: RFC 9162, section 2.1.4.1.
    """
    if not 0 < old_size <= new_size:
        raise InvalidProofError(f"tree sizes: expected 0 < old <= new, got {old_size}, {new_size}")
    path: list[bytes] = []
    start, end, whole = 0, new_size, True
    while end - start != old_size - start:
        middle = start + _largest_power_below(end - start)
        if old_size <= middle:
            path.append(_range_hash(middle, end, read))
            end = middle
        else:
            path.append(_range_hash(start, middle, read))
            start, whole = middle, False
    if not whole:
        path.append(_range_hash(start, end, read))
    return path[::-1]


def verify_consistency(
    *, old_size: int, old_root: bytes, new_size: int, new_root: bytes, path: Sequence[bytes]
) -> None:
    """Check that the tree of `new_size` extends the tree of `old_size`.

    Source: RFC 9162, section 2.1.4.2.

    Raises:
        InvalidProofError: it does not.
    """
    if not 0 < old_size <= new_size:
        raise InvalidProofError(f"tree sizes: expected 0 < old <= new, got {old_size}, {new_size}")
    _check_hashes(path)
    if old_size == new_size:
        if path or old_root != new_root:
            raise InvalidProofError("trees of one size must have one root and an empty proof")
        return
    if not path:
        raise InvalidProofError("consistency proof is empty")
    # An old tree that is one full subtree is a node of the new one: the proof leaves it out.
    hashes = [old_root, *path] if old_size & (old_size - 1) == 0 else list(path)
    old, new = _fold_consistency(old_size - 1, new_size - 1, hashes)
    if old != old_root or new != new_root:
        raise InvalidProofError("the newer tree does not extend the older one")


def _fold_consistency(node_index: int, last: int, hashes: Sequence[bytes]) -> tuple[bytes, bytes]:
    """Fold a proof into the (old root, new root) that it leads to."""
    while node_index % 2 == 1:
        node_index, last = node_index >> 1, last >> 1
    old = new = hashes[0]
    for sibling in hashes[1:]:
        if last == 0:
            raise InvalidProofError("consistency proof is longer than the tree is high")
        if node_index % 2 == 1 or node_index == last:
            old, new = hash_children(sibling, old), hash_children(sibling, new)
            while node_index % 2 == 0 and node_index != 0:
                node_index, last = node_index >> 1, last >> 1
        else:
            new = hash_children(new, sibling)
        node_index, last = node_index >> 1, last >> 1
    if last != 0:
        raise InvalidProofError("consistency proof is shorter than the tree is high")
    return old, new


def _range_hash(start: int, end: int, read: NodeReader) -> bytes:
    """Hash of leaves [start, end); `start` is a multiple of the largest subtree inside."""
    peaks = [read(level, index) for level, index in _full_subtrees(start, end)]
    node = peaks.pop()
    while peaks:
        node = hash_children(peaks.pop(), node)
    return node


def _full_subtrees(start: int, end: int) -> Iterator[tuple[int, int]]:
    while start < end:
        level = (end - start).bit_length() - 1
        yield level, start >> level
        start += 1 << level


def _largest_power_below(count: int) -> int:
    return 1 << ((count - 1).bit_length() - 1)


def _check_hashes(path: Sequence[bytes]) -> None:
    if len(path) > MAX_PATH_LENGTH or any(len(node) != HASH_BYTES for node in path):
        raise InvalidProofError(f"path: expected at most {MAX_PATH_LENGTH} hashes of 32 bytes")
