"""Who may ask a node in dev mode, and what a path with a slash too many gets."""

import asyncio

import pytest
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

from node.assembly import open_node
from node.datadir import create_data_directory
from node.ownname import OwnNameOnly
from tests.builders import CREATED_MS
from tests.node_settings import build_settings


def ask(*hosts: bytes, method: str = "GET", origins: tuple[bytes, ...] = ()) -> int:
    """The status of a request with these headers, from a socket on 127.0.0.1."""
    app = OwnNameOnly(PlainTextResponse("hello"), host="Node.example")
    scope = {
        "type": "http",
        "method": method,
        "path": "/",
        "scheme": "http",
        "query_string": b"",
        "server": ("127.0.0.1", 8141),
        "headers": [
            *((b"host", host) for host in hosts),
            *((b"origin", origin) for origin in origins),
        ],
    }
    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(app(scope, None, send))
    return sent[0]["status"]


@pytest.mark.parametrize(
    "host",
    [
        *(b"localhost", b"localhost:8141", b"LOCALHOST", b"127.0.0.1", b"127.0.0.1:1"),
        *(b"[::1]", b"[::1]:8141", b"node.example", b"NODE.example:80"),
    ],
)
def test_its_own_names_are_answered(host):
    assert ask(host) == 200


@pytest.mark.parametrize(
    "host",
    [
        *(
            b"evil.com",
            b"evil.com:",
            b"evil.com:8141",
            b"localhost.evil.com",
            b"127.0.0.1.evil.com",
        ),
        *(b"", b" ", b":8141", b"localhost:", b"localhost:x", b"localhost:123456", b"[::1", b"::1"),
        *(b"127.0.0.1@evil", b"evil@127.0.0.1", b"127.0.0.1:8141, evil", b"127.0.0.1 evil"),
        *(b"localhost/", b"localhost\n", b"http://localhost", b"localhost?", b"[localhost]"),
        *("löcalhost".encode(), b"\xff", b"localhost\x00", b"local%68ost"),
    ],
)
def test_every_other_name_and_whatever_cannot_be_read_is_refused(host):
    assert ask(host) == 400


def test_no_host_and_two_hosts_are_refused():
    assert ask() == 400
    assert ask(b"localhost", b"evil.com") == 400
    assert ask(b"localhost", b"localhost") == 400


@pytest.mark.parametrize(
    "origin", [b"https://evil.com", b"http://localhost.evil.com:8141", b"null", b"", b"localhost"]
)
def test_a_page_of_another_site_reads_nothing_and_changes_nothing(origin):
    """A browser lets it post without asking first where there is no JSON: to drain, to cancel."""
    assert ask(b"localhost", method="POST", origins=(origin,)) == 403
    assert ask(b"localhost", method="DELETE", origins=(b"http://localhost", origin)) == 403
    assert ask(b"localhost", origins=(origin,)) == 200, "without leave of ours it reads nothing"


@pytest.mark.parametrize("origins", [(), (b"http://localhost:8141",), (b"https://[::1]",)])
def test_our_own_pages_and_programs_may_post(origins):
    assert ask(b"localhost", method="POST", origins=origins) == 200


def test_a_slash_too_many_is_an_unknown_path_and_no_redirect(tmp_path):
    create_data_directory(tmp_path / "data", network="test", name="first", now_ms=CREATED_MS)
    settings = build_settings(data=tmp_path / "data")
    with open_node(settings, stop=lambda: None) as node:
        client = TestClient(node.app, base_url="http://localhost", follow_redirects=False)
        for path in ("/v1/jobs/", "/v1/miners/", "/api/health/", "/explorer/blocks/"):
            answer = client.get(path)
            assert (answer.status_code, answer.json()["error_code"]) == (404, "PATH_NOT_FOUND")
        for path in ("/health/", "/health/ready/", "/blocks/", "/openapi.json/", "/static"):
            answer = client.get(path)
            assert answer.status_code == 404, path
            assert answer.headers["content-type"].startswith("text/html")
            assert "location" not in answer.headers
