"""Files that operators hold: read whole up to a bound, written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ledger.errors import LedgerError, StoreError
from ledger.store.database import sync_directory

MAX_DOCUMENT_BYTES = 1 << 20
"""Of a genesis or a checkpoint; other documents name a bound of their own."""

T = TypeVar("T")

_PRIVATE_FILE = 0o600
_PUBLIC_FILE = 0o644


def read_bounded(path: Path, max_bytes: int = MAX_DOCUMENT_BYTES) -> bytes:
    """Return the bytes of a file.

    Raises:
        StoreError: it cannot be read, or is longer than `max_bytes`.
    """
    try:
        with path.open("rb") as handle:
            data = handle.read(max_bytes + 1)
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}") from error
    if len(data) > max_bytes:
        raise StoreError(f"{path}: expected at most {max_bytes} bytes")
    return data


def load_document(
    path: Path, parse: Callable[[bytes], T], max_bytes: int = MAX_DOCUMENT_BYTES
) -> T:
    """Return what `parse` makes of a file.

    Raises:
        StoreError: it cannot be read, is too long, or is no such document.
    """
    data = read_bounded(path, max_bytes)
    try:
        return parse(data)
    except LedgerError as error:
        raise StoreError(f"{path}: {error}") from error


def write_private(path: Path, data: bytes) -> None:
    """Write a file that its owner alone may read, durably; it appears whole or not at all.

    Raises:
        StoreError: the disk refuses.
    """
    _write(path, data, _PRIVATE_FILE)


def write_public(path: Path, data: bytes) -> None:
    """Write a file that everybody may read, as `write_private` does."""
    _write(path, data, _PUBLIC_FILE)


def _write(path: Path, data: bytes, mode: int) -> None:
    # Beside its place first: a full disk must not cost what was there.
    draft = path.with_name(path.name + ".draft")
    try:
        draft.unlink(missing_ok=True)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        draft.replace(path)
        sync_directory(path.parent)
    except OSError as error:
        raise StoreError(f"{path}: cannot be written: {error.strerror or error}") from error
