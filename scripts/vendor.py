"""Fetch or check the vendored static files that `static/vendor/vendor.toml` lists.

    python -m scripts.vendor --check    offline: every listed file is there, unchanged, and no other
    python -m scripts.vendor            fetch with `npm pack`, check npm's integrity, unpack, check

An update means a new version, integrity and hashes in vendor.toml first, looked at by a person.
"""

from __future__ import annotations

import base64
import hashlib
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from pathlib import Path
from typing import Any

VENDOR = Path(__file__).resolve().parent.parent / "static" / "vendor"
LIST = "vendor.toml"
FETCH_TIMEOUT_S = 120
MAX_FILE_BYTES = 4 << 20


def read_list(folder: Path) -> dict[str, Any]:
    """Return the packages of a vendor folder by the name of their subfolder."""
    return tomllib.loads((folder / LIST).read_text(encoding="utf-8"))


def find_problems(folder: Path) -> list[str]:
    """Compare a vendor folder with its list; no problem means byte for byte as listed."""
    expected = {
        f"{name}/{file}": entry["sha256"]
        for name, package in read_list(folder).items()
        for file, entry in package["files"].items()
    }
    present = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name != LIST
    }
    return (
        [f"{path}: missing" for path in sorted(expected.keys() - present.keys())]
        + [f"{path}: not in {LIST}" for path in sorted(present.keys() - expected.keys())]
        + [
            f"{path}: expected sha256 {expected[path]}, got {present[path]}"
            for path in sorted(expected.keys() & present.keys())
            if expected[path] != present[path]
        ]
    )


def fetch(folder: Path) -> None:
    """Write every listed file afresh from its npm package.

    Raises:
        ValueError: a package is not the one whose integrity is listed.
    """
    for name, package in read_list(folder).items():
        with tempfile.TemporaryDirectory() as work:
            subprocess.run(
                ["npm", "pack", "--silent", f"{package['package']}@{package['version']}"],  # noqa: S607
                cwd=work,
                check=True,
                stdout=subprocess.DEVNULL,
                timeout=FETCH_TIMEOUT_S,
            )
            (archive,) = Path(work).glob("*.tgz")
            digest = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
            if f"sha512-{digest}" != package["integrity"]:
                raise ValueError(
                    f"{package['package']}: expected {package['integrity']}, got sha512-{digest}"
                )
            _unpack(archive, package["files"], folder / name)


def _unpack(archive: Path, files: dict[str, Any], target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive) as members:
        for file, entry in files.items():
            member = members.extractfile(f"package/{entry['source']}")
            if member is None:
                raise ValueError(f"{archive.name}: {entry['source']} is not a plain file")
            (target / file).write_bytes(member.read(MAX_FILE_BYTES))


def main(arguments: list[str]) -> int:
    """Run from the command line; 0 when all files are as listed."""
    if arguments not in ([], ["--check"]):
        print(__doc__, file=sys.stderr)
        return 2
    if not arguments:
        fetch(VENDOR)
    problems = find_problems(VENDOR)
    print("\n".join(problems) if problems else "vendored files: all as listed")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
