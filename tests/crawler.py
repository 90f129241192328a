"""Reads pages as a crawler does: their markup, their words, their links."""

import re
from html.parser import HTMLParser
from urllib.parse import urljoin, urlsplit

from starlette.testclient import TestClient

OF_THE_API = re.compile(
    r"/explorer/(blocks|receipts|stats)|/v1/(genesis|authorities)|/v1/receipts/rcp_[a-z2-7]{26}(/audits|/proof)?"
    r"|/v1/accounts/[A-Za-z0-9_.:@-]+/(audits|statement(\.csv|/proof)?)"
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


def crawl(client: TestClient, prefix: str, start: list[str], *, with_api: bool = False) -> set[str]:
    """Follow every link; return the paths seen, without the prefix."""
    waiting, seen = [prefix + address for address in start], set()
    while waiting:
        address = waiting.pop()
        address = address.partition("#")[0]
        if address in seen:
            continue
        seen.add(address)
        assert address.startswith(prefix + "/"), address
        bare = address.removeprefix(prefix)
        if urlsplit(bare).path.endswith("/stream") or (OF_THE_API.fullmatch(bare) and not with_api):
            continue
        response = client.get(address)
        assert response.status_code in {200, 303}, address
        if response.status_code == 303:
            waiting.append(response.headers["location"])
        elif response.headers["content-type"].startswith("text/html"):
            waiting += [urljoin(address, link) for link in Skeleton(response.text).links]
    return {urlsplit(address.removeprefix(prefix)).path for address in seen}
