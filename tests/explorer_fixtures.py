"""What tests of the explorer share: its pages without a socket, and a browser."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser
from starlette.testclient import TestClient

from tests.browser import launch_browser
from tests.explorer_addresses import build_busy_views
from tests.fake_views import FakeViews, build_app


@pytest.fixture
def views() -> FakeViews:
    """Something on every page; modules that need another chain have `views` of their own."""
    return build_busy_views()


@pytest.fixture
def client(views: FakeViews) -> Iterator[TestClient]:
    """Asks for the pages of `views`."""
    with TestClient(build_app(views), follow_redirects=False) as client:
        yield client


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A module's own: while one is open, no event loop can be started in its thread."""
    with launch_browser() as browser:
        yield browser
