"""Vocabularies of GGUF files give the ids that the models' own libraries give."""

import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from miner.errors import ModelFormatError, UnsupportedModelError
from miner.models.gguf import GgufFile
from miner.models.llama import LlamaShape, end_tokens
from miner.models.tokenizer_files import build_tokenizer_files
from tests.tiny_model import byte_characters

VECTORS = json.loads(Path("tests/vectors/tokenizers.json").read_text(encoding="ascii"))
BYTES = byte_characters()
SHAPE = LlamaShape(
    architecture="llama",
    layers=1,
    hidden=64,
    feed_forward=64,
    heads=1,
    kv_heads=1,
    head_size=64,
    vocabulary=1,
    context=64,
    rope_base=10_000.0,
    rope_divisor=1.0,
    epsilon=1e-5,
    has_head_norms=False,
)
CONTROL, USER_DEFINED, BYTE = 3, 4, 6


def gguf(**metadata) -> GgufFile:
    known = {f"tokenizer.ggml.{name}": value for name, value in metadata.items()}
    return GgufFile(metadata={"tokenizer.chat_template": "-", **known}, tensors={})


def byte_level(name: str, *added: tuple[str, int]) -> GgufFile:
    tokens = list(BYTES)
    merges = VECTORS["byte_level"][name]["merges"]
    pairs = []
    for left, right in merges:
        pairs.append(f"{tokens[left]} {tokens[right]}")
        tokens.append(tokens[left] + tokens[right])
    types = [1] * len(tokens) + [kind for _, kind in added]
    tokens += [token for token, _ in added]
    return gguf(model="gpt2", pre=name, tokens=tokens, token_type=types, merges=pairs)


def sentencepiece(**changes) -> GgufFile:
    stored = VECTORS["sentencepiece"]
    given = {"tokens": stored["tokens"], "scores": stored["scores"], "token_type": stored["types"]}
    return gguf(**{"model": "llama", **given, **changes})


def build(file: GgufFile) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(json.dumps(build_tokenizer_files(file, SHAPE)[0]))


def ids(tokenizer: tokenizers.Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


@pytest.fixture(scope="module")
def pieces():
    return build(sentencepiece())


@pytest.mark.parametrize("name", VECTORS["byte_level"])
def test_byte_level_vocabularies_give_the_ids_of_tiktoken(name):
    tokenizer = build(byte_level(name))
    for text, expected in zip(VECTORS["texts"], VECTORS["byte_level"][name]["ids"], strict=True):
        assert ids(tokenizer, text) == expected, text


def test_sentencepiece_vocabularies_give_the_ids_of_sentencepiece(pieces):
    for text, expected in zip(VECTORS["texts"], VECTORS["sentencepiece"]["ids"], strict=True):
        assert ids(pieces, text) == expected, text


@given(text=st.text().filter(lambda text: "\u2581" not in text))
def test_every_text_comes_back_from_its_pieces(pieces, text):
    assert pieces.decode(ids(pieces, text)) == text


@pytest.mark.parametrize("text", ["<s>", "</s>", "<unk>", "<0x41>", "a<s>b"])
def test_no_text_merges_into_a_control_token(text):
    stored = VECTORS["sentencepiece"]
    parts = ["<s", "s>", "<0x4", "1>", "</s", "<unk", "<", ">", "x41>", "<0"]
    missing = [part for part in parts if part not in stored["tokens"]]
    tokenizer = build(
        sentencepiece(
            tokens=stored["tokens"] + missing,
            scores=stored["scores"] + [-1.0] * len(missing),
            token_type=stored["types"] + [1] * len(missing),
        )
    )
    tokenizer.encode_special_tokens = True
    kinds = stored["types"] + [1] * len(missing)
    assert {kinds[token] for token in ids(tokenizer, text)} <= {1, BYTE}
    assert tokenizer.decode(ids(tokenizer, text)) == text


def test_a_vocabulary_may_do_without_the_space_in_front(pieces):
    plain = build(sentencepiece(add_space_prefix=False))
    assert ids(plain, " of the") == ids(pieces, "of the")
    assert plain.decode(ids(plain, " of the")) == " of the"


def test_control_tokens_are_special_and_those_of_users_are_not():
    file = byte_level("qwen2", ("<|im_end|>", CONTROL), ("<think>", USER_DEFINED), ("[PAD]", 5))
    tokenizer = build(file)
    added = tokenizer.get_added_tokens_decoder()
    assert {token.content: token.special for token in added.values()} == {
        "<|im_end|>": True,
        "<think>": False,
    }
    assert len(ids(tokenizer, "<think>")) == len(ids(tokenizer, "<|im_end|>")) == 1
    assert len(ids(tokenizer, "[PAD]")) > 1


def test_answers_end_at_the_end_token_and_at_every_end_of_a_turn():
    added = [("<|end_of_text|>", CONTROL), ("<|eot_id|>", CONTROL), ("<|im_end|>", USER_DEFINED)]
    file = byte_level("llama-bpe", *added)
    first = len(file.metadata["tokenizer.ggml.tokens"]) - len(added)
    file.metadata["tokenizer.ggml.eos_token_id"] = first
    assert end_tokens(file) == [first, first + 1]
    file.metadata["tokenizer.ggml.eot_token_id"] = 7
    assert end_tokens(file) == [first, 7, first + 1]


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: sentencepiece(model="bert"), UnsupportedModelError, "'bert'"),
        (lambda: byte_level("qwen2", ("a", 1)), ModelFormatError, "occur twice"),
        (lambda: gguf(**{**plain("qwen2"), "pre": "falcon"}), UnsupportedModelError, "falcon.*tek"),
        (lambda: gguf(**{**plain("qwen2"), "pre": "default"}), UnsupportedModelError, "newer file"),
        (lambda: gguf(**{**plain("qwen2"), "merges": ["zz y"]}), ModelFormatError, "two parts"),
        (lambda: sentencepiece(scores=[0.0]), ModelFormatError, "scores are missing"),
        (lambda: without_bytes(), UnsupportedModelError, "every byte"),
        (lambda: long_piece(), ModelFormatError, "more than 256 characters"),
        (lambda: sentencepiece(remove_extra_whitespaces=True), UnsupportedModelError, "removes"),
        (lambda: sentencepiece(bos_token_id=1 << 20), ModelFormatError, "outside the vocabulary"),
    ],
)
def test_a_vocabulary_that_is_not_converted_says_why(make, error, said):
    with pytest.raises(error, match=said):
        build(make())


def plain(name: str) -> dict[str, object]:
    prefix = "tokenizer.ggml."
    metadata = byte_level(name).metadata
    return {k.removeprefix(prefix): v for k, v in metadata.items() if k.startswith(prefix)}


def without_bytes() -> GgufFile:
    tokens = [token.replace("<0x00>", "<zero>") for token in VECTORS["sentencepiece"]["tokens"]]
    return sentencepiece(tokens=tokens)


def long_piece() -> GgufFile:
    tokens = [*VECTORS["sentencepiece"]["tokens"][:-1], "a" * 257]
    return sentencepiece(tokens=tokens)
