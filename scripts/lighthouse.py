"""Measure one page of each kind with Lighthouse, and print a table of pages and categories.

    make lighthouse                          every kind of page, over a ledger of its own
    make lighthouse ARGS="--only receipts"   those whose address begins like this

A node serves a generated ledger; the kinds of pages are found by following links from the home page
on, so a new page is measured as soon as it is linked. Lighthouse opens each in the browser of the
tests as it opens any page: a phone with a slow processor and a slow line, simulated. A score below
100 is measured again, twice at most, and the best counts: what else this machine does only makes a
page look slower. Exit status 1 if one stays below 100.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx2

from ledger.errors import LedgerError
from node.datadir import DataDirectory
from scripts import generate
from scripts.bench_figures.node_process import ROOT, run_node

FOLDER = ROOT / "build" / "lighthouse"
PROGRAM = FOLDER / "node_modules" / "lighthouse" / "cli" / "index.js"
RECEIPTS = 2_000
DAYS = 60
CATEGORIES = ("performance", "accessibility", "best-practices", "seo")
FULL = 100
MAX_TRIES = 3
LOAD_MS = 10_000
"""How long a page may go on loading. A live one never ends: its stream stays open."""
TIMEOUT_S = 180
MAX_PAGES = 60
FLAGS = "--headless --no-sandbox --disable-gpu --disable-background-networking"
START = ("/", "/search")
"""Where links are followed from; only a form leads to the second."""
FACES = ("v1", "explorer", "docs", "redoc", "static", "_f", "feeds", "openapi.json")
"""First parts of addresses that are no pages of the explorer."""


class LighthouseError(LedgerError):
    """Lighthouse did not run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """What Lighthouse found in one page."""

    points: Mapping[str, int]
    """By category, up to 100."""
    faults: tuple[str, ...]
    """Audits that cost points."""

    @property
    def are_full(self) -> bool:
        """Whether nothing is missing."""
        return all(self.points[category] == FULL for category in CATEGORIES)


def find_pages(client: httpx2.Client) -> Iterator[str]:
    """Yield the address of one page of each kind, in the order of links.

    Two pages are of one kind if their addresses begin alike and are equally long.
    """
    waiting, kinds = list(START), set[tuple[str, int]]()
    while waiting and len(kinds) < MAX_PAGES:
        path = urlsplit(waiting.pop(0)).path
        parts = path.strip("/").split("/")
        kind = (parts[0], len(parts))
        if kind in kinds or parts[0] in FACES or "." in parts[-1]:
            continue
        kinds.add(kind)
        answer = client.get(path, follow_redirects=True)
        if answer.headers.get("content-type", "").startswith("text/html"):
            yield answer.url.path
            waiting += [urljoin(path, link) for link in re.findall(r'href="([^"]+)"', answer.text)]


def measure(address: str) -> Scores:
    """Run Lighthouse once.

    Raises:
        LighthouseError: it did not finish, or the page did not load.
    """
    command = [
        *(str(Path(sys.executable).with_name("node")), str(PROGRAM), address),
        *("--quiet", "--output=json", "--output-path=stdout"),
        *(f"--max-wait-for-load={LOAD_MS}", f"--chrome-flags={FLAGS}"),
    ]
    browser = os.environ.get("CHROMIUM", "/usr/bin/chromium")
    with tempfile.TemporaryDirectory() as home:
        result = subprocess.run(
            command,
            capture_output=True,
            timeout=TIMEOUT_S,
            env={**os.environ, "CHROME_PATH": browser, "HOME": home, "CI": "1"},
        )
    if result.returncode:
        raise LighthouseError(f"{address}: {result.stderr.decode(errors='replace')[-500:]}")
    report = json.loads(result.stdout)
    if "runtimeError" in report:
        raise LighthouseError(f"{address}: {report['runtimeError']['message']}")
    return read_report(report)


def read_report(report: dict[str, Any]) -> Scores:
    """Return the scores of a report, and which of its audits cost points."""
    categories = report["categories"]
    counted = {
        ref["id"] for name in CATEGORIES for ref in categories[name]["auditRefs"] if ref["weight"]
    }
    audits = (report["audits"][name] for name in sorted(counted))
    return Scores(
        points={name: round((categories[name]["score"] or 0) * FULL) for name in CATEGORIES},
        faults=tuple(
            f"{audit['id']} {audit['score']}: {audit.get('displayValue', audit['title'])}"
            for audit in audits
            if audit["score"] is not None and audit["score"] < 1
        ),
    )


def measure_best(address: str) -> Scores:
    """Run Lighthouse until all is full, three times at most; return the best."""
    best = measure(address)
    for _ in range(MAX_TRIES - 1):
        if best.are_full:
            break
        again = measure(address)
        best = max(best, again, key=lambda scores: sum(scores.points.values()))
    return best


def main(arguments: list[str] | None = None) -> int:
    """Run the command. Returns the exit status: 1 if a page has less than 100 in a category."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", metavar="START", help="pages whose address begins like this")
    parser.add_argument("--receipts", type=int, default=RECEIPTS, help="length of the ledger")
    options = parser.parse_args(arguments)
    data = DataDirectory(FOLDER / f"ledger-{options.receipts}")
    order = generate.read_order(data) or generate.Order(
        seed=1, receipts=options.receipts, days=DAYS, end_ms=_find_midnight_ms()
    )
    try:
        generate.generate_months(data, order)
        with run_node(data) as node:
            return print_table(f"http://127.0.0.1:{node.port}", options.only or "")
    except LedgerError as error:
        print(error, file=sys.stderr)
        return 1


def print_table(origin: str, start: str) -> int:
    """Measure the pages whose address begins with `start`; return 1 if one is below 100."""
    with httpx2.Client(base_url=origin, trust_env=False) as client:
        pages = [path for path in find_pages(client) if path.lstrip("/").startswith(start)]
    print(f"{'page':44}" + "".join(f"{category:>16}" for category in CATEGORIES))
    status = 0
    for path in pages:
        scores = measure_best(origin + path)
        shown = path if len(path) <= 42 else path[:41] + "…"
        figures = "".join(f"{scores.points[category]:>16}" for category in CATEGORIES)
        print(f"{shown:44}{figures}", flush=True)
        if not scores.are_full:
            status = 1
            print("".join(f"  {fault}\n" for fault in scores.faults), end="", flush=True)
    return status


def _find_midnight_ms() -> int:
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return int(midnight.timestamp() * 1000)


if __name__ == "__main__":
    raise SystemExit(main())
