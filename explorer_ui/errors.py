"""What a page cannot answer, and the page that says so.

Pages raise these; `build_explorer` turns them into answers. Anything else a page raises is our own
bug and belongs to the node's handler, which logs it and shows `build_error_handler`'s page.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date

from starlette.requests import Request

from explorer_ui.explain import MAX_QUERY, Explanation
from ledger.encoding import MAX_INTEGER
from ledger.errors import HistoryMissingError

_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


class PageError(Exception):
    """A request that has no page, with what to tell about it."""

    status = 400
    title = "That address is not quite right"

    def __init__(self, explanation: Explanation) -> None:
        super().__init__(explanation.finding)
        self.explanation = explanation


class NotFoundError(PageError):
    """The address names something that is not here."""

    status = 404
    title = "Not found"


class NotYetError(PageError):
    """The page needs blocks that this node still fetches."""

    status = 503
    title = "Not yet"

    def __init__(self, error: HistoryMissingError) -> None:
        super().__init__(
            Explanation(
                finding="This page needs the whole ledger, and a part of it is not here yet.",
                advice=f"{str(error)[0].upper()}{str(error)[1:]}.",
            )
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorPage:
    """What the error page shows."""

    status: int
    title: str
    explanation: Explanation
    text: str
    """Untrusted: what was asked for, or empty."""


def parse_name(request: Request, parameter: str) -> str:
    """Return a name from the query without white space around it, empty where it is absent.

    Raises:
        PageError: no name here is that long.
    """
    name = request.query_params.get(parameter, "").strip()
    if len(name) > MAX_QUERY:
        raise PageError(
            Explanation(
                finding=f"The {parameter} to look for is longer than {MAX_QUERY} characters.",
                advice="No name on this chain is that long. Shorten it, or leave it out.",
            )
        )
    return name


def parse_day(request: Request, parameter: str) -> date | None:
    """Return a day from the query, None where it is absent or empty.

    Raises:
        PageError: this is no day.
    """
    text = request.query_params.get(parameter, "").strip()
    if not text:
        return None
    try:
        if _DAY.fullmatch(text):
            return date.fromisoformat(text)
    except ValueError:
        pass
    raise PageError(
        Explanation(
            finding=f"In this address “{parameter}” has to be a day, such as 2026-01-31.",
            advice="Days are those of UTC. Leave it out for an open end.",
        )
    )


def parse_position(request: Request, name: str) -> int | None:
    """Return a list position from the query, None where it is absent.

    Raises:
        PageError: not a whole number in range.
    """
    text = request.query_params.get(name)
    if text is None:
        return None
    if text.isascii() and text.isdigit() and len(text) <= 16 and int(text) <= MAX_INTEGER:
        return int(text)
    raise PageError(
        Explanation(
            finding=f"In this address “{name}” has to be a whole number of at most 16 digits.",
            advice="Follow a list's own links, or take the parameter away to begin at its top.",
        )
    )
