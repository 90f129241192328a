"""A small disk that can be filled: a file system in memory, mounted for the run. Root only."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

SIZE = "1g"
BALLAST = "ballast"
PIECE_BYTES = 1 << 20


class SmallDisk:
    """The disk of one node."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._ballast = root / BALLAST

    def fill(self) -> None:
        """Leave no room at all."""
        with self._ballast.open("ab", buffering=0) as file:
            for size in (PIECE_BYTES, 4096, 1):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(bytes(size))

    def free(self) -> None:
        """Give the room back."""
        self._ballast.unlink(missing_ok=True)


@contextlib.contextmanager
def mounted(root: Path) -> Iterator[SmallDisk | None]:
    """Mount one at `root`; None where that is not allowed."""
    root.mkdir(parents=True)
    command = ["/bin/mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(root)]
    try:
        if (
            os.geteuid() != 0
            or subprocess.run(command, check=False, capture_output=True).returncode
        ):
            yield None
            return
    except FileNotFoundError:
        yield None
        return
    try:
        yield SmallDisk(root)
    finally:
        subprocess.run(["/bin/umount", "-l", str(root)], check=True)
