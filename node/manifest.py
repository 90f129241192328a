"""What a backup holds, and how one is read that anybody may have written.

    manifest.json    the format, the network, where the ledger ends, size and BLAKE3 of each file
    genesis.json     the network's trust root; public
    node.toml        options of `aitbc run`, if the directory has any
    node.db          jobs with their texts, digests of API keys, webhooks with their secrets,
                     receipts on their way; private
    ledger.db        the chain; public

It is a directory with these files, or a tar of them in this order. There are no other names, so
nothing in a backup chooses a path; links and pipes are not followed.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

import msgspec
from blake3 import blake3

from ledger.encoding import Count, Hex32
from ledger.errors import StoreError
from node.archive import BLOCK_BYTES, iterate_members

FORMAT = 1
MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 16 << 10
CHUNK_BYTES = 1 << 20

Name = Literal["genesis.json", "node.toml", "node.db", "ledger.db"]
NAMES: tuple[Name, ...] = ("genesis.json", "node.toml", "node.db", "ledger.db")
REQUIRED: tuple[Name, ...] = ("genesis.json", "node.db", "ledger.db")

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


class BackupFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One file of a backup."""

    name: Name
    size_bytes: Count
    blake3: Hex32


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a backup holds. Nobody signs it: it finds damage, not forgery."""

    kind: Literal["aitbc-backup"] = "aitbc-backup"
    v: Literal[1] = 1
    genesis: Hex32
    """The network's genesis hash."""
    network: Annotated[str, msgspec.Meta(max_length=63)]
    release: Annotated[str, msgspec.Meta(max_length=64)]
    """Of the node that made it."""
    created_ms: Count
    height: Count
    """Of the newest block in ledger.db; 0 if there is none."""
    hash: Hex32
    """Of that block, or the genesis hash."""
    files: Annotated[tuple[BackupFile, ...], msgspec.Meta(max_length=4)]


class _Version(msgspec.Struct):
    """What every format's manifest has."""

    kind: Literal["aitbc-backup"]
    v: int


def parse_manifest(data: bytes, path: Path) -> Manifest:
    """Parse a manifest.

    Raises:
        StoreError: it is none, of a newer format, or lists too little or a file twice.
    """
    if len(data) > MAX_MANIFEST_BYTES:
        raise StoreError(f"{path}: {MANIFEST}: expected at most {MAX_MANIFEST_BYTES} bytes")
    try:
        version = msgspec.json.decode(data, type=_Version).v
        if version > FORMAT:
            raise StoreError(
                f"{path}: is a backup of format {version}, this release reads {FORMAT}; use the "
                "release that made it, or a newer one"
            )
        manifest = msgspec.json.decode(data, type=Manifest)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path}: {MANIFEST} is not that of a backup: {error}") from error
    names = [file.name for file in manifest.files]
    if missing := [name for name in REQUIRED if name not in names]:
        raise StoreError(f"{path}: the backup lacks {', '.join(missing)}")
    if len(set(names)) < len(names):
        raise StoreError(f"{path}: {MANIFEST} lists a file twice")
    return manifest


_Files = Generator[tuple[BackupFile, BinaryIO], None, None]


@dataclass(frozen=True, slots=True)
class Backup:
    """A backup that is open, its manifest read."""

    path: Path
    manifest: Manifest
    files: Iterator[tuple[BackupFile, BinaryIO]]
    """Each file of the manifest, in order, at its first byte; to be read before the next one."""


@contextlib.contextmanager
def open_backup(path: Path) -> Iterator[Backup]:
    """Open a backup, a directory or an archive, and read its manifest.

    Raises:
        StoreError: it is missing, or no backup that this release reads.
    """
    if path.is_dir():
        with contextlib.closing(_open_regular(path / MANIFEST)) as handle:
            manifest = parse_manifest(handle.read(MAX_MANIFEST_BYTES + 1), path)
        with contextlib.closing(_open_files(path, manifest)) as files:
            yield Backup(path, manifest, files)
        return
    with contextlib.closing(_open_regular(path)) as archive:
        members = iterate_members(archive, path)
        name, size_bytes = next(members, ("", 0))
        if name != MANIFEST or size_bytes > MAX_MANIFEST_BYTES:
            raise StoreError(f"{path}: is no backup: it does not begin with {MANIFEST}")
        manifest = parse_manifest(archive.read(size_bytes), path)
        with contextlib.closing(_unpack(archive, members, path, manifest)) as files:
            yield Backup(path, manifest, files)


def iterate_bytes(path: Path, file: BackupFile, source: BinaryIO) -> Iterator[bytes]:
    """Yield a file of a backup in parts: exactly the bytes that the manifest promises.

    Raises:
        StoreError: at its end, if they are others or too few.
    """
    digest, left = blake3(), file.size_bytes
    while left and (chunk := source.read(min(left, CHUNK_BYTES))):
        digest.update(chunk)
        left -= len(chunk)
        yield chunk
    if left:
        raise StoreError(f"{path}: {file.name} is cut off: {left} bytes are missing")
    if digest.hexdigest() != file.blake3:
        raise StoreError(
            f"{path}: {file.name}: expected BLAKE3 {file.blake3}, got {digest.hexdigest()}: the "
            "backup is damaged"
        )


def verify_backup(path: Path, progress: Progress) -> None:
    """Read a whole backup, and hold every file to its manifest.

    Raises:
        StoreError: it is none, or damaged.
    """
    with open_backup(path) as backup:
        for file, source in backup.files:
            done = 0
            for chunk in iterate_bytes(path, file, source):
                done += len(chunk)
                progress(f"verifying {file.name}", done, file.size_bytes)


def _open_regular(path: Path) -> BinaryIO:
    """Open a file that is no link, pipe or device."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        reason = "is a symbolic link" if path.is_symlink() else error.strerror
        raise StoreError(f"{path}: cannot be read: {reason}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise StoreError(f"{path}: cannot be read: is no regular file")
    return os.fdopen(descriptor, "rb")


def _open_files(path: Path, manifest: Manifest) -> _Files:
    for file in manifest.files:
        with contextlib.closing(_open_regular(path / file.name)) as handle:
            _check_size(path, file, os.fstat(handle.fileno()).st_size)
            yield file, handle


def _unpack(
    archive: BinaryIO, members: Iterator[tuple[str, int]], path: Path, manifest: Manifest
) -> _Files:
    for file in manifest.files:
        name, size_bytes = next(members, ("its end", 0))
        if name != file.name:
            raise StoreError(f"{path}: expected {file.name} next, got {name}")
        _check_size(path, file, size_bytes)
        yield file, archive
    # The first of the two blocks that end an archive is what ended the members.
    if next(members, None) is not None or archive.read(BLOCK_BYTES + 1) != bytes(BLOCK_BYTES):
        raise StoreError(f"{path}: goes on behind its last file, or is cut off there")


def _check_size(path: Path, file: BackupFile, size_bytes: int) -> None:
    if size_bytes != file.size_bytes:
        raise StoreError(
            f"{path}: {file.name}: expected {file.size_bytes} bytes, got {size_bytes}: the backup "
            "is damaged"
        )
