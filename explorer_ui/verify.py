"""The page that verifies a proof in the reader's browser, and the two verifiers to take away."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from explorer_ui.offline import build_offline
from explorer_ui.site import Frame, Site
from explorer_ui.sources import Views
from ledger.proof import NOT_PROVED

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "verify_receipt.py"


@dataclass(frozen=True, slots=True, kw_only=True)
class Download:
    """A verifier to keep, in a file of its own."""

    name: str
    """What the browser calls the file."""
    media_type: str
    content: bytes

    @property
    def sha256(self) -> str:
        """Hex digest, to be compared with the one of the same file from elsewhere."""
        return hashlib.sha256(self.content).hexdigest()

    @property
    def tag(self) -> str:
        """Entity tag. Weak: the gzipped bytes share it."""
        return f'W/"{self.sha256}"'


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyPage:
    """What a reader can verify with."""

    offline: Download
    script: Download
    not_proved: tuple[str, ...]


@cache
def _build_page() -> VerifyPage:
    return VerifyPage(
        offline=Download(
            name="aitbc-verifier.html",
            media_type="text/html; charset=utf-8",
            content=build_offline(),
        ),
        script=Download(
            name=SCRIPT.name,
            media_type="text/x-python; charset=utf-8",
            content=SCRIPT.read_bytes(),
        ),
        not_proved=NOT_PROVED,
    )


class Verify:
    """Serves `/verify` and its downloads, which are read and built once, at start-up."""

    def __init__(self, *, site: Site, views: Views) -> None:
        self._site = site
        self._views = views
        self._page = _build_page()

    async def page(self, request: Request) -> Response:
        """Answer `/verify`."""
        head = self._views.head()
        tag = self._site.tag(request, head, self._page.offline.tag, self._page.script.tag)
        if (unchanged := self._site.unchanged(request, tag)) is not None:
            return unchanged
        frame = Frame(title="Verify a proof", section="verify")
        return self._site.page(
            "verify.html", request, frame=frame, page=self._page, head=head, tag=tag
        )

    async def offline(self, request: Request) -> Response:
        """Answer `/verify/offline.html`: saved, never shown from here."""
        return self._download(request, self._page.offline)

    async def script(self, request: Request) -> Response:
        """Answer `/verify/verify_receipt.py`."""
        return self._download(request, self._page.script)

    def _download(self, request: Request, file: Download) -> Response:
        if (unchanged := self._site.unchanged(request, file.tag)) is not None:
            return unchanged
        headers = {"Content-Disposition": f'attachment; filename="{file.name}"'}
        return self._site.answer(request, file.content, file.media_type, file.tag, headers=headers)
