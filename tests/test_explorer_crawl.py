"""Every page of the explorer in Chromium, in each state, theme and size, with and without scripts.

Nothing in the console (violations of the content security policy are reported there), no request
to anybody else, nothing wider than the screen, and nothing that axe-core finds fault with.
"""

import itertools
from contextlib import ExitStack

import pytest
from playwright.sync_api import Page

from tests.axe import OF_LOOKS, find_faults
from tests.browser import Server, new_context, watch
from tests.explorer_stage import NO_PAGES, SCENES, choose_visits
from tests.fake_views import FakeViews, build_app

PAPER = {"light": "rgb(247, 245, 240)", "dark": "rgb(20, 23, 26)"}
MEASURE = """() => ({
  overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  background: getComputedStyle(document.documentElement).backgroundColor,
})"""
PHONE, DESK = 320, 1280
BETWEEN = (737, 768, 1024)
"""Widths at which tables are still tables, but have less room."""


class Stage:
    """A server for each scene, and what to visit there."""

    def __init__(self, stack: ExitStack) -> None:
        self.urls, self.visits, self.routes = {}, [], set()
        seen: set[tuple] = set()
        for scene in SCENES:
            self.urls[scene.name] = stack.enter_context(Server(build_app(scene.build()))).url
            visits, routes = choose_visits(scene, seen)
            self.visits += visits
            self.routes |= routes


@pytest.fixture(scope="module", name="stage")
def build_stage():
    with ExitStack() as stack:
        yield Stage(stack)


def test_the_crawl_leaves_no_route_out(stage):
    every = {route.path for route in build_app(FakeViews()).routes}
    assert every - stage.routes == NO_PAGES.keys()


def look_at(page: Page, *, thorough: bool) -> list[str]:
    """Return what is wrong with an open page in both themes, on a phone, a desk and between.

    Rules that depend on the markup alone are checked once; those of looks, unless `thorough`, too.
    """
    faults = []
    for width in BETWEEN:
        page.set_viewport_size({"width": width, "height": 800})
        if overflow := page.evaluate(MEASURE)["overflow"]:
            faults.append(f"{width}: {overflow} px too wide")
    for scheme, width in itertools.product(PAPER, (PHONE, DESK)):
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": width, "height": 800})
        measured = page.evaluate(MEASURE)
        if measured != {"overflow": 0, "background": PAPER[scheme]}:
            faults.append(f"{scheme} {width}: {measured}")
        if (scheme, width) == ("light", PHONE):
            faults.append(find_faults(page))
        elif thorough:
            faults.append(find_faults(page, *OF_LOOKS))
    return [fault for fault in faults if fault]


@pytest.mark.parametrize("with_scripts", [True, False], ids=["scripts", "no scripts"])
def test_every_page_fits_is_accessible_and_complains_of_nothing(browser, stage, with_scripts):
    context = new_context(browser)
    page = context.new_page()
    devtools = context.new_cdp_session(page)
    problems = watch(page, *stage.urls.values())
    faults: dict[str, list[str]] = {}
    for visit in stage.visits:
        devtools.send("Emulation.setScriptExecutionDisabled", {"value": not with_scripts})
        answer = page.goto(stage.urls[visit.scene.name] + visit.address, wait_until="load")
        assert answer.status == visit.status, visit
        assert page.locator("#theme button").count() == int(with_scripts), visit
        devtools.send("Emulation.setScriptExecutionDisabled", {"value": False})  # axe is one
        found = look_at(page, thorough=with_scripts) + problems
        if found:
            faults[f"{visit.scene.name} {visit.address}"] = found
        problems.clear()
    context.close()
    assert faults == {}, "\n".join(itertools.chain(*faults.values()))
