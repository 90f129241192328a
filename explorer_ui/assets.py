"""Static files, read and compressed once at start-up and served from memory.

Their addresses carry a hash of all their contents, so a changed file has a new address and every
answer may be kept for ever.
"""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "static"
MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
"""By suffix, of files that pages ask for; lists and licences stay on disk."""
OF_THE_API = ("api/", "vendor/redoc/", "vendor/swagger-ui/")
"""Folders of the other face, whose pages serve their large files themselves."""
MAX_FILES = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Asset:
    """One file in both of its encodings."""

    media_type: str
    plain: bytes
    gzipped: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Assets:
    """All static files of one release."""

    release: str
    """Hash of every path and content: part of each address."""
    files: dict[str, Asset]
    """By path below the static folder, with forward slashes."""


@cache
def load_assets(folder: Path = FOLDER) -> Assets:
    """Read the static files that pages ask for."""
    files: dict[str, Asset] = {}
    digest = hashlib.sha256()
    paths = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix in MEDIA_TYPES
        and not path.relative_to(folder).as_posix().startswith(OF_THE_API)
    )
    assert len(paths) <= MAX_FILES, f"more than {MAX_FILES} static files under {folder}"
    for path in paths:
        name, plain = path.relative_to(folder).as_posix(), path.read_bytes()
        digest.update(f"{name} {len(plain)}\n".encode() + plain)
        files[name] = Asset(
            media_type=MEDIA_TYPES[path.suffix],
            plain=plain,
            gzipped=gzip.compress(plain, mtime=0),
        )
    return Assets(release=digest.hexdigest()[:12], files=files)
