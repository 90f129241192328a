"""docs/explorer.png: the explorer in one picture, of a ledger made for it.

    make picture

Where the text stands depends on the fonts that are installed, and every age on the clock: so
nothing compares two pictures, a person looks at them.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from node.clock import read_clock_ms
from node.datadir import DataDirectory
from scripts.bench_figures.node_process import ROOT, run_node
from scripts.generate import Order, generate_months

FILE = ROOT / "docs" / "explorer.png"
RECEIPTS = 12_000
DAYS = 3
WIDTH, HEIGHT = 1200, 1000
MAX_BYTES = 150_000
_BROWSER = ("--no-sandbox", "--headless", "--disable-gpu", "--hide-scrollbars")


def main(arguments: list[str] | None = None) -> int:
    """Run the command. Returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--path", default="/", help="which page")
    parser.add_argument("--output", type=Path, default=FILE)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        data = DataDirectory(Path(folder) / "data")
        order = Order(seed=1, receipts=RECEIPTS, days=DAYS, end_ms=read_clock_ms())
        generate_months(data, order, processes=os.cpu_count() or 1)
        with run_node(data) as node, _open(f"http://127.0.0.1:{node.port}{options.path}") as page:
            page.screenshot(path=options.output)
    size = options.output.stat().st_size
    print(f"{options.output}: {size:,} bytes")
    return 0 if size <= MAX_BYTES else 1


@contextmanager
def _open(address: str) -> Iterator[Page]:
    chromium = os.environ.get("CHROMIUM", "/usr/bin/chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(_BROWSER))
        page = browser.new_page(
            viewport={"width": WIDTH, "height": HEIGHT},
            color_scheme="light",
            reduced_motion="reduce",
        )
        page.goto(address, wait_until="load")
        yield page
        browser.close()


if __name__ == "__main__":
    raise SystemExit(main())
