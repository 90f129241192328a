"""What msgspec says of a value that it refuses, in the words of JSON.

Whoever sends a request need not know Python, nor read a pattern to learn what a name may hold.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

_KINDS: Mapping[str, str] = {
    "array": "an array",
    "bool": "true or false",
    "float": "a number",
    "int": "an integer",
    "null": "null",
    "object": "an object",
    "str": "a string",
}
_NAMED = re.compile(r"`(\w+(?: \| \w+)*)`")
_PATTERN = re.compile(r"Expected `str` matching regex (['\"])(?P<pattern>.*)\1")
_ENUM = re.compile(r"Invalid enum value .*", re.DOTALL)


def reword(
    message: str, *, patterns: Mapping[str, str], choices: Sequence[str] | None = None
) -> str:
    """Return a message as callers read it.

    `patterns`: in words what each pattern asks for. `choices`: what an enumeration may be.
    """
    if match := _PATTERN.fullmatch(message):
        return f"expected {patterns[match['pattern'].replace(_ESCAPED, _PLAIN)]}"
    if choices is not None and _ENUM.fullmatch(message):
        return f"expected one of {', '.join(choices)}"
    return _NAMED.sub(_name_kinds, message[:1].lower() + message[1:])


# A message holds the pattern as Python writes a text.
_ESCAPED, _PLAIN = "\\\\", "\\"


def _name_kinds(match: re.Match[str]) -> str:
    kinds = match[1].split(" | ")
    if not all(kind in _KINDS for kind in kinds):
        return match[0]
    if "float" in kinds:
        kinds = [kind for kind in kinds if kind != "int"]
    if len(kinds) > 1:  # null counts as absent, so nobody has to send it
        kinds = [kind for kind in kinds if kind != "null"]
    return " or ".join(_KINDS[kind] for kind in kinds)
