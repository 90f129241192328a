"""The API document for people: Swagger UI at `/docs`, which calls the node, and ReDoc at `/redoc`.

They are pages of the API, not of the explorer: they show the document that lies beside this module,
call its paths, and stand wherever those do. Addresses in them are relative, so the same bytes work
at the root, under `/api`, and below a proxy's prefix that the node was never told about.

Their files are large and few people ask for them. They are read and compressed when somebody does
for the first time, so a node that nobody asks spends neither start-up time nor memory on them.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import threading
from dataclasses import dataclass
from pathlib import Path
from string import Template

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

FOLDER = Path(__file__).resolve().parent.parent / "static"
FILES = {
    "icon.svg": "image/svg+xml",
    "api/document.js": "text/javascript; charset=utf-8",
    "api/redoc.js": "text/javascript; charset=utf-8",
    "api/swagger.js": "text/javascript; charset=utf-8",
    "api/viewers.css": "text/css; charset=utf-8",
    "vendor/redoc/redoc.standalone.js": "text/javascript; charset=utf-8",
    "vendor/swagger-ui/swagger-ui-bundle.js": "text/javascript; charset=utf-8",
    "vendor/swagger-ui/swagger-ui.css": "text/css; charset=utf-8",
}
"""Media types of the files that the two pages ask for, by path below the static folder."""

IMMUTABLE = "public, max-age=31536000, immutable"

# ReDoc makes two style elements. The first holds the fixed text of a scroll bar. The second is
# empty and is filled through the DOM, which no policy restricts. Their hashes let these two exist,
# and allow no other style that is written in a page.
_REDOC_STYLES = (
    "'sha256-QMIg+bpjm3JdElJ388KYke01izlUW0UoNOeKjpMxdgc=' "
    "'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Viewer:
    """One of the two pages."""

    path: str
    title: str
    styles: tuple[str, ...]
    scripts: tuple[str, ...]
    """Plain scripts, in order, before `module`."""
    module: str
    policy: str
    """What it needs of the Content-Security-Policy beside `_POLICY`."""


VIEWERS = (
    Viewer(
        path="/docs",
        title="Swagger UI",
        styles=("vendor/swagger-ui/swagger-ui.css", "api/viewers.css"),
        scripts=("vendor/swagger-ui/swagger-ui-bundle.js",),
        module="api/swagger.js",
        # Its style sheet draws arrows and locks from data: addresses.
        policy="style-src 'self'; img-src 'self' data:",
    ),
    Viewer(
        path="/redoc",
        title="ReDoc",
        styles=("api/viewers.css",),
        scripts=("vendor/redoc/redoc.standalone.js",),
        module="api/redoc.js",
        # It searches in a worker that it makes of its own text; the worker is held to this policy.
        policy=f"style-src 'self' {_REDOC_STYLES}; img-src 'self' data:; worker-src blob:",
    ),
)

_POLICY = (
    "default-src 'none'; script-src 'self'; connect-src 'self'; form-action 'none'; "
    "base-uri 'none'; frame-ancestors 'none'; "
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """The viewers' files as they are served."""

    name: str
    """Hash of every path and content: part of each address."""
    gzipped: dict[str, bytes]
    template: Template


class Viewers:
    """The two pages and their files."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._release: Release | None = None

    def routes(self, *, home: str) -> list[BaseRoute]:
        """Return the routes; `home` leads from a page to the node's home page."""
        pages: list[BaseRoute] = [self._page(viewer, home) for viewer in VIEWERS]
        return [*pages, Route("/docs/{release}/{name:path}", self._file)]

    def _page(self, viewer: Viewer, home: str) -> Route:
        async def show(_: Request) -> Response:
            release = await self._load()
            headers = {
                "Content-Security-Policy": _POLICY + viewer.policy,
                "X-Content-Type-Options": "nosniff",
                "Referrer-Policy": "same-origin",
                "Cache-Control": "no-cache",
            }
            return Response(_render(release, viewer, home), 200, headers, "text/html")

        return Route(viewer.path, show)

    async def _file(self, request: Request) -> Response:
        release, name = await self._load(), request.path_params["name"]
        body = release.gzipped.get(name)
        if body is None or request.path_params["release"] != release.name:
            return PlainTextResponse("no such file\n", 404)
        headers = {
            "Cache-Control": IMMUTABLE,
            "Vary": "Accept-Encoding",
            "X-Content-Type-Options": "nosniff",
        }
        if "gzip" in request.headers.get("accept-encoding", "").lower():
            headers["Content-Encoding"] = "gzip"
        else:
            body = await asyncio.to_thread(gzip.decompress, body)
        return Response(body, 200, headers, FILES[name])

    async def _load(self) -> Release:
        if self._release is not None:
            return self._release
        return await asyncio.to_thread(self._load_once)

    def _load_once(self) -> Release:
        with self._lock:
            release = self._release or _read_release(self._folder)
            self._release = release
            return release


def _read_release(folder: Path) -> Release:
    digest = hashlib.sha256()
    gzipped: dict[str, bytes] = {}
    for name in FILES:
        plain = (folder / name).read_bytes()
        digest.update(f"{name} {len(plain)}\n".encode() + plain)
        gzipped[name] = gzip.compress(plain, mtime=0)
    template = Template((folder / "api/page.html").read_text(encoding="utf-8"))
    return Release(name=digest.hexdigest()[:12], gzipped=gzipped, template=template)


def _render(release: Release, viewer: Viewer, home: str) -> str:
    def asset(name: str) -> str:
        return f"docs/{release.name}/{name}"

    head = [
        *(f'<link rel="stylesheet" href="{asset(name)}">' for name in viewer.styles),
        *(f'<script defer src="{asset(name)}"></script>' for name in viewer.scripts),
        f'<script type="module" src="{asset(viewer.module)}"></script>',
    ]
    links = [
        f'<a href="{other.path[1:]}"{current}>{other.title}</a>'
        for other in VIEWERS
        for current in (' aria-current="page"' if other is viewer else "",)
    ]
    return release.template.substitute(
        title=viewer.title,
        release=release.name,
        home=home,
        head="\n".join(head),
        links="\n    ".join(links),
    )
