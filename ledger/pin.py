"""A pinned checkpoint: a place in the chain that its user trusts, to begin there at once.

Besides genesis it is the one other thing that may be trusted, and for a while only: a node that
begins at a pin fetches and verifies all history from genesis, which must end in the pinned block.
Until then what the file says counts. So the checks here catch a damaged file, not a lie.

The peaks are the full subtrees that make up the tree of the pinned block, largest first: with them
leaves can be appended without any of those before.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from ledger import merkle
from ledger.authorities import AuthoritySet, hash_authority_set, validate_authority_set
from ledger.block import (
    Certificate,
    Genesis,
    Header,
    Tip,
    build_tip,
    hash_genesis,
    verify_certificate,
)
from ledger.encoding import Hex32, decode, prepare
from ledger.errors import EncodingError, InvalidBlockError

MAX_PIN_BYTES = 1 << 20


class Pin(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A block, and all that the next one is checked against."""

    v: Literal[1] = 1
    header: Header
    certificate: Certificate
    authority_set: AuthoritySet
    """The set that certified the block."""
    next_authority_set: AuthoritySet
    """The set that certifies the next one."""
    peaks: Annotated[tuple[Hex32, ...], msgspec.Meta(max_length=merkle.MAX_PATH_LENGTH)]

    @property
    def height(self) -> int:
        """Height of the pinned block."""
        return self.header.height

    def peak_nodes(self) -> dict[tuple[int, int], bytes]:
        """Return the peaks by their place in the tree."""
        places = merkle.list_peaks(self.header.tree_size)
        return {place: bytes.fromhex(peak) for place, peak in zip(places, self.peaks, strict=True)}

    def build_tip(self, genesis: Genesis) -> Tip:
        """Return the state after the pinned block."""
        return build_tip(self.header, authority_set=self.next_authority_set, limits=genesis.limits)


prepare(Pin)


def parse_pin(data: bytes, genesis: Genesis) -> Pin:
    """Parse a pin of the network of `genesis`: canonical JSON, with one line feed perhaps.

    Raises:
        InvalidBlockError: it is none, or its parts do not fit each other.
    """
    try:
        pin = decode(data.removesuffix(b"\n"), Pin, max_bytes=MAX_PIN_BYTES)
    except EncodingError as error:
        raise InvalidBlockError(f"pinned checkpoint: {error}") from error
    if pin.header.genesis != hash_genesis(genesis).hex():
        raise InvalidBlockError(
            f"pinned checkpoint: expected one of network {hash_genesis(genesis).hex()[:16]}…, "
            f"got one of {pin.header.genesis[:16]}…"
        )
    for authority_set in (pin.authority_set, pin.next_authority_set):
        validate_authority_set(authority_set)
    if hash_authority_set(pin.next_authority_set).hex() != pin.header.next_set_hash:
        raise InvalidBlockError("pinned checkpoint: the header names another next authority set")
    verify_certificate(pin.certificate, header=pin.header, authority_set=pin.authority_set)
    _verify_peaks(pin)
    return pin


def _verify_peaks(pin: Pin) -> None:
    size = pin.header.tree_size
    if len(pin.peaks) != size.bit_count():
        raise InvalidBlockError(
            f"pinned checkpoint: expected {size.bit_count()} peaks of {size} leaves, "
            f"got {len(pin.peaks)}"
        )
    nodes = pin.peak_nodes()
    root = merkle.compute_root(size, lambda *place: nodes[place])
    if root.hex() != pin.header.tree_root:
        raise InvalidBlockError("pinned checkpoint: the peaks do not lead to the header's root")
