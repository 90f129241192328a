"""How values read on a page: untrusted text, money, amounts, times, sizes, hashes.

Every function returns plain text; the templates escape it. Times are UTC: the browser turns them
into ages, and a printed page stays true.
"""

from __future__ import annotations

import json
import unicodedata
from datetime import UTC, datetime
from functools import lru_cache

import msgspec

from ledger.jobs import list_served_models
from ledger.transaction import MICROS

MAX_TEXT = 4096
"""Longer untrusted text is folded here, in characters."""
MAX_STACKED_MARKS = 2
"""Combining marks on one character; more would climb over the lines around them."""
MAX_REMEMBERED = 1_024
"""Lists of what miners take, most of which are alike; a page shows up to fifty."""
MAX_TIME_MS = 253_402_300_799_999
"""The last millisecond of the year 9999, after which calendars here end."""

# Characters that draw nothing (or a plain gap) though their category is a letter, mark or symbol:
# Hangul fillers, Khmer inherent vowels, Mongolian and other variation selectors, the grapheme
# joiner, blank Braille. Source: Unicode DerivedCoreProperties, Default_Ignorable_Code_Point.
_INVISIBLE = frozenset(
    "\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0\u180b\u180c\u180d\u180f"
    + "".join(map(chr, [*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)]))
)
# Controls, format (bidi, zero width), surrogates, private use, unassigned, line, paragraph ends.
_HIDDEN_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_MARKS = frozenset({"Mn", "Me"})


def visible(text: str) -> str:
    """Return untrusted text with everything that hides or reorders written as `⟨U+202E⟩`.

    Two names that look alike because of such a character no longer do.
    """
    if text.isascii() and text.isprintable() and len(text) <= MAX_TEXT:
        return text  # nearly all text, and nothing can hide in it
    shown, marks = [], 0
    for character in text[:MAX_TEXT]:
        category = unicodedata.category(character)
        marks = marks + 1 if category in _MARKS else 0
        hidden = (
            category in _HIDDEN_CATEGORIES
            or (category == "Zs" and character != " ")
            or character in _INVISIBLE
            or marks > MAX_STACKED_MARKS
        )
        shown.append(f"⟨U+{ord(character):04X}⟩" if hidden else character)
    folded = len(text) - MAX_TEXT
    return "".join(shown) + (f"… ({folded:,} more characters)" if folded > 0 else "")


def visible_document(value: object) -> str:
    """Return a struct, mapping or array as indented JSON with all its text made visible."""
    text = json.dumps(msgspec.to_builtins(value), indent=2, ensure_ascii=False, sort_keys=True)
    return "\n".join(visible(line) for line in text.split("\n"))


def decimal(micros: int) -> str:
    """Return integer micros as a decimal with at most 6 places: 380 is `0.00038`."""
    whole, rest = divmod(abs(micros), MICROS)
    text = f"{whole:,}.{rest:06d}".rstrip("0").rstrip(".")
    return f"-{text}" if micros < 0 else text


def column(micros: int) -> str:
    """Return integer micros with all 6 places, so that a column of them lines up."""
    whole, rest = divmod(micros, MICROS)
    return f"{whole:,}.{rest:06d}"


def money(micros: int) -> str:
    """Return a price with its word: `0.00038 credits`."""
    return f"{decimal(micros)} {'credit' if micros == MICROS else 'credits'}"


def units(units_micros: int, unit_type: str) -> str:
    """Return an amount with its word: `38 tokens`, `1.5 GPU seconds`."""
    word = "GPU second" if unit_type == "gpu_seconds" else "token"
    return f"{decimal(units_micros)} {word}{'' if units_micros == MICROS else 's'}"


def unit_price(price_micros: int, units_micros: int) -> str | None:
    """Return the price of one unit as a decimal, or None where it has more than 6 places."""
    if units_micros == 0 or price_micros * MICROS % units_micros:
        return None
    return decimal(price_micros * MICROS // units_micros)


def count(number: int, noun: str) -> str:
    """Return `1 block`, `12 blocks`, `no blocks`."""
    return f"{f'{number:,}' if number else 'no'} {noun}{'' if number == 1 else 's'}"


def share(part: int, whole: int) -> str:
    """Return a part of something as `98.7 %`; all of it and nothing of it are said exactly."""
    if whole == 0:
        return "none"
    tenths = part * 1000 // whole
    if 0 < part < whole:
        tenths = min(max(tenths, 1), 999)
    return f"{tenths // 10}.{tenths % 10} %" if tenths % 10 else f"{tenths // 10} %"


def utc(time_ms: int) -> str:
    """Return a time as `2026-07-30 14:03:22`, to be followed by the word UTC."""
    if time_ms > MAX_TIME_MS:
        return f"{time_ms:,} ms after 1970"
    return datetime.fromtimestamp(time_ms // 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")


def iso(time_ms: int) -> str:
    """Return a time for `<time datetime>`, with its milliseconds."""
    if time_ms > MAX_TIME_MS:
        return ""
    moment = datetime.fromtimestamp(time_ms // 1000, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{time_ms % 1000:03d}Z"


def duration(ms: int) -> str:
    """Return a span as `820 ms`, `1.24 s`, `2 min 5 s` or `3 h 20 min`."""
    seconds = ms // 1000
    if ms < 1000:
        return f"{ms} ms"
    if seconds < 60:
        return f"{ms / 1000:.2f}".rstrip("0").rstrip(".") + " s"
    if seconds < 3600:
        return f"{seconds // 60} min" + (f" {seconds % 60} s" if seconds % 60 else "")
    minutes = seconds % 3600 // 60
    return f"{seconds // 3600:,} h" + (f" {minutes} min" if minutes else "")


def span(ms: int) -> str:
    """Return the length of a span of charts, with its article."""
    return {
        900_000: "15 minutes",
        3_600_000: "an hour",
        86_400_000: "a day",
        604_800_000: "a week",
    }[ms]


@lru_cache(maxsize=MAX_REMEMBERED)
def models(capabilities: tuple[str, ...]) -> tuple[str, ...]:
    """Return the models that a miner takes, by name; none if it takes any. Untrusted."""
    return tuple(sorted(list_served_models(capabilities) or ()))


def size(size_bytes: int) -> str:
    """Return `640 bytes`, `1.2 KB` or `3.4 MB` (powers of 1000)."""
    if size_bytes < 1000:
        return count(size_bytes, "byte")
    if size_bytes < 1_000_000:
        return f"{size_bytes / 1000:.1f} KB"
    return f"{size_bytes / 1_000_000:,.1f} MB"


def short(text: str) -> str:
    """Return the two ends of a hash, id or account; text of up to 20 characters stays whole."""
    return text if len(text) <= 20 else f"{text[:10]}…{text[-6:]}"
