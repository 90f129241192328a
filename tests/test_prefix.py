"""A node under a proxy's path: every page, stream, file and answer of both faces is below it."""

import pytest
from starlette.testclient import TestClient

from ledger.errors import StoreError
from node.assembly import open_node
from node.config import parse_public_url, read_prefix
from node.datadir import create_data_directory
from node.prefix import Prefixed
from tests.builders import CREATED_MS
from tests.crawler import Skeleton
from tests.explorer_addresses import build_busy_views, every_address
from tests.fake_views import build_app
from tests.node_settings import build_settings

PUBLIC = "https://node.example/an/aitbc"
PREFIX = "/an/aitbc"


@pytest.mark.parametrize(
    ("text", "url", "prefix"),
    [
        ("", "", ""),
        ("https://node.example", "https://node.example", ""),
        ("https://node.example/", "https://node.example", ""),
        ("http://127.0.0.1:8001/aitbc/", "http://127.0.0.1:8001/aitbc", "/aitbc"),
        (PUBLIC, PUBLIC, PREFIX),
    ],
)
def test_a_public_address_is_read_with_its_path(text, url, prefix):
    assert parse_public_url(text) == url
    assert read_prefix(url) == prefix


@pytest.mark.parametrize(
    "text",
    [
        *("node.example", "ftp://node.example", "https://", "https://a/b?c=d", "https://a/b#c"),
        *("https://user@a", "https://a//b", "https://a/<b>", "https://a/b c", "javascript:1"),
    ],
)
def test_an_address_with_more_than_a_path_is_refused(text):
    with pytest.raises(StoreError, match="--public-url"):
        parse_public_url(text)


@pytest.mark.parametrize("asked", ["", PREFIX])
def test_every_link_leads_below_the_prefix_whether_the_proxy_takes_it_off_or_not(asked):
    views = build_busy_views()
    app = Prefixed(build_app(views), prefix=PREFIX)
    with TestClient(app, follow_redirects=False) as client:
        for address in every_address(views):
            response = client.get(asked + address)
            assert response.status_code == 200, address
            for link in Skeleton(response.text).links:
                assert link.startswith((PREFIX + "/", "#", "http", "data:")), (address, link)
        assert client.get(asked + "/explorer").headers["location"] == PREFIX + "/"


def test_a_real_node_prints_its_public_address_and_links_below_the_prefix(tmp_path):
    data = create_data_directory(tmp_path / "data", network="n", name="a", now_ms=CREATED_MS)
    settings = build_settings(data=data.root, mode="strict", public_url=PUBLIC)
    with (
        open_node(settings, stop=lambda: None) as node,
        TestClient(node.app, follow_redirects=False, base_url="http://127.0.0.1") as client,
    ):
        assert node.app.direct is None
        home = client.get("/")
        assert f'href="{PREFIX}/blocks"' in home.text
        assert client.get(PREFIX + "/blocks").status_code == 200
        assert f"{PUBLIC}/search?q=" in client.get("/opensearch.xml").text
        assert f"curl -s {PUBLIC}/explorer/stats" in home.text
        stats = client.get(PREFIX + "/explorer/stats")
        assert stats.headers["link"] == f'<{PREFIX}/>; rel="alternate"'
        assert client.get("/nothing").status_code == 404
        assert 'href="openapi.yaml"' in client.get(PREFIX + "/docs").text
        assert client.get(PREFIX + "/openapi.yaml").status_code == 200
