"""Large pages for weights: what is read from end to end at every step should need few addresses.

A step reads all weights. In pages of 4 KiB a small model's are some 25,000, more than a processor
remembers the places of, and looking them up is a twentieth of the step. Linux gathers memory that
is in use into pages of 2 MiB when it is asked to, from version 6.1 on: the same bytes at the same
addresses. Where it does not, or has no free piece of that size, nothing changes.

Only pieces that are in use are gathered, so memory grows by next to nothing; a cache whose pages
are taken when tokens first reach them is left as it is.
"""

from __future__ import annotations

import ctypes
import logging
import mmap
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

log = logging.getLogger(__name__)

USED_SHARE: Final = 0.9
"""Of a piece's small pages, for it to be gathered."""
_COLLAPSE: Final = 25
"""madvise(2), MADV_COLLAPSE."""
_ENTRY_BYTES: Final = 8
_PRESENT: Final = np.uint64(63)
"""The bit of an entry of /proc/self/pagemap that says that the page is in memory."""
_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3
"""mallopt(3)."""
_LARGEST_BLOCK_BYTES: Final = 32 << 20
_PROC: Final = Path("/proc/self")
_LARGE: Final = Path("/sys/kernel/mm/transparent_hugepage")
_OWN: Final = re.compile(r"([0-9a-f]+)-([0-9a-f]+) rw-p 0+ 00:00 0 *(?:\[heap\])?")
"""A line of /proc/self/maps: memory of no file."""
_BLOCK_BYTES: Final = 1 << 30
"""What is looked through at once; a cache may span terabytes that nothing has touched."""


def join_blocks() -> None:
    """Let this process take blocks of memory next to each other, to be gathered later.

    Else each of more than 128 KiB gets addresses of its own, in which no large page has room. The
    limits are those that glibc itself goes up to as blocks are given back.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and _read_size():
        mallopt(_MMAP_THRESHOLD, _LARGEST_BLOCK_BYTES)
        mallopt(_TRIM_THRESHOLD, 2 * _LARGEST_BLOCK_BYTES)


def gather_pages() -> int:
    """Gather this process' memory into large pages, as far as that can be had.

    Returns:
        How many bytes were.
    """
    size = _read_size()
    if size == 0:
        return 0
    libc = ctypes.CDLL(None, use_errno=True)
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    try:
        pieces = list(_find_pieces(size))
    except OSError as error:  # some containers hide it
        log.info("no large pages: %s", error)
        return 0
    gathered = sum(size for address in pieces if libc.madvise(address, size, _COLLAPSE) == 0)
    log.info("%d of %d MiB are in large pages", gathered >> 20, len(pieces) * size >> 20)
    return gathered


def _read_size() -> int:
    """Of a large page, if programs may ask for them here; else 0."""
    try:
        if "[never]" in (_LARGE / "enabled").read_text():
            return 0
        return int((_LARGE / "hpage_pmd_size").read_text())
    except (OSError, ValueError):  # not Linux, or built without them
        return 0


def _find_pieces(size: int) -> Iterator[int]:
    """Addresses of pieces of a large page's size, most of whose pages are in use."""
    lines = (_PROC / "maps").read_text().splitlines()
    spans = [(int(m[1], 16), int(m[2], 16)) for line in lines if (m := _OWN.fullmatch(line))]
    block = max(_BLOCK_BYTES // size, 1) * size
    with (_PROC / "pagemap").open("rb") as pagemap:
        for start, end in spans:
            first, last = -(-start // size) * size, end // size * size
            for at in range(first, last, block):
                used = _find_used(pagemap, at, min(last - at, block), size)
                yield from (at + int(piece) * size for piece in np.flatnonzero(used))


def _find_used(pagemap: BinaryIO, start: int, span: int, size: int) -> NDArray[np.bool_]:
    """Of each piece from an address on, whether it is in use."""
    pages = size // mmap.PAGESIZE
    pagemap.seek(start // mmap.PAGESIZE * _ENTRY_BYTES)
    content = pagemap.read(span // mmap.PAGESIZE * _ENTRY_BYTES)
    whole = len(content) // (pages * _ENTRY_BYTES) * pages  # it may have gone meanwhile
    present = np.frombuffer(content, np.uint64)[:whole] >> _PRESENT
    used: NDArray[np.bool_] = present.reshape(-1, pages).sum(axis=1) >= USED_SHARE * pages
    return used
