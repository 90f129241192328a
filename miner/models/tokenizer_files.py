"""tokenizer.json and tokenizer_config.json from the vocabulary of a GGUF.

Written as plain JSON rather than by the tokenizers library, whose spelling of the same content
changes between versions and with it the model's digest. Two families: byte-level BPE, whose
splitter GGUF names, and SentencePiece BPE, whose scores say what merges first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from miner.errors import ModelFormatError, UnsupportedModelError
from miner.models.gguf import GgufFile
from miner.models.llama import CONTROL, LlamaShape
from miner.models.sentencepiece import build_sentencepiece
from miner.models.splitters import SPLITTERS, Splitter
from miner.models.vocabulary import USER_DEFINED, Vocabulary, read_vocabulary

BYTE_LEVEL: Final = "gpt2"
SENTENCEPIECE: Final = "llama"


def build_tokenizer_files(
    gguf: GgufFile, shape: LlamaShape, *, chat_template: str | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The contents of tokenizer.json and tokenizer_config.json.

    Raises:
        ModelFormatError: the vocabulary is missing or contradicts itself.
        UnsupportedModelError: a family or splitter that is not known, or no chat template.
    """
    kind = gguf.value("tokenizer.ggml.model", str)
    vocabulary = read_vocabulary(gguf)
    config = _tokenizer_config(gguf, vocabulary, shape, chat_template)
    if kind == SENTENCEPIECE:
        return _tokenizer(vocabulary, build_sentencepiece(gguf, vocabulary)), config
    if kind != BYTE_LEVEL:
        raise UnsupportedModelError(
            f"vocabularies of kind {kind!r:.40} are not converted, only {BYTE_LEVEL!r} and "
            f"{SENTENCEPIECE!r}"
        )
    return _tokenizer(vocabulary, _byte_level(gguf, vocabulary, _splitter(gguf))), config


def _splitter(gguf: GgufFile) -> Splitter:
    name = gguf.optional("tokenizer.ggml.pre", str, "default")
    if name == "default":
        raise UnsupportedModelError(
            "the file does not say how its tokenizer splits text (tokenizer.ggml.pre), so its "
            "answers would be bad everywhere: get a newer file of this model"
        )
    if name not in SPLITTERS:
        raise UnsupportedModelError(
            f"a tokenizer that splits text by {name!r:.40} is not converted, only by "
            f"{', '.join(sorted(SPLITTERS))}"
        )
    return SPLITTERS[name]


def _byte_level(gguf: GgufFile, vocabulary: Vocabulary, splitter: Splitter) -> dict[str, Any]:
    merges = [merge.split(" ") for merge in gguf.items("tokenizer.ggml.merges", str)]
    numbers = vocabulary.numbers
    if any(len(pair) != 2 or not {*pair, "".join(pair)} <= numbers.keys() for pair in merges):
        raise ModelFormatError("GGUF vocabulary: a merge is not two parts of a token")
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {
        "normalizer": splitter.normalizer,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": splitter.steps},
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
            "ignore_merges": splitter.ignores_merges,
            "vocab": numbers,
            "merges": merges,
        },
    }


def _tokenizer(vocabulary: Vocabulary, parts: Mapping[str, Any]) -> dict[str, Any]:
    added = [
        {
            "id": number,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kind != USER_DEFINED,
        }
        for number, (token, kind) in enumerate(
            zip(vocabulary.tokens, vocabulary.types, strict=True)
        )
        if token and kind in {CONTROL, USER_DEFINED}
    ]
    head = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added}
    return {**head, **parts}


def _tokenizer_config(
    gguf: GgufFile, vocabulary: Vocabulary, shape: LlamaShape, chat_template: str | None
) -> dict[str, Any]:
    if chat_template is None and "tokenizer.chat_template" not in gguf.metadata:
        raise UnsupportedModelError(
            "the file has no chat template, so it may be no model for conversations; if it is "
            "one, give the template of its makers with --chat-template FILE"
        )
    content = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": gguf.optional("tokenizer.ggml.add_bos_token", bool, default=False),
        "bos_token": _token(gguf, vocabulary, "bos"),
        "eos_token": _token(gguf, vocabulary, "eos"),
        "pad_token": _token(gguf, vocabulary, "padding"),
        "unk_token": _token(gguf, vocabulary, "unknown"),
        "clean_up_tokenization_spaces": False,
        "model_max_length": shape.context,
        "chat_template": chat_template or gguf.value("tokenizer.chat_template", str),
    }
    return {key: value for key, value in content.items() if value is not None}


def _token(gguf: GgufFile, vocabulary: Vocabulary, name: str) -> str | None:
    key = f"tokenizer.ggml.{name}_token_id"
    if key not in gguf.metadata:
        return None
    number = gguf.value(key, int)
    if not 0 <= number < len(vocabulary.tokens):
        raise ModelFormatError(f"GGUF {name} token {number} is outside the vocabulary")
    return vocabulary.tokens[number]
