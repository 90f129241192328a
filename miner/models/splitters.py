"""How byte-level BPE cuts text before merging, by the name that GGUF gives it.

Sources: the tokenizer.json of the models that the names come from. Where llama.cpp differs (it
does not normalise for Qwen), the model's own tokenizer counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Splitter:
    """The part of a tokenizer.json before its model."""

    steps: list[dict[str, Any]]
    normalizer: dict[str, Any] | None = None
    ignores_merges: bool = False
    """Whether a piece that is a token as a whole is taken as that token."""


_GPT2: Final = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": True,
}
_BYTES: Final = _GPT2 | {"use_regex": False}


def _split(pattern: str) -> dict[str, Any]:
    return {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }


def _words(digits: str) -> str:
    """Words with one character before them, digits, signs, line ends, spaces."""
    return (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
        + digits
        + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


_LLAMA3: Final = Splitter(steps=[_split(_words(r"\p{N}{1,3}")), _BYTES], ignores_merges=True)
_QWEN2: Final = Splitter(steps=[_split(_words(r"\p{N}")), _BYTES], normalizer={"type": "NFC"})
_UPPER: Final = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER: Final = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN: Final = Splitter(
    steps=[
        _split(
            rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|"
            r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        ),
        _BYTES,
    ],
    ignores_merges=True,
)

SPLITTERS: Final = {
    "gpt-2": Splitter(steps=[_GPT2]),
    "smollm": Splitter(steps=[{"type": "Digits", "individual_digits": True}, _GPT2]),
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "tekken": _TEKKEN,
}
