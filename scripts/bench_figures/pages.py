"""Time to the first byte of pages and JSON answers over a long chain, and a page's weight."""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from html.parser import HTMLParser
from statistics import median
from urllib.parse import urlsplit

import msgspec
import uvloop

from node.clock import read_clock_ms
from scripts.bench_figures.connection import Connection
from scripts.bench_figures.measure import MICROS, Plan, Row, percentile
from scripts.bench_figures.node_process import (
    RunningNode,
    make_data_directory,
    run_node,
)
from scripts.generate import INTERVAL_MS, generate

BLOCK_RECEIPTS = 20
REFERENCE = "/robots.txt"
"""An answer without a read or a template: what the server itself costs."""
KILOBYTE = 1000


class _Block(msgspec.Struct):
    height: int


class _Receipt(msgspec.Struct):
    receipt_id: str
    transaction_id: str


@dataclass(kw_only=True)
class _Visits:
    """What the visits of one address took."""

    first_byte_ms: list[float] = field(default_factory=list)
    cpu_s: float = 0.0


def measure_pages(plan: Plan) -> Iterator[Row]:
    """One request after another on one connection, as from a browser that reads gzip."""
    created_ms = read_clock_ms() - plan.receipts * INTERVAL_MS
    data = make_data_directory(plan.folder / "pages", created_ms=created_ms)
    generate(data, receipts=plan.receipts, block_receipts=BLOCK_RECEIPTS)
    with run_node(data) as node:
        visits, weight = uvloop.run(_visit_all(node, plan))
    reference_ms = median(visits.pop(REFERENCE).first_byte_ms)
    for figure, seen in visits.items():
        yield Row(
            figure=f"GET {figure}",
            value=median(seen.first_byte_ms),
            unit="ms",
            p99=percentile(seen.first_byte_ms, 0.99),
            reference=f"GET {REFERENCE}",
            reference_value=reference_ms,
            goal="p99 < 25 ms",
            cpu_micros=seen.cpu_s * MICROS / len(seen.first_byte_ms),
        )
    yield from weight


async def _visit_all(node: RunningNode, plan: Plan) -> tuple[dict[str, _Visits], list[Row]]:
    connection = await Connection.open(node.port, {"Accept-Encoding": "gzip"})
    addresses = await _list_addresses(connection)
    visits = {figure: _Visits() for figure in addresses}
    for _ in range(plan.rounds):
        for figure, address in addresses.items():
            await connection.expect(200, "GET", address)
            cpu_s = node.cpu_s
            for _ in range(plan.visits):
                answer = await connection.expect(200, "GET", address)
                visits[figure].first_byte_ms.append(answer.first_byte_ms)
            visits[figure].cpu_s += node.cpu_s - cpu_s
    weight = await _weigh_home(connection)
    await connection.close()
    return visits, weight


async def _list_addresses(connection: Connection) -> Mapping[str, str]:
    """Return the address of each figure; what has an id is taken from the middle of the chain."""
    answer = await connection.expect(200, "GET", "/explorer/blocks?limit=1")
    (head,) = msgspec.json.decode(_unpack(answer.body), type=list[_Block])
    height = head.height // 2 + 1
    middle = height * BLOCK_RECEIPTS
    answer = await connection.expect(200, "GET", f"/explorer/receipts?limit=1&before={middle}")
    (receipt,) = msgspec.json.decode(_unpack(answer.body), type=list[_Receipt])
    receipt_id = receipt.receipt_id
    return {
        REFERENCE: REFERENCE,
        "/": "/",
        "/blocks": "/blocks",
        "/blocks/{height}": f"/blocks/{height}",
        "/receipts": "/receipts",
        "/receipts/{id}": f"/receipts/{receipt_id}",
        "/txs/{id}": f"/txs/{receipt.transaction_id}",
        "/explorer/stats": "/explorer/stats",
        "/explorer/blocks": "/explorer/blocks",
        "/explorer/transactions": "/explorer/transactions",
        "/explorer/receipts": "/explorer/receipts",
        "/v1/receipts/{id}": f"/v1/receipts/{receipt_id}",
        "/v1/receipts/{id}/proof": f"/v1/receipts/{receipt_id}/proof",
        "/health": "/health",
    }


class _Parts(HTMLParser):
    """Collects what a browser fetches to show a page."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        is_part = tag in {"script", "img"} or given.get("rel") in {"stylesheet", "icon"}
        address = given.get("src") or given.get("href")
        if is_part and address:
            self.addresses.add(address)


async def _weigh_home(connection: Connection) -> list[Row]:
    """Fetch the home page and what it links to, cold, as sent."""
    home = (await connection.expect(200, "GET", "/")).body
    parts = _Parts()
    parts.feed(_unpack(home).decode())
    scripts_bytes, all_bytes = 0, len(home)
    for address in parts.addresses:
        path = urlsplit(address).path
        size = len((await connection.expect(200, "GET", path)).body)
        all_bytes += size
        scripts_bytes += size if path.endswith(".js") else 0
    weights = {
        "home page, HTML as sent": (len(home) / KILOBYTE, "kB"),
        "home page, scripts as sent": (scripts_bytes / KILOBYTE, "kB"),
        "home page, everything as sent": (all_bytes / KILOBYTE, "kB"),
        "home page, requests": (1.0 + len(parts.addresses), ""),
    }
    return [Row(figure=figure, value=value, unit=unit) for figure, (value, unit) in weights.items()]


def _unpack(body: bytes) -> bytes:
    return gzip.decompress(body) if body.startswith(b"\x1f\x8b") else body
