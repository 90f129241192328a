"""The tokens of a GGUF."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from miner.errors import ModelFormatError
from miner.models.gguf import GgufFile

NORMAL: Final = 1
UNKNOWN: Final = 2
USER_DEFINED: Final = 4
"""GGUF token types; of the others CONTROL matters, in `miner.models.llama`."""
MAX_TOKENS: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """Tokens by id."""

    tokens: list[str]
    types: list[int]
    numbers: dict[str, int]
    """Ids by token."""


def read_vocabulary(gguf: GgufFile) -> Vocabulary:
    """Read the tokens.

    Raises:
        ModelFormatError: they are missing, too many, or contradict each other.
    """
    tokens = gguf.items("tokenizer.ggml.tokens", str)
    types = gguf.items("tokenizer.ggml.token_type", int)
    numbers = {token: number for number, token in enumerate(tokens)}
    if len(numbers) != len(tokens) or len(types) != len(tokens):
        raise ModelFormatError("GGUF vocabulary: tokens occur twice, or types are missing")
    if len(tokens) > MAX_TOKENS:
        raise ModelFormatError(f"GGUF vocabulary: more than {MAX_TOKENS} tokens")
    return Vocabulary(tokens=tokens, types=types, numbers=numbers)
