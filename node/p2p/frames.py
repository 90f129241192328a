r"""Frames of the block stream: one final block each, whole, in the bytes it is stored in.

    frame = length ‖ header \n certificate \n envelope {\n envelope}

The length is that of what follows it, in 4 bytes, big-endian. Canonical JSON holds no line feed, so
one split takes a frame apart and nothing is encoded twice on either side. A frame can be no longer
than the network's limits allow, and that is known from its first four bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ledger.block import (
    MAX_CERTIFICATE_BYTES,
    MAX_HEADER_BYTES,
    Block,
    Certificate,
    Header,
    Limits,
    hash_header,
    parse_certificate,
    parse_header,
)
from ledger.errors import InvalidBlockError, InvalidMessageError
from ledger.transaction import parse_transaction

GENESIS_HEADER = "x-aitbc-genesis"
"""Hash of the genesis of the chain that is streamed, in hex."""
HEIGHT_HEADER = "x-aitbc-height"
"""The sender's newest final height when its answer began."""
LENGTH_BYTES = 4
SEPARATOR = b"\n"

PATIENCE_S = 10.0
"""What a frame may take in any case."""
MIN_BYTES_PER_S = 64 * 1024
"""What a frame must move at on top of that, or the other side counts as stalled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """A frame taken apart. Its header and certificate are parsed, its body is not yet."""

    header: Header
    certificate: Certificate
    envelopes: Sequence[bytes]

    def parse_block(self) -> Block:
        """Parse the body.

        Raises:
            InvalidTransactionError: an envelope is none.
        """
        return Block(
            hash=hash_header(self.header),
            header=self.header,
            transactions=tuple(parse_transaction(envelope) for envelope in self.envelopes),
        )


def max_frame_bytes(limits: Limits) -> int:
    """Return the length that no frame of this network exceeds, without its prefix."""
    separators = 1 + limits.max_block_transactions
    return MAX_HEADER_BYTES + MAX_CERTIFICATE_BYTES + limits.max_block_bytes + separators


def frame_timeout_s(size_bytes: int) -> float:
    """Return how long a frame of this size may be under way."""
    return PATIENCE_S + size_bytes / MIN_BYTES_PER_S


def parse_frame(body: bytes, limits: Limits) -> Frame:
    """Take a frame without its prefix apart.

    Raises:
        InvalidMessageError: it is not of three parts or more.
        InvalidBlockError: too many transactions, no header, or no certificate.
    """
    # The bound of the split bounds the memory: whatever the peer sent, there is one part too many.
    parts = body.split(SEPARATOR, limits.max_block_transactions + 2)
    if len(parts) < 3:
        raise InvalidMessageError(
            f"frame: expected header, certificate and envelopes, got {len(parts)} parts"
        )
    header, certificate, *envelopes = parts
    if len(envelopes) > limits.max_block_transactions:
        raise InvalidBlockError(
            f"transactions: expected at most {limits.max_block_transactions} in a frame, got more"
        )
    return Frame(
        header=parse_header(header),
        certificate=parse_certificate(certificate),
        envelopes=envelopes,
    )


class FrameSplitter:
    """Cuts a byte stream into frames. Holds less than one frame."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._buffer = bytearray()

    @property
    def wanted_bytes(self) -> int:
        """Length of the frame that has begun, 0 if its prefix is not here yet."""
        if len(self._buffer) < LENGTH_BYTES:
            return 0
        return int.from_bytes(self._buffer[:LENGTH_BYTES], "big")

    def feed(self, data: bytes) -> list[bytes]:
        """Take bytes; return the frames that they complete, without their prefixes.

        Raises:
            InvalidMessageError: a length that no frame has.
        """
        self._buffer += data
        frames: list[bytes] = []
        while size := self._check_length():
            end = LENGTH_BYTES + size
            if len(self._buffer) < end:
                break
            frames.append(bytes(memoryview(self._buffer)[LENGTH_BYTES:end]))
            del self._buffer[:end]
        return frames

    def _check_length(self) -> int:
        if len(self._buffer) < LENGTH_BYTES:
            return 0
        size = self.wanted_bytes
        if not 1 <= size <= self._max_bytes:
            raise InvalidMessageError(
                f"frame length: expected 1 to {self._max_bytes} bytes, got {size}"
            )
        return size

    def close(self) -> None:
        """Say that the stream has ended.

        Raises:
            InvalidMessageError: in the middle of a frame.
        """
        if self._buffer:
            raise InvalidMessageError(
                f"stream: ends in the middle of a frame, after {len(self._buffer)} bytes of it"
            )
