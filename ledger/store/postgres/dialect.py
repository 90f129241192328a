"""Statements as PostgreSQL wants them, from what `sessions.py` says how to write."""

from __future__ import annotations

import itertools
import re
from functools import lru_cache

MAX_STATEMENTS = 2_000
"""Kept translations. All statements of this house are constants, or few constants put together."""

_HINT = re.compile(r" INDEXED BY \w+")
_SAME = re.compile(r"\bIS (NOT )?(?=\?)")
_MARK = re.compile(r"\?(\d*)")


@lru_cache(maxsize=MAX_STATEMENTS)
def translate(statement: str) -> bytes:
    """Return a statement in PostgreSQL's words: its planner takes no hints, values have numbers."""
    statement = _HINT.sub("", statement)
    statement = _SAME.sub(lambda m: f"IS {'' if m[1] else 'NOT '}DISTINCT FROM ", statement)
    numbers = itertools.count(1)
    return _MARK.sub(lambda m: f"${m[1] or next(numbers)}", statement).encode()
