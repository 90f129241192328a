r"""One name for all files of a model directory.

    model_digest = BLAKE3(`aitbc/model/v1\n` ‖ one line per file, sorted by path bytes)
    line = `<BLAKE3 of the file, hex> <size, decimal> <path in the directory, with />\n`

Reading 100 MB takes a while, so the digest is remembered in a file of its own, outside the
directory it names, for as long as no file's size, modification or change time differs.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Final

from blake3 import blake3

from miner.errors import ModelFormatError

DOMAIN: Final = b"aitbc/model/v1\n"
MAX_FILES: Final = 10_000


def digest_model(directory: Path) -> str:
    """Hash all files of a model; 64 hex digits.

    Raises:
        ModelFormatError: no files, too many, a link or a device, or a path that is no UTF-8 line.
        OSError: a file cannot be read.
    """
    hasher = blake3(DOMAIN)
    for path, name in list_files(directory):
        file_hash = blake3(max_threads=blake3.AUTO).update_mmap(path).hexdigest()
        hasher.update(f"{file_hash} {path.stat().st_size} ".encode() + name + b"\n")
    return hasher.hexdigest()


def list_files(directory: Path) -> list[tuple[Path, bytes]]:
    """Every file with its path bytes in the directory, in the order they are hashed."""
    found: list[tuple[Path, bytes]] = []
    for path in directory.rglob("*"):
        if path.is_dir() and not path.is_symlink():
            continue
        name = path.relative_to(directory).as_posix()
        if path.is_symlink() or not path.is_file() or "\n" in name or not name.isprintable():
            raise ModelFormatError(f"{path}: a model holds plain files with printable names only")
        found.append((path, os.fsencode(name)))
        if len(found) > MAX_FILES:
            raise ModelFormatError(f"{directory}: more than {MAX_FILES} files is no model")
    if not found:
        raise ModelFormatError(f"{directory}: no model files there")
    return sorted(found, key=lambda item: item[1])


def cached_digest(directory: Path, cache: Path) -> str:
    """As `digest_model`, from the cache file if the directory has not changed since.

    A cache that cannot be read or written only costs time.
    """
    stamp = [
        [os.fsdecode(name), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
        for path, name in list_files(directory)
        for status in [path.stat()]
    ]
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(cache.read_text(encoding="utf-8"))
        if known["stamp"] == stamp:
            return str(known["digest"])
    digest = digest_model(directory)
    partial = cache.with_name(f"{cache.name}.{os.getpid()}")
    with contextlib.suppress(OSError):
        partial.write_text(json.dumps({"stamp": stamp, "digest": digest}), encoding="utf-8")
        partial.replace(cache)
    return digest
