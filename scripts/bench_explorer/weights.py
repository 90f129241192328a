"""What a page weighs in a browser that comes for the first time, and says without script."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from dataclasses import dataclass
from html.parser import HTMLParser
from urllib.parse import urlsplit

from scripts.bench_explorer.table import Figure
from scripts.bench_figures.connection import Connection

KILOBYTE = 1000
MAX_HOME_KB, MAX_HOME_REQUESTS, MAX_SCRIPT_KB = 30, 8, 20
LIST_ROWS = 25


class _Parts(HTMLParser):
    """Collects what a browser fetches to show a page, and the rows of its tables."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: set[str] = set()
        self.rows = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        is_part = tag in {"script", "img", "use"} or given.get("rel") in {"stylesheet", "icon"}
        address = given.get("src") or given.get("href") or ""
        if is_part and address and not address.startswith("#"):
            self.addresses.add(address.partition("#")[0])
        self.rows += tag == "tr"


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """What a browser fetches for one page."""

    sent_bytes: int
    """Bodies as they are sent, compressed."""
    requests: int
    script_bytes: int
    """Of these, scripts."""
    rows: int
    """Of tables, in the HTML."""


async def weigh(connection: Connection, path: str) -> Weight:
    """Fetch a page and what it links to, with an empty cache."""
    page = (await connection.expect(200, "GET", path)).body
    parts = _Parts()
    parts.feed(unpack(page).decode())
    sizes: dict[str, int] = {}
    for address in parts.addresses:
        name = urlsplit(address).path
        sizes[name] = len((await connection.expect(200, "GET", name)).body)
    return Weight(
        sent_bytes=len(page) + sum(sizes.values()),
        requests=1 + len(sizes),
        script_bytes=sum(size for name, size in sizes.items() if name.endswith(".js")),
        rows=parts.rows,
    )


async def measure_weights(connection: Connection, pages: Mapping[str, str]) -> list[Figure]:
    """Weigh the home page and ordinary ones, given by name and address."""
    home = await weigh(connection, "/")
    figures = [
        Figure(
            name="home page, everything as sent",
            value=home.sent_bytes / KILOBYTE,
            unit="kB",
            most=MAX_HOME_KB,
        ),
        Figure(name="home page, requests", value=home.requests, unit="", most=MAX_HOME_REQUESTS),
        Figure(
            name="home page, scripts as sent",
            value=home.script_bytes / KILOBYTE,
            unit="kB",
            most=MAX_SCRIPT_KB,
        ),
    ]
    weights = {name: await weigh(connection, address) for name, address in pages.items()}
    heaviest = max(weights, key=lambda name: weights[name].script_bytes)
    figures.append(
        Figure(
            name=f"most script of {len(pages)} ordinary pages, as sent ({heaviest})",
            value=weights[heaviest].script_bytes / KILOBYTE,
            unit="kB",
            most=MAX_SCRIPT_KB,
        )
    )
    heaviest = max(weights, key=lambda name: weights[name].sent_bytes)
    figures.append(
        Figure(
            name=f"most of these, everything as sent ({heaviest})",
            value=weights[heaviest].sent_bytes / KILOBYTE,
            unit="kB",
        )
    )
    figures.append(
        Figure(
            name="receipts in the HTML of a list, without script",
            value=weights["/receipts"].rows - 1,
            unit="",
            least=LIST_ROWS,
        )
    )
    return figures


def unpack(body: bytes) -> bytes:
    """Return a body as it was before it was compressed, if it was."""
    return gzip.decompress(body) if body.startswith(b"\x1f\x8b") else body
