"""tokenizer.json and tokenizer_config.json from a GGUF's byte-level BPE vocabulary.

Written as plain JSON rather than by the tokenizers library, whose spelling of the same content
changes between versions and with it the model's digest.
"""

from __future__ import annotations

from typing import Any, Final

from miner.errors import ModelFormatError, UnsupportedModelError
from miner.models.gguf import GgufFile

CONTROL: Final = 3
"""GGUF token type of tokens that text never becomes by itself."""

SPLITTERS: Final = {
    "smollm": [
        {"type": "Digits", "individual_digits": True},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    ],
}
"""How text is cut before merging, by the GGUF's name for it."""


def build_tokenizer_files(gguf: GgufFile) -> tuple[dict[str, Any], dict[str, Any]]:
    """The contents of tokenizer.json and tokenizer_config.json.

    Raises:
        ModelFormatError: the vocabulary is missing or contradicts itself.
        UnsupportedModelError: not a byte-level BPE vocabulary with a known splitter.
    """
    kind = gguf.value("tokenizer.ggml.model", str)
    splitter = gguf.value("tokenizer.ggml.pre", str)
    if kind != "gpt2" or splitter not in SPLITTERS:
        raise UnsupportedModelError(f"tokenizer {kind!r} with splitter {splitter!r} is unknown")
    tokens = gguf.items("tokenizer.ggml.tokens", str)
    types = gguf.items("tokenizer.ggml.token_type", int)
    vocabulary = {token: number for number, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens) or len(types) != len(tokens):
        raise ModelFormatError("GGUF vocabulary: tokens occur twice, or types are missing")
    merges = [merge.split(" ") for merge in gguf.items("tokenizer.ggml.merges", str)]
    if any(len(pair) != 2 or "".join(pair) not in vocabulary for pair in merges):
        raise ModelFormatError("GGUF vocabulary: a merge is not two parts of a token")
    return (
        _tokenizer(vocabulary, types, merges, splitter),
        _tokenizer_config(gguf, tokens),
    )


def _tokenizer(
    vocabulary: dict[str, int], types: list[int], merges: list[list[str]], splitter: str
) -> dict[str, Any]:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    added = [
        {
            "id": number,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for (token, number), kind in zip(vocabulary.items(), types, strict=True)
        if kind == CONTROL
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": SPLITTERS[splitter]},
        "post_processor": None,
        "decoder": byte_level | {"use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": merges,
        },
    }


def _tokenizer_config(gguf: GgufFile, tokens: list[str]) -> dict[str, Any]:
    def token(name: str) -> str:
        number = gguf.value(f"tokenizer.ggml.{name}_token_id", int)
        if not 0 <= number < len(tokens):
            raise ModelFormatError(f"GGUF {name} token {number} is outside the vocabulary")
        return tokens[number]

    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": gguf.value("tokenizer.ggml.add_bos_token", bool),
        "bos_token": token("bos"),
        "eos_token": token("eos"),
        "pad_token": token("padding"),
        "unk_token": token("unknown"),
        "clean_up_tokenization_spaces": False,
        "model_max_length": gguf.value("llama.context_length", int),
        "chat_template": gguf.value("tokenizer.chat_template", str),
    }
