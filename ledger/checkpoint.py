"""Checkpoints: the head of the global Merkle tree as a signed note. Source: C2SP tlog-checkpoint.

    aitbc/<network>/<first 16 hex digits of the genesis hash>
    <leaves of the tree, decimal>
    <root, base64>

The first line, the origin, names the log; it is also the name of every authority's key, whose ids
tell them apart. There are no further lines. Only heads of final blocks, and the empty tree of
genesis, are ever signed. No other message of this protocol begins like one: a vote's second word
is `vote/v1`, and `v1` has not the length of a genesis hash.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable
from dataclasses import dataclass

from ledger.authorities import AuthoritySet
from ledger.block import Genesis, hash_genesis
from ledger.encoding import MAX_INTEGER
from ledger.errors import InvalidNoteError
from ledger.keys import KeyPair
from ledger.merkle import HASH_BYTES
from ledger.note import (
    KeyKind,
    Note,
    NoteKey,
    VerifiedSignature,
    cosign_note,
    encode_note,
    parse_note,
    sign_note,
    verify_note,
)

_SIZE = re.compile(r"0|[1-9][0-9]{0,15}")
_GENESIS_DIGITS = 16
_LINES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What a checkpoint says: this log had this root at this size."""

    origin: str
    size: int
    root: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedCheckpoint:
    """A checkpoint with those of its signatures that verify."""

    checkpoint: Checkpoint
    note: Note
    """With the lines of known keys alone."""
    signatures: tuple[VerifiedSignature, ...]

    def encode(self) -> bytes:
        """Return the bytes of the note."""
        return encode_note(self.note)


def build_origin(genesis: Genesis) -> str:
    """Return the name of a network's log."""
    return f"aitbc/{genesis.network}/{hash_genesis(genesis).hex()[:_GENESIS_DIGITS]}"


def build_witness_name(account: str) -> str:
    """Return the key name of a witness: its account says all."""
    return f"aitbc/witness/{account}"


def log_key(origin: str, account: str) -> NoteKey:
    """Return the key with which an authority signs checkpoints."""
    return NoteKey(name=origin, kind=KeyKind.LOG, account=account)


def log_keys(origin: str, authority_set: AuthoritySet) -> list[NoteKey]:
    """Return the keys of a set's members."""
    return [log_key(origin, member.account) for member in authority_set.members]


def witness_key(account: str) -> NoteKey:
    """Return the key with which a witness co-signs."""
    return NoteKey(name=build_witness_name(account), kind=KeyKind.WITNESS, account=account)


def encode_checkpoint(checkpoint: Checkpoint) -> str:
    """Return the text that is signed."""
    root = base64.b64encode(checkpoint.root).decode()
    return f"{checkpoint.origin}\n{checkpoint.size}\n{root}\n"


def parse_checkpoint(text: str) -> Checkpoint:
    """Parse the text of a note.

    Raises:
        InvalidNoteError: not a checkpoint of three lines in their one spelling.
    """
    lines = text.split("\n")
    if len(lines) != _LINES + 1 or lines[-1] != "" or not lines[0]:
        raise InvalidNoteError("checkpoint: expected three lines, origin, size and root")
    origin, size, root = lines[:_LINES]
    if not _SIZE.fullmatch(size) or int(size) > MAX_INTEGER:
        raise InvalidNoteError("checkpoint size: expected a decimal number below 2^53")
    try:
        digest = base64.b64decode(root, validate=True)
    except (ValueError, binascii.Error) as error:
        raise InvalidNoteError("checkpoint root: expected base64") from error
    if len(digest) != HASH_BYTES or base64.b64encode(digest).decode() != root:
        raise InvalidNoteError(f"checkpoint root: expected {HASH_BYTES} bytes, canonical base64")
    return Checkpoint(origin=origin, size=int(size), root=digest)


def sign_checkpoint(checkpoint: Checkpoint, key: KeyPair) -> bytes:
    """Return the note of an authority's signature. Whether it may sign is the caller's question."""
    text = encode_checkpoint(checkpoint)
    return encode_note(Note(text=text, signatures=(sign_note(text, key, name=checkpoint.origin),)))


def cosign_checkpoint(signed: SignedCheckpoint, key: KeyPair, *, time_s: int) -> bytes:
    """Return the note with a witness' line below the others (`node.witness` decides whether)."""
    line = cosign_note(signed.note.text, key, name=build_witness_name(key.account), time_s=time_s)
    return encode_note(Note(text=signed.note.text, signatures=(*signed.note.signatures, line)))


def read_checkpoint(data: bytes) -> Checkpoint:
    """Return what a note says, whoever signed it: for notes that the reader kept itself.

    Raises:
        InvalidNoteError: not a checkpoint.
    """
    return parse_checkpoint(parse_note(data).text)


def verify_checkpoint(data: bytes, *, origin: str, keys: Iterable[NoteKey]) -> SignedCheckpoint:
    """Parse a checkpoint of the log `origin` that at least one of `keys` signed.

    Raises:
        InvalidNoteError: it is none, of another log, or not signed so.
    """
    note = parse_note(data)
    checkpoint = parse_checkpoint(note.text)
    if checkpoint.origin != origin:
        raise InvalidNoteError("checkpoint origin: expected " + origin + ", got another log's")
    signatures = verify_note(note, keys)
    lines = tuple(signature.line for signature in signatures)
    return SignedCheckpoint(
        checkpoint=checkpoint,
        note=Note(text=note.text, signatures=lines),
        signatures=signatures,
    )
