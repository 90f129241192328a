"""What axe-core finds fault with in an open page.

It is put into the page from outside, which the page's content security policy does not forbid.
"""

import json

from axe_playwright_python.base import AXE_SCRIPT, AxeResults
from playwright.sync_api import Page

OF_LOOKS = ("color-contrast", "target-size", "scrollable-region-focusable", "link-in-text-block")
"""Rules whose verdict depends on theme or width, not on the markup alone."""


def find_faults(page: Page, *rules: str) -> str:
    """Return what a reader with a keyboard, a screen reader or weak eyes would stumble over.

    Args:
        page: loaded.
        rules: those to check; by default all.
    """
    options = {"resultTypes": ["violations"]} | ({"runOnly": list(rules)} if rules else {})
    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE_SCRIPT)
    run = f"axe.run({json.dumps(options)}).then(({{ violations }}) => ({{ violations }}))"
    found = AxeResults(page.evaluate(run))
    return found.generate_report() if found.violations_count else ""
