"""The two pages that show the API document: what they allow themselves, and what they cost."""

import re
from html.parser import HTMLParser
from urllib.parse import urljoin

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient

from api import viewers
from api.viewers import FILES, FOLDER, Viewers
from explorer_ui.assets import load_assets
from node.assembly import open_node
from node.datadir import create_data_directory
from tests.api_node import ApiNode
from tests.builders import CREATED_MS
from tests.node_settings import build_settings

PAGES = ["/docs", "/redoc"]
BASES = ["", "/api", "/behind/a proxy", "/behind/a proxy/api"]


class Page(HTMLParser):
    """Every address that a page names, and its inline scripts and styles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.inline: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        named = dict(attrs)
        self.addresses += [named[name] for name in ("href", "src") if name in named]
        if tag == "style" or (tag == "script" and "src" not in named):
            self.inline.append(tag)
        self.inline += [name for name in named if name == "style" or name.startswith("on")]


@pytest.fixture(name="client")
def open_client(tmp_path):
    node = ApiNode(tmp_path)
    app = Starlette(routes=[Mount("/behind/a proxy", node.app()), *node.app().routes])
    with TestClient(app, follow_redirects=False) as client:
        yield client
    node.close()


def policy(response) -> dict[str, list[str]]:
    parts = [part.split() for part in response.headers["content-security-policy"].split(";")]
    return {name: values for name, *values in parts}


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("path", PAGES)
def test_every_address_of_a_page_lies_on_its_own_node_below_its_own_base(client, base, path):
    answer = client.get(base + path)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    page = Page(answer.text)
    assert page.inline == []
    home, *others = sorted({urljoin(str(answer.url), address) for address in page.addresses})
    root = str(client.base_url) + (base.removesuffix("/api") + "/").replace(" ", "%20")
    assert home == root
    assert {f"{root.rstrip('/')}{'/api' if base.endswith('/api') else ''}/openapi.json"} < {*others}
    for address in others:
        assert address.startswith(str(client.base_url) + base.replace(" ", "%20") + "/")
        assert client.get(address).status_code == 200, address


@pytest.mark.parametrize("path", PAGES)
def test_the_policy_names_no_other_origin_and_lets_nothing_written_in_a_page_run(client, path):
    answer = client.get(path)
    rules = policy(answer)
    assert rules.pop("default-src") == ["'none'"]
    assert rules["script-src"] == ["'self'"]
    assert rules["connect-src"] == ["'self'"]
    for name in ("base-uri", "frame-ancestors", "form-action"):
        assert rules.pop(name) == ["'none'"]
    allowed = {value for values in rules.values() for value in values}
    hashes = {value for value in allowed if value.startswith("'sha256-")}
    assert hashes == ({*rules["style-src"]} - {"'self'"} if path == "/redoc" else set())
    assert allowed - hashes <= {"'self'", "data:"} | ({"blob:"} if path == "/redoc" else set())
    assert "data:" not in rules["script-src"] + rules["connect-src"]
    assert rules.get("worker-src", ["blob:"]) == ["blob:"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-cache"


def file_addresses(client) -> list[str]:
    found = {
        address
        for path in PAGES
        for address in re.findall(r"docs/\w{12}/[^\"]+", client.get(path).text)
    }
    return [f"/{address}" for address in sorted(found)]


def test_files_are_kept_for_ever_under_an_address_of_their_contents(client):
    addresses = file_addresses(client)
    prefix = addresses[0][: len("/docs/") + 13]
    assert {address.removeprefix(prefix) for address in addresses} == FILES.keys() - {
        "api/document.js"  # imported by the two modules
    }
    for name, media_type in FILES.items():
        packed = client.get(prefix + name, headers={"accept-encoding": "gzip"})
        plain = client.get(prefix + name, headers={"accept-encoding": "identity"})
        assert (packed.headers["content-encoding"], "content-encoding" in plain.headers) == (
            "gzip",
            False,
        )
        assert packed.content == plain.content == (FOLDER / name).read_bytes()
        for answer in (packed, plain):
            assert answer.headers["content-type"] == media_type
            assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
            assert answer.headers["vary"] == "Accept-Encoding"
            assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "name",
    [
        *("vendor/vendor.toml", "api/page.html", "../api/openapi.yaml", "%2e%2e/pyproject.toml"),
        *("explorer.css", "vendor/redoc/LICENSE", ""),
    ],
)
def test_nothing_but_the_files_of_the_pages_is_given_out(client, name):
    release = file_addresses(client)[0].split("/")[2]
    assert client.get(f"/docs/{release}/icon.svg").status_code == 200
    assert client.get(f"/docs/{release}/{name}").status_code == 404
    assert client.get(f"/docs/{'0' * 12}/icon.svg").status_code == 404


def test_a_changed_file_has_a_new_address(tmp_path):
    for name in [*FILES, "api/page.html"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((FOLDER / name).read_bytes()[:100])

    def read() -> str:
        app = Starlette(routes=Viewers(tmp_path).routes(home="./"))
        return file_addresses(TestClient(app))[0]

    (tmp_path / "api/page.html").write_bytes((FOLDER / "api/page.html").read_bytes())
    before = read()
    assert before == read()
    (tmp_path / "api/redoc.js").write_text("changed")
    assert before != read()


def test_the_files_are_read_once_and_only_when_somebody_asks(tmp_path, monkeypatch):
    read = []
    original = viewers._read_release
    monkeypatch.setattr(viewers, "_read_release", lambda folder: read.append(1) or original(folder))
    node = ApiNode(tmp_path)
    with node.client() as client:
        client.get("/openapi.json")
        assert read == []
        for path in [*PAGES, *PAGES]:
            client.get(path)
            client.get("/api" + path)
        assert read == [1]
    node.close()


def test_the_explorer_keeps_no_copy_of_them():
    names = load_assets().files.keys()
    assert names & FILES.keys() == {"icon.svg"}
    assert not any(name.startswith(("api/", "vendor/redoc", "vendor/swagger")) for name in names)


def test_dev_mode_answers_for_the_viewers_under_its_own_name_only(tmp_path):
    create_data_directory(tmp_path / "data", network="test", name="first", now_ms=CREATED_MS)
    settings = build_settings(data=tmp_path / "data")
    with open_node(settings, stop=lambda: None) as node:
        client = TestClient(node.app, base_url="http://localhost")
        for path in [*PAGES, *file_addresses(client)]:
            for address in (path, "/api" + path):
                assert client.get(address).status_code == 200
                assert client.get(address, headers={"host": "evil.test"}).status_code == 400
