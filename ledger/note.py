r"""Signed notes: a text with signature lines under it. Source: C2SP signed-note, tlog-cosignature.

    <text, ends in a line feed>
    <empty line>
    — <key name> <base64 of key id ‖ signature>

    key id = SHA-256(key name ‖ `\n` ‖ kind ‖ public key), the first 4 bytes

The kind is one byte: 0x01 is an Ed25519 signature over the text, 0x04 a witness' cosignature, which
says when it was made. Name and id together name a key. Lines of keys that the reader does not know
are ignored, whatever they hold; a line of a known key that does not verify spoils the whole note.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from hashlib import sha256

from ledger.encoding import encode_base64url
from ledger.errors import InvalidNoteError, InvalidSignatureError
from ledger.keys import SIGNATURE_BYTES, KeyPair, decode_account, verify_signature

MAX_NOTE_BYTES = 128 << 10
"""Sixteen signatures must fit, and those of post-quantum keys take 5 KB each."""
MAX_NOTE_SIGNATURES = 64
MAX_KEY_NAME_CHARS = 255
MAX_TIMESTAMP_S = 2**63 - 1
KEY_ID_BYTES = 4

_MARK = "— "
_TIMESTAMP_BYTES = 8
_FIRST_PRINTABLE = " "


class KeyKind(IntEnum):
    """What a key of a note signs; the byte is part of its id."""

    LOG = 0x01
    WITNESS = 0x04


@dataclass(frozen=True, slots=True, kw_only=True)
class NoteKey:
    """A key that a reader knows: whose lines it verifies."""

    name: str
    kind: KeyKind
    account: str

    @property
    def id(self) -> bytes:
        """The 4 bytes that its signatures begin with."""
        return sha256(f"{self.name}\n".encode() + self._encode()).digest()[:KEY_ID_BYTES]

    def _encode(self) -> bytes:
        return bytes([self.kind]) + decode_account(self.account)

    def __str__(self) -> str:
        """Return the key as other tools take it, `name+id+key`."""
        return f"{self.name}+{self.id.hex()}+{base64.b64encode(self._encode()).decode()}"


@dataclass(frozen=True, slots=True, kw_only=True)
class NoteSignature:
    """One signature line."""

    name: str
    key_id: bytes
    data: bytes
    """What follows the key id; its form is the business of the key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """A text and its signature lines. Nothing says yet that one of them verifies."""

    text: str
    signatures: tuple[NoteSignature, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedSignature:
    """A line of a known key that verifies."""

    key: NoteKey
    line: NoteSignature
    time_s: int | None
    """When a witness says that it signed, Unix seconds; None for other keys."""


def is_key_name(name: str) -> bool:
    """Tell whether a key may bear this name: not empty, no white space, no plus."""
    return 0 < len(name) <= MAX_KEY_NAME_CHARS and not any(
        char == "+" or char < _FIRST_PRINTABLE or char.isspace() for char in name
    )


def parse_note(data: bytes) -> Note:
    """Parse a note.

    Raises:
        InvalidNoteError: not a note, or larger than any that is accepted.
    """
    if len(data) > MAX_NOTE_BYTES:
        raise InvalidNoteError(f"note: expected at most {MAX_NOTE_BYTES} bytes, got {len(data)}")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise InvalidNoteError("note: expected UTF-8") from error
    if any(char < _FIRST_PRINTABLE and char != "\n" for char in text):
        raise InvalidNoteError("note: holds a control character")
    body, separator, tail = text.rpartition("\n\n")
    if not separator or not tail.endswith("\n"):
        raise InvalidNoteError("note: expected an empty line, then signature lines")
    # Every line, the last one too, ends in a line feed; other line breaks are part of a line.
    lines = tail[:-1].split("\n")
    if len(lines) > MAX_NOTE_SIGNATURES:
        raise InvalidNoteError(f"note: expected at most {MAX_NOTE_SIGNATURES} signatures")
    return Note(text=body + "\n", signatures=tuple(map(_parse_line, lines)))


def _parse_line(line: str) -> NoteSignature:
    name, _, text = line.removeprefix(_MARK).partition(" ")
    if not line.startswith(_MARK) or not is_key_name(name):
        raise InvalidNoteError("note: expected a dash, a key name and a signature on each line")
    try:
        data = base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error) as error:
        raise InvalidNoteError("note: a signature is not base64") from error
    if len(data) <= KEY_ID_BYTES or base64.b64encode(data).decode() != text:
        raise InvalidNoteError("note: a signature is too short or not canonical base64")
    return NoteSignature(name=name, key_id=data[:KEY_ID_BYTES], data=data[KEY_ID_BYTES:])


