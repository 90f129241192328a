"""Reads pages as a crawler does: their markup, their words, their links."""

import re
from html.parser import HTMLParser
from urllib.parse import urljoin, urlsplit

from httpx2 import Response
from starlette.testclient import TestClient

OF_THE_API = re.compile(
    r"/explorer/(blocks|receipts|stats)|/v1/(genesis|authorities)|/v1/receipts/rcp_[a-z2-7]{26}(/audits|/proof)?"
    r"|/v1/accounts/[^/?]+/(audits|statement(\.csv|/proof)?)"
    r"|/v1/jobs(/job_[0-9A-Z]{26})?(\?status=[a-z]+)?|/docs"
)
"""Addresses that pages name and another face answers."""


class Skeleton(HTMLParser):
    """The markup of a page without its text: what hostile names must never change."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.links: list[str] = []
        self.words: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, tuple(name for name, _ in attrs)))
        self.links += [value for name, value in attrs if name in {"href", "action", "src"}]
        self.links += [value for name, value in attrs if name in {"hx-get", "hx-sse:connect"}]

    def handle_endtag(self, tag):
        self.tags.append(("/" + tag, ()))

    def handle_data(self, data):
        self.words.append(data)


def text_of(response) -> str:
    return re.sub(r"\s+", " ", "".join(Skeleton(response.text).words))


def walk(
    client: TestClient, prefix: str, start: list[str], *, with_api: bool = False
) -> dict[str, Response | None]:
    """Follow every link; return what each address answered, below the prefix.

    Streams, and the API's addresses without `with_api`, are named but not asked.
    """
    waiting, seen = [prefix + address for address in start], {}
    while waiting:
        address = waiting.pop(0).partition("#")[0]
        assert address.startswith(prefix + "/"), address
        bare = address.removeprefix(prefix)
        if bare in seen:
            continue
        seen[bare] = None
        if urlsplit(bare).path.endswith("/stream") or (OF_THE_API.fullmatch(bare) and not with_api):
            continue
        response = seen[bare] = client.get(address)
        assert response.status_code in {200, 303, 307} or bare in start, address
        if response.status_code in {303, 307}:
            waiting.append(response.headers["location"])
        elif response.headers["content-type"].startswith("text/html"):
            waiting += [urljoin(address, link) for link in Skeleton(response.text).links]
    return seen


def crawl(client: TestClient, prefix: str, start: list[str], *, with_api: bool = False) -> set[str]:
    """Follow every link; return the paths seen, without the prefix."""
    return {urlsplit(address).path for address in walk(client, prefix, start, with_api=with_api)}
