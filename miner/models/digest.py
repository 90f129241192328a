r"""One name for all files of a model.

    model_digest = BLAKE3(`aitbc/model/v1\n` ‖ one line per file, sorted by path bytes)
    line = `<BLAKE3 of the file, hex> <size, decimal> <path in the directory, with />\n`

Reading 100 MB takes a while, so the digest is remembered in a file of its own, outside the
directory it names, for as long as no file's size, modification or change time differs.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from blake3 import blake3

from miner.errors import ModelFormatError
from miner.models.layout import find_model, holds_choices

DOMAIN: Final = b"aitbc/model/v1\n"
MAX_FILES: Final = 10_000


def digest_model(model: Path) -> str:
    """Hash all files of a model; 64 hex digits.

    Raises:
        ModelFormatError: no files, too many, a link or a device, or a path that is no UTF-8 line.
        OSError: a file cannot be read.
    """
    return hash_manifest(list_files(model))


def hash_manifest(files: Iterable[tuple[Path, bytes]]) -> str:
    """The digest of files with their names, which are in order."""
    hasher = blake3(DOMAIN)
    for path, name in files:
        file_hash = blake3(max_threads=blake3.AUTO).update_mmap(path).hexdigest()
        hasher.update(f"{file_hash} {path.stat().st_size} ".encode() + name + b"\n")
    return hasher.hexdigest()


def list_files(model: Path) -> list[tuple[Path, bytes]]:
    """Every file of a model with its path bytes, in the order they are hashed.

    All files of a directory, but of one in the layout of transformers.js, which holds the same
    model several times, those alone that are used: see `miner.models.layout`.
    """
    if model.suffix == ".onnx" or holds_choices(model):
        location = find_model(model)
        if not location.is_genai:
            return name_files(location.root, location.used_files())
        model = location.root
    return name_files(model, model.rglob("*"))


def name_files(directory: Path, paths: Iterable[Path]) -> list[tuple[Path, bytes]]:
    """Files below a directory with their path bytes there, in order."""
    found: list[tuple[Path, bytes]] = []
    for path in paths:
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


def cached_digest(model: Path, cache: Path) -> str:
    """As `digest_model`, from the cache file if no file of the model has changed since.

    A cache that cannot be read or written only costs time.
    """
    stamp = [
        [os.fsdecode(name), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
        for path, name in list_files(model)
        for status in [path.stat()]
    ]
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(cache.read_text(encoding="utf-8"))
        if known["stamp"] == stamp:
            return str(known["digest"])
    digest = digest_model(model)
    partial = cache.with_name(f"{cache.name}.{os.getpid()}")
    with contextlib.suppress(OSError):
        partial.write_text(json.dumps({"stamp": stamp, "digest": digest}), encoding="utf-8")
        partial.replace(cache)
    return digest