def encode_note(note: Note) -> bytes:
    """Return the bytes of a note."""
    return f"{note.text}\n{''.join(map(_format_line, note.signatures))}".encode()


def _format_line(line: NoteSignature) -> str:
    return f"{_MARK}{line.name} {base64.b64encode(line.key_id + line.data).decode()}\n"


def sign_note(text: str, key: KeyPair, *, name: str) -> NoteSignature:
    """Return the signature line of a log's key over `text`, which ends in a line feed."""
    note_key = NoteKey(name=name, kind=KeyKind.LOG, account=key.account)
    return NoteSignature(name=name, key_id=note_key.id, data=_sign(key, text.encode()))


def cosign_note(text: str, key: KeyPair, *, name: str, time_s: int) -> NoteSignature:
    """Return the signature line of a witness' key over `text` at `time_s` (Unix seconds)."""
    note_key = NoteKey(name=name, kind=KeyKind.WITNESS, account=key.account)
    signature = _sign(key, _build_cosigned_message(text, time_s))
    data = time_s.to_bytes(_TIMESTAMP_BYTES, "big") + signature
    return NoteSignature(name=name, key_id=note_key.id, data=data)


def verify_note(note: Note, keys: Iterable[NoteKey]) -> tuple[VerifiedSignature, ...]:
    """Return the lines that known keys signed, one for each key, in their order; at least one.

    Raises:
        InvalidNoteError: a known key's line does not verify, or no line is of a known key.
    """
    known = {(key.name, key.id): key for key in keys}
    verified: dict[NoteKey, VerifiedSignature] = {}
    for line in note.signatures:
        if (line.name, line.key_id) in known:
            signature = _verify_line(note.text, known[line.name, line.key_id], line)
            verified.setdefault(signature.key, signature)
    if not verified:
        raise InvalidNoteError("note: nobody signed it whose key is known")
    return tuple(verified.values())


def _verify_line(text: str, key: NoteKey, line: NoteSignature) -> VerifiedSignature:
    message, data, time_s = text.encode(), line.data, None
    if key.kind is KeyKind.WITNESS:
        time_s = int.from_bytes(data[:_TIMESTAMP_BYTES], "big")
        if time_s > MAX_TIMESTAMP_S:
            raise InvalidNoteError(f"note: {key.name} signed at a time that does not exist")
        message, data = _build_cosigned_message(text, time_s), data[_TIMESTAMP_BYTES:]
    if len(data) != SIGNATURE_BYTES:
        raise InvalidNoteError(f"note: the signature of {key.name} has not {SIGNATURE_BYTES} bytes")
    try:
        verify_signature(key.account, message, encode_base64url(data))
    except InvalidSignatureError as error:
        raise InvalidNoteError(f"note: {error}") from error
    return VerifiedSignature(key=key, line=line, time_s=time_s)


def _build_cosigned_message(text: str, time_s: int) -> bytes:
    return f"cosignature/v1\ntime {time_s}\n{text}".encode()


def _sign(key: KeyPair, message: bytes) -> bytes:
    return base64.urlsafe_b64decode(key.sign(message) + "==")
