"""The browser's verifier, opened for tests: as it is served, and in the page that works offline.

Both ways its modules stand in `window.modules` by path.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page

from explorer_ui.offline import build_offline
from tests.browser import Server, open_page
from tests.fake_views import FakeViews, build_app

VECTORS = Path(__file__).parent / "vectors"
WAYS = ["served", "offline"]

# Defines window.judge(cases): for each {bundle, genesis, disclosure} as text, or with the bytes of
# the bundle changed at [place, byte], the verdict without its sentences, or null for no bundle.
JUDGE = """(modules) => {
  const { verify } = modules["verify/claims.js"];
  const { parseBundle, parseDisclosure, parseGenesis } = modules["verify/documents.js"];
  const { MalformedError } = modules["verify/encoding.js"];
  const bytes = (text) => new TextEncoder().encode(text);
  const one = ({ bundle, genesis, disclosure = null, change = null }) => {
    const trusted = parseGenesis(bytes(genesis));
    const shown = disclosure === null ? {} : parseDisclosure(bytes(disclosure));
    const data = bytes(bundle);
    if (change !== null) data[change[0]] = change[1];
    try {
      const checks = verify(parseBundle(data), trusted, shown);
      let step;
      do step = checks.next(); while (!step.done);
      const claims = step.value.claims.map(({ name, status }) => ({ name, status }));
      return { ...step.value, claims };
    } catch (error) {
      if (error instanceof MalformedError) return null;
      throw error;
    }
  };
  window.modules = modules;
  window.judge = (cases) => cases.map(one);
}"""
LOAD = """async (names) => {
  const base = new URL(".", document.querySelector("script[type=module]").src);
  const modules = {};
  for (const name of names) modules[`verify/${name}`] = await import(new URL(name, base));
  return modules;
}"""
NAMES = ["claims.js", "documents.js", "encoding.js", "keys.js", "hashing.js", "dom.js", "report.js"]


@contextmanager
def open_modules(browser: Browser, way: str, folder: Path) -> Iterator[Page]:
    """A page in which window.judge and window.modules are the verifier's."""
    if way == "offline":
        file = folder / "verifier.html"
        file.write_bytes(build_offline())
        context = browser.new_context(offline=True)
        page = context.new_page()
        page.goto(file.as_uri())
        page.evaluate(f"({JUDGE})(modules)")
        yield page
        context.close()
    else:
        with (
            Server(build_app(FakeViews())) as server,
            open_page(browser, server, "/verify") as page,
        ):
            page.evaluate(f"async (names) => ({JUDGE})(await ({LOAD})(names))", NAMES)
            yield page


def vector(name: str) -> Any:
    return json.loads((VECTORS / f"{name}.json").read_text(encoding="utf-8"))
