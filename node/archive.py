"""A backup as one file: a plain tar that holds regular files and nothing else.

It is read here without an unpacker: a header is 512 bytes, and one of anything but a regular file
(a link, a device, a long name, an extended header) ends the reading. So nothing of the file chooses
a path, and no part of it is held in memory.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from ledger.errors import StoreError

BLOCK_BYTES = tarfile.BLOCKSIZE
END = bytes(2 * BLOCK_BYTES)
_CHUNK_BYTES = 1 << 20
_CHUNKS_PER_SYNC = 32
"""How much the disk is handed at once: a node waits for it too."""
_MODE = 0o600


def write_archive(
    target: Path, files: Sequence[Path], *, mtime_s: int, progress: Callable[[int], None]
) -> None:
    """Write a new archive of files, in their order, under their bare names, and fsync it.

    `progress(bytes)` is called with what each step has added.
    """
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _MODE)
    with os.fdopen(descriptor, "wb") as archive:
        for path in files:
            member = tarfile.TarInfo(path.name)
            member.size, member.mtime, member.mode = path.stat().st_size, mtime_s, _MODE
            archive.write(member.tobuf(format=tarfile.GNU_FORMAT))
            with path.open("rb") as source:
                for number, chunk in enumerate(iter(lambda: source.read(_CHUNK_BYTES), b""), 1):
                    archive.write(chunk)
                    if number % _CHUNKS_PER_SYNC == 0:
                        os.fsync(archive.fileno())
                    progress(len(chunk))
            archive.write(bytes(-member.size % BLOCK_BYTES))
        archive.write(END)
        archive.flush()
        os.fsync(archive.fileno())


def iterate_members(archive: BinaryIO, path: Path) -> Iterator[tuple[str, int]]:
    """Yield name and size of each member; the caller reads all of it before it asks for the next.

    Raises:
        StoreError: it is cut off, or no archive as this module writes them.
    """
    while (head := archive.read(BLOCK_BYTES)) != END[:BLOCK_BYTES]:
        if len(head) != BLOCK_BYTES:
            raise StoreError(f"{path}: ends before its end: it is cut off, or no backup")
        try:
            member = tarfile.TarInfo.frombuf(head, "ascii", "strict")
        except (tarfile.HeaderError, UnicodeDecodeError) as error:
            raise StoreError(f"{path}: is not the archive of a backup: {error}") from error
        if member.type != tarfile.REGTYPE or member.size < 0:
            raise StoreError(
                f"{path}: holds {member.name!r}, which is no regular file; a backup has no other"
            )
        yield member.name, member.size
        archive.read(-member.size % BLOCK_BYTES)
