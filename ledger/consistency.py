"""Consistency proofs: that a tree which somebody kept is the beginning of a later one.

    path    RFC 9162, section 2.1.4: the older root and the newer one share all older leaves
    head    where a block ends at the newer size, why that block is final: header, certificate and
            the changes of the authority set since genesis

The reader brings both roots, or its genesis file, and believes none that the document names.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from ledger import merkle
from ledger.authorities import AuthoritySet, hash_authority_set, validate_authority_set
from ledger.block import Certificate, Genesis, Header, hash_genesis, verify_certificate
from ledger.encoding import Count, Hex32, decode
from ledger.errors import EncodingError, InvalidProofError
from ledger.proof import MAX_EPOCHS, Epoch, walk_epochs

MAX_CONSISTENCY_BYTES = 16 << 20


class HeadProof(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A block with all that shows it final to whoever has the genesis document."""

    header: Header
    certificate: Certificate
    epochs: Annotated[tuple[Epoch, ...], msgspec.Meta(max_length=MAX_EPOCHS)]
    """Every set change from genesis up to `header`, oldest first."""
    next_set: AuthoritySet | msgspec.UnsetType = msgspec.UNSET
    """The set that `next_set_hash` names, where this block changes it: it signs from here on."""


class ConsistencyProof(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The document of `/v1/consistency`."""

    v: Literal[1] = 1
    from_size: Count
    from_root: Hex32
    to_size: Count
    to_root: Hex32
    path: Annotated[tuple[Hex32, ...], msgspec.Meta(max_length=merkle.MAX_PATH_LENGTH)]
    """Empty from size 0, which every tree extends, and between equal sizes."""
    head: HeadProof | msgspec.UnsetType = msgspec.UNSET
    """Absent where `to_size` is 0 or lies within a block."""


def parse_consistency(data: bytes) -> ConsistencyProof:
    """Parse a consistency document.

    Raises:
        InvalidProofError: not one, or not in its canonical spelling.
    """
    try:
        return decode(data, ConsistencyProof, max_bytes=MAX_CONSISTENCY_BYTES)
    except EncodingError as error:
        raise InvalidProofError(f"consistency proof: {error}") from error


def verify_extension(
    proof: ConsistencyProof, *, old: tuple[int, bytes], new: tuple[int, bytes]
) -> None:
    """Check that the tree `new` (size and root) extends the tree `old`.

    Raises:
        InvalidProofError: it does not, or the proof is about other trees.
    """
    told = (proof.from_size, proof.from_root), (proof.to_size, proof.to_root)
    if told != tuple((size, root.hex()) for size, root in (old, new)):
        raise InvalidProofError(
            f"consistency proof: expected one from {old[1].hex()} at {old[0]} leaves to "
            f"{new[1].hex()} at {new[0]}, got another"
        )
    path = [bytes.fromhex(node) for node in proof.path]
    if old[0] == 0:
        if old[1] != merkle.EMPTY_ROOT or path or (new[0] == 0 and new[1] != merkle.EMPTY_ROOT):
            raise InvalidProofError("the empty tree has one root, and its proofs are empty")
        return
    merkle.verify_consistency(
        old_size=old[0], old_root=old[1], new_size=new[0], new_root=new[1], path=path
    )


def verify_head(
    head: HeadProof, *, genesis: Genesis, size: int, root: bytes
) -> tuple[AuthoritySet, ...]:
    """Check that a final block ends at `size` leaves with `root`; returns who may sign its head.

    That is the set which certifies the block, and the next one if the block changes it.

    Raises:
        InvalidProofError: another network, size or root, or genesis does not lead to its set.
        InvalidBlockError: a set or a certificate is not valid.
    """
    header = head.header
    if header.genesis != hash_genesis(genesis).hex():
        raise InvalidProofError("head: it belongs to another network")
    if (header.tree_size, header.tree_root) != (size, root.hex()):
        raise InvalidProofError(
            f"head: expected {size} leaves under {root.hex()}, "
            f"block {header.height} has {header.tree_size} under {header.tree_root}"
        )
    current = walk_epochs(head.epochs, header=header, genesis=genesis)
    verify_certificate(head.certificate, header=header, authority_set=current)
    if isinstance(head.next_set, msgspec.UnsetType):
        if header.next_set_hash != header.set_hash:
            raise InvalidProofError("head: it changes the authorities and does not show the next")
        return (current,)
    validate_authority_set(head.next_set)
    if hash_authority_set(head.next_set).hex() != header.next_set_hash:
        raise InvalidProofError("head: the next set is not the one that the header names")
    return current, head.next_set
