"""Canonical bytes: one value, one encoding (RFC 8785, fenced).

Signed content holds objects with ASCII keys, arrays, strings, booleans and integers with
|n| < 2^53; never a float. On that domain msgspec with sorted keys writes exactly what RFC 8785
asks for (a property test holds it to the `rfc8785` package), sixty times faster.

Decoding is typed and strict: the bytes must decode into the expected type, and encode back to
the very same bytes. That one comparison rejects duplicate keys, spare white space, other
escapes, `-0`, `1.0` and every other second spelling.
"""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, TypeVar

import msgspec

from ledger.errors import EncodingError

T = TypeVar("T")

MAX_INTEGER = 2**53 - 1
MAX_DOCUMENT_BYTES = 1 << 20
"""Default bound of one canonical document; callers pass tighter ones."""

# Patterns end in \Z: `$` would let a line feed pass behind the last character.
_HEX64_PATTERN = r"^[0-9a-f]{64}\Z"

Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_INTEGER)]
"""A non-negative integer that every JSON reader represents exactly."""
Hex32 = Annotated[str, msgspec.Meta(pattern=_HEX64_PATTERN)]
"""32 bytes as 64 lower-case hex digits."""
OptionalHex32 = Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{64})?\Z")]
"""As Hex32, or empty where the value is unknown."""

# Base64url in the alphabet of plain base64; what only that one has becomes no digit at all.
_TO_STANDARD = bytes.maketrans(b"-_+/=", b"+/!!!")

_encoder = msgspec.json.Encoder(order="sorted")


def encode(value: object) -> bytes:
    """Return the canonical bytes of a struct, mapping or array.

    The structs of the wire formats hold nothing else than the fenced domain; of a plain mapping the
    caller must know it.

    Raises:
        EncodingError: the value has no canonical form (a lone surrogate, an unsupported type).
    """
    try:
        return _encoder.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise EncodingError(f"value has no canonical form: {error}") from error


def prepare(*kinds: type) -> None:
    """Let any thread parse these types; called where they are made, while modules are imported.

    msgspec works out what a type is when it first meets it, and two threads that let it do so at
    once crash the process: a follower's, say, whose verifying threads meet their first blocks.
    """
    for kind in kinds:
        msgspec.json.Decoder(kind)


def decode(data: bytes, kind: type[T], *, max_bytes: int = MAX_DOCUMENT_BYTES) -> T:
    """Parse canonical bytes into `kind`, or refuse them.

    Raises:
        EncodingError: too long, not of this type, or not the canonical spelling.
    """
    if len(data) > max_bytes:
        raise EncodingError(f"document size: expected at most {max_bytes} bytes, got {len(data)}")
    try:
        value = msgspec.json.decode(data, type=kind)
    except (ValueError, RecursionError) as error:
        raise EncodingError(f"document is not a {_name(kind)}: {error}") from error
    if encode(value) != data:
        raise EncodingError(f"document is a {_name(kind)}, but not in canonical form")
    return value


def encode_base64url(data: bytes) -> str:
    """Return base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def decode_base64url(text: str, *, size_bytes: int) -> bytes:
    """Parse unpadded base64url of exactly `size_bytes` bytes, in its only spelling.

    Raises:
        EncodingError: wrong alphabet, length or trailing bits.
    """
    try:
        standard = text.encode("ascii").translate(_TO_STANDARD) + b"=" * (-len(text) % 4)
        data = binascii.a2b_base64(standard, strict_mode=True)
    except (ValueError, binascii.Error) as error:
        raise EncodingError("text is not base64url without padding") from error
    if len(data) != size_bytes or binascii.b2a_base64(data, newline=False) != standard:
        raise EncodingError(f"expected {size_bytes} bytes as canonical base64url")
    return data


def decode_hash(text: str) -> bytes:
    """Parse 64 lower-case hex digits into 32 bytes.

    Raises:
        EncodingError: anything else.
    """
    try:
        return bytes.fromhex(msgspec.convert(text, Hex32))
    except msgspec.ValidationError as error:
        raise EncodingError("expected 64 lower-case hex digits") from error


def _name(kind: object) -> str:
    return getattr(kind, "__name__", str(kind))
