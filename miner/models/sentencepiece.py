"""A SentencePiece BPE vocabulary (Llama 2, Mistral, TinyLlama) as tokenizers-library BPE.

SentencePiece merges the two neighbours whose joint token has the best score; the tokenizers
library wants a list of pairs, first ones first. So each token gives all pairs that make it up, by
falling score. Bytes that no token spells stand as `<0x…>` tokens. Text gets a space in front, and
spaces are `▁`, as the library's own conversion of these models has it.
"""

from __future__ import annotations

from typing import Any, Final

from miner.errors import ModelFormatError, UnsupportedModelError
from miner.models.gguf import GgufFile
from miner.models.vocabulary import NORMAL, UNKNOWN, Vocabulary

SPACE: Final = "\u2581"
MAX_PIECE: Final = 256
"""Characters of one token; all pairs that make it up are tried."""


def build_sentencepiece(gguf: GgufFile, vocabulary: Vocabulary) -> dict[str, Any]:
    """The parts of tokenizer.json from the normaliser on.

    Raises:
        ModelFormatError: scores are missing, or a token is too long.
        UnsupportedModelError: there are no tokens for bytes, or spaces are to be merged.
    """
    missing = [f"<0x{byte:02X}>" for byte in range(256)]
    if not vocabulary.numbers.keys() >= set(missing):
        raise UnsupportedModelError("a SentencePiece vocabulary without a token for every byte")
    if gguf.optional("tokenizer.ggml.remove_extra_whitespaces", bool, default=False):
        raise UnsupportedModelError("a tokenizer that removes white space is not converted")
    unknown = next(
        (t for t, k in zip(vocabulary.tokens, vocabulary.types, strict=True) if k == UNKNOWN), None
    )
    prefixed = gguf.optional("tokenizer.ggml.add_space_prefix", bool, default=True)
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    back = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    decoders = [back, {"type": "ByteFallback"}, {"type": "Fuse"}]
    normalizers = [{"type": "Prepend", "prepend": SPACE}, replace]
    return {
        "normalizer": {"type": "Sequence", "normalizers": normalizers if prefixed else [replace]},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [*decoders, strip] if prefixed else decoders},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": unknown,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocabulary.numbers,
            "merges": _merges(gguf.items("tokenizer.ggml.scores", float), vocabulary),
        },
    }


def _merges(scores: list[float], vocabulary: Vocabulary) -> list[list[str]]:
    """Pairs of tokens that make up a token, best score first.

    Only ordinary tokens take part: no text may merge into a control token.
    """
    if len(scores) != len(vocabulary.tokens):
        raise ModelFormatError("GGUF vocabulary: scores are missing")
    rows = zip(vocabulary.tokens, vocabulary.types, scores, strict=True)
    ordinary = {token: score for token, kind, score in rows if kind == NORMAL}
    if any(len(token) > MAX_PIECE for token in ordinary):
        raise ModelFormatError(f"GGUF vocabulary: a token of more than {MAX_PIECE} characters")
    numbers = vocabulary.numbers
    found: list[tuple[float, int, int, int, int, str, str]] = []
    for token, score in ordinary.items():
        for at in range(1, len(token)):
            left, right = token[:at], token[at:]
            if left in ordinary and right in ordinary:
                sizes = -len(left), -len(right)  # of equal scores the longest left part first
                found.append((-score, *sizes, numbers[token], numbers[left], left, right))
    return [[left, right] for *_, left, right in sorted(found)]
