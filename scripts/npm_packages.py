"""Installs the npm packages of a file of pins into the node_modules folder of an environment.

    python -m scripts.npm_packages requirements/npm.json .venv

npm fetches each package by name and exact version; it is unpacked only if its bytes have the digest
that stands in the file, and nothing in it is run. npm's own lock file would name the registry, and
these packages need no others.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

TIMEOUT_S = 300


def main(pins: str, environment: str) -> None:
    """Install them all."""
    target = Path(environment) / "node_modules"
    for name, pin in json.loads(Path(pins).read_bytes()).items():
        with tempfile.TemporaryDirectory() as folder:
            archive = fetch(name, pin["version"], Path(folder))
            check(archive, pin["integrity"])
            unpack(archive, target / name)


def fetch(name: str, version: str, folder: Path) -> Path:
    """Return the package as npm packed it."""
    npm = Path(sys.executable).with_name("npm")
    command = [npm, "pack", "--silent", "--ignore-scripts", f"{name}@{version}"]
    result = subprocess.run(
        [*map(str, command), "--pack-destination", str(folder)],
        stdout=subprocess.DEVNULL,
        timeout=TIMEOUT_S,
    )
    archives = list(folder.glob("*.tgz"))
    if result.returncode or len(archives) != 1:
        raise SystemExit(f"npm cannot fetch {name}@{version}; it needs access to the npm registry")
    return archives[0]


def check(archive: Path, integrity: str) -> None:
    """Refuse bytes that are not the ones pinned."""
    algorithm, _, expected = integrity.partition("-")
    got = hashlib.new(algorithm, archive.read_bytes()).digest()
    if got != base64.b64decode(expected):
        raise SystemExit(
            f"{archive.name}: expected {integrity}, got {base64.b64encode(got).decode()}"
        )


def unpack(archive: Path, target: Path) -> None:
    """Replace a package; archives of npm hold one folder, `package`."""
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder, tarfile.open(archive) as files:
        # The bytes are the pinned ones. Early releases of Python 3.11 know no filter to ask for.
        files.extraction_filter = getattr(tarfile, "data_filter", None)
        files.extractall(folder)  # noqa: S202 - filtered where it can be
        (Path(folder) / "package").replace(target)


if __name__ == "__main__":
    main(*sys.argv[1:])
