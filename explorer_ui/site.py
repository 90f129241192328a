"""How a page leaves the node: templates, addresses, headers, entity tags, compression.

Rules of every answer: one address has one representation (nothing branches on a header but the
encoding); a list's entity tag is made of the head and the address, so an unchanged one is answered
304 before any template runs; no inline script or style, and nothing from another origin.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote, urlencode

import jinja2
from starlette.requests import Request
from starlette.responses import Response

from explorer_ui import format as show
from explorer_ui.assets import Assets, load_assets
from ledger.views import HeadView

TEMPLATES = Path(__file__).resolve().parent.parent / "templates"
MIN_GZIP_BYTES = 1000
GZIP_LEVEL = 6
MAX_QUOTED = 4096
"""Parts of addresses that are kept as they are written."""

SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
}
REVALIDATE = "no-cache"
IMMUTABLE = "public, max-age=31536000, immutable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """What the layout around a page needs from it."""

    title: str
    """Trusted text: no name that somebody else chose."""
    section: str = ""
    """The entry of the navigation for this page: `blocks`, `receipts`, `jobs`, `miners`,
    `charts`, `network`, `verify` or none."""
    crumbs: tuple[tuple[str, str], ...] = ()
    """(text, path) of the pages above this one, below the home page."""
    json_path: str | None = None
    """Path of the same data as JSON."""
    api_path: str | None = None
    """Path of the API call for the same, where that is not the JSON itself."""
    csv_path: str | None = None
    """Path of the same data as CSV."""
    feed_path: str | None = None
    """Path of an Atom feed of the same."""
    data_query: Mapping[str, str | int | None] = field(default_factory=dict)
    """Parameters of JSON and CSV, empty ones included."""
    query: str = ""
    """What the search field holds."""
    live: bool = False
    """Whether the page changes by itself and needs htmx."""


# A list names the same accounts, and leads to the same pages, row after row.
_quote = lru_cache(maxsize=MAX_QUOTED)(quote)


class Address:
    """Builds addresses that work below whatever prefix the node is served under."""

    def __init__(self, request: Request, *, origin: str | None = None) -> None:
        """`origin`: scheme, host and prefix, for addresses that work elsewhere too."""
        own = quote(request.scope.get("root_path", "").rstrip("/"))
        self._prefix = own if origin is None else origin

    def __call__(self, path: str, name: str = "", **query: str | int | None) -> str:
        """Return the address of `path` on this node; absent parameters are left out.

        `name` ends the path as one segment, whatever it holds.
        """
        address = self._prefix + _quote(path) + (_quote(name, safe="") if name else "")
        if not query:
            return address
        given = {key: value for key, value in query.items() if value not in (None, "")}
        return address + (f"?{urlencode(given)}" if given else "")


class Site:
    """Everything pages share; made once."""

    def __init__(self, *, release: str, public_url: str = "", assets: Assets | None = None) -> None:
        """`public_url`: where others reach this node; empty if nobody has said."""
        self._public_url = public_url.rstrip("/")
        self.assets = assets or load_assets()
        self._release = release
        self._environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(TEMPLATES),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        self._environment.filters.update(_filters())
        self._build = _hash_templates(release, self.assets.release)

    def tag(self, request: Request, head: HeadView, *more: object) -> str:
        """Return the entity tag of an address at this head.

        The address includes scheme and host, because pages print them; `more` is whatever else the
        page shows that changes without the head. Weak: the gzipped bytes share it.
        """
        state = (self._build, str(request.base_url), str(request.url), head, more)
        return f'W/"{hashlib.sha256(repr(state).encode()).hexdigest()[:32]}"'

    def unchanged(self, request: Request, tag: str, cache: str = REVALIDATE) -> Response | None:
        """Return the 304 answer if the client holds what `tag` names."""
        held = request.headers.get("if-none-match", "")
        bare = {part.strip().removeprefix("W/") for part in held.split(",")}
        if tag.removeprefix("W/") not in bare:
            return None
        headers = {"ETag": tag, "Cache-Control": cache, "Vary": "Accept-Encoding"}
        return Response(status_code=304, headers=SECURITY_HEADERS | headers)

    def render(self, template: str, request: Request, **context: object) -> str:
        """Fill a template.

        In it `url` and `asset` build addresses for this page, `absolute` such that work elsewhere;
        `origin` is what these begin with.
        """
        address = Address(request)

        def asset(name: str) -> str:
            assert name in self.assets.files, f"no static file {name}"
            return address(f"/static/{self.assets.release}/{name}")

        return self._environment.get_template(template).render(
            url=address,
            asset=asset,
            absolute=Address(request, origin=self.origin(request)),
            origin=self.origin(request),
            release=self._release,
            **context,
        )

    def public(self, path: str) -> str | None:
        """Return an address that others reach, None where nobody has said how."""
        return self._public_url + quote(path) if self._public_url else None

    def origin(self, request: Request) -> str:
        """Return scheme, host and prefix of this node as its readers see them."""
        return self._public_url or str(request.base_url).rstrip("/")

    def page(
        self,
        template: str,
        request: Request,
        *,
        frame: Frame,
        page: object,
        head: HeadView | None,
        tag: str | None = None,
        status: int = 200,
    ) -> Response:
        """Answer with a whole page. `head` is None only where it cannot be read."""
        html = self.render(template, request, frame=frame, page=page, head=head)
        return self.answer(request, html.encode(), "text/html; charset=utf-8", tag, status=status)

    def answer(
        self,
        request: Request,
        body: bytes,
        media_type: str,
        tag: str | None,
        *,
        status: int = 200,
        cache: str = REVALIDATE,
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        """Answer with bytes, compressed where that pays and the client can read it."""
        sent = {**SECURITY_HEADERS, "Cache-Control": cache, "Vary": "Accept-Encoding"}
        sent |= {"ETag": tag} if tag else {}
        if len(body) >= MIN_GZIP_BYTES and accepts_gzip(request):
            body = gzip.compress(body, GZIP_LEVEL, mtime=0)
            sent["Content-Encoding"] = "gzip"
        return Response(body, status, sent | dict(headers or {}), media_type)

    def static(self, request: Request) -> Response | None:
        """Answer with a static file of this release, None where there is no such one."""
        if request.path_params["release"] != self.assets.release:
            return None
        asset = self.assets.files.get(request.path_params["name"])
        if asset is None:
            return None
        headers = {
            "Cache-Control": IMMUTABLE,
            "Vary": "Accept-Encoding",
            "X-Content-Type-Options": "nosniff",
        }
        if not accepts_gzip(request):
            return Response(asset.plain, headers=headers, media_type=asset.media_type)
        headers["Content-Encoding"] = "gzip"
        return Response(asset.gzipped, headers=headers, media_type=asset.media_type)


def accepts_gzip(request: Request) -> bool:
    """Tell whether the client can read gzip."""
    return "gzip" in request.headers.get("accept-encoding", "").lower()


def _hash_templates(release: str, assets_release: str) -> str:
    digest = hashlib.sha256(f"{release}\n{assets_release}\n".encode())
    for path in sorted(TEMPLATES.rglob("*.*ml")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _filters() -> dict[str, Callable[..., object]]:
    return {
        "column": show.column,
        "count": show.count,
        "decimal": show.decimal,
        "document": show.visible_document,
        "duration": show.duration,
        "iso": show.iso,
        "models": show.models,
        "money": show.money,
        "share": show.share,
        "short": show.short,
        "size": show.size,
        "span": show.span,
        "thousands": lambda number: f"{number:,}",
        "utc": show.utc,
        "visible": show.visible,
    }
