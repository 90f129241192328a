"""Lists and statements as files of any length: how fast they come, in how much memory."""

from __future__ import annotations

import http.client
import time
from collections.abc import Iterator
from dataclasses import dataclass

from scripts.bench_explorer.sample import Sample
from scripts.bench_explorer.table import Figure
from scripts.bench_figures.node_process import RunningNode, read_memory

PIECE_BYTES = 1 << 18
MEGABYTE = 1e6
MAX_GROWTH_MB = 32
"""Beyond this memory grows with what is written."""
LINES_S = 10_000
"""What anybody's own disk and spreadsheet take longer for."""
TIMEOUT_S = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class _Taken:
    """What came of one file."""

    size_bytes: int
    lines: int
    seconds: float
    growth_mb: float
    """Most memory of the node meanwhile, above what it had before."""


def measure_exports(node: RunningNode, sample: Sample) -> Iterator[Figure]:
    """Fetch the longest files there are."""
    files = {
        "/receipts.csv": ("/receipts.csv", b"\n"),
        "statement of the largest client, JSON": (
            f"/v1/accounts/{sample.client}/statement",
            b'"receipt_id"',
        ),
        "statement of the largest client, CSV": (
            f"/v1/accounts/{sample.client}/statement.csv",
            b"\n",
        ),
    }
    for name, (path, mark) in files.items():
        taken = _take(node, path, mark)
        yield Figure(name=f"{name}, lines", value=taken.lines, unit="")
        yield Figure(
            name=f"{name}, rate", value=taken.lines / taken.seconds, unit="lines/s", least=LINES_S
        )
        yield Figure(name=f"{name}, size", value=taken.size_bytes / MEGABYTE, unit="MB")
        yield Figure(
            name=f"{name}, memory of the node grows by",
            value=taken.growth_mb,
            unit="MB",
            most=MAX_GROWTH_MB,
        )


def _take(node: RunningNode, path: str, mark: bytes) -> _Taken:
    connection = http.client.HTTPConnection("127.0.0.1", node.port, timeout=TIMEOUT_S)
    before_mb = most_mb = read_memory(node.pid)
    size = lines = 0
    tail = b""
    began = time.perf_counter()
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        if answer.status != http.HTTPStatus.OK:
            raise RuntimeError(f"{path}: {answer.status} {answer.read(300)!r}")
        while piece := answer.read(PIECE_BYTES):
            size += len(piece)
            # A mark may lie across two pieces.
            lines += (tail + piece).count(mark) - tail.count(mark)
            tail = piece[-len(mark) + 1 :] if len(mark) > 1 else b""
            most_mb = max(most_mb, read_memory(node.pid))
    finally:
        connection.close()
    return _Taken(
        size_bytes=size,
        lines=lines,
        seconds=time.perf_counter() - began,
        growth_mb=most_mb - before_mb,
    )
