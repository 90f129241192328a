"""A node whose wall clock another process can move.

    python -m scripts.chaos.clocked FILE run --data DIR ...

FILE holds the offset in milliseconds, eight bytes, which may change at any time. Everything of ours
reads the time in one function (`node.clock`), and that one is replaced before anybody imports it;
SQLite, the libraries and the log keep the machine's time, timers and timeouts count as ever.
"""

from __future__ import annotations

import mmap
import struct
import sys
from pathlib import Path

from node import clock

OFFSET = struct.Struct("<q")


def write_offset(path: Path, offset_ms: int) -> None:
    """Move the clock of the node that runs with this file."""
    with path.open("r+b" if path.exists() else "w+b") as file:
        file.write(OFFSET.pack(offset_ms))


def main(arguments: list[str]) -> None:
    """Run the node's command with a clock that follows the file."""
    with Path(arguments[0]).open("rb") as file:
        shared = mmap.mmap(file.fileno(), OFFSET.size, access=mmap.ACCESS_READ)
    read = clock.read_clock_ms
    clock.read_clock_ms = lambda: read() + int(OFFSET.unpack(shared[: OFFSET.size])[0])
    sys.argv[1:] = arguments[1:]
    from node.cli import main as run  # noqa: PLC0415 - only now, see above

    run()


if __name__ == "__main__":
    main(sys.argv[1:])
