"""Make tests/vectors/tokenizers.json: small vocabularies, and what other libraries make of texts.

Byte-level BPE for each way of splitting by tiktoken, and SentencePiece BPE by its own library, both
trained on the licence. Not part of the tests' own run:

    python -m venv /tmp/tokenizers
    /tmp/tokenizers/bin/pip install tiktoken sentencepiece
    /tmp/tokenizers/bin/python -m scripts.make_tokenizer_vectors
"""

from __future__ import annotations

import io
import json
import random
import unicodedata
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import sentencepiece  # type: ignore[import-not-found]
import tiktoken  # type: ignore[import-not-found]
from tiktoken._educational import bpe_train  # type: ignore[import-not-found]

ROOT: Final = Path(__file__).parent.parent
OUTPUT: Final = ROOT / "tests" / "vectors" / "tokenizers.json"
REFERENCE: Final = ROOT / "tests" / "vectors" / "smollm2_135m_reference.json"
BYTE_TOKENS: Final = 420
PIECES: Final = 620
RANDOM_TEXTS: Final = 40
ALPHABET: Final = "abcXYZ019 \n\t\r'\u2019.,!<|>_-/éßñ中文字かな한국Привет🦊é　 "
NUMBERS: Final = "\n2024 1999 1000 202 " * 60
"""So that there are tokens of several digits."""
WORDS: Final = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
REST: Final = r"\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER: Final = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
LOWER: Final = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
BEFORE: Final = r"[^\r\n\p{L}\p{N}]?"
PATTERNS: Final = {
    "gpt-2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "llama-bpe": rf"{WORDS}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{REST}",
    "qwen2": rf"{WORDS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{REST}",
    "tekken": rf"{BEFORE}{UPPER}*{LOWER}+|{BEFORE}{UPPER}+{LOWER}*|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{REST}",
}
"""As the makers of these models publish them."""


def main() -> None:
    """Write the vector file."""
    known = json.loads(REFERENCE.read_text(encoding="ascii"))["tokenizations"]
    draw = random.Random(1)  # noqa: S311 - texts, no secrets
    texts = [case["text"] for case in known]
    texts += ["".join(draw.choices(ALPHABET, k=draw.randint(2, 40))) for _ in range(RANDOM_TEXTS)]
    texts.append("in 2024, 20241999 or 1000.1999")
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8") + NUMBERS
    content = {
        "made_by": "scripts/make_tokenizer_vectors.py",
        "reference": f"tiktoken {version('tiktoken')}, sentencepiece {version('sentencepiece')}",
        "texts": texts,
        "byte_level": {
            name: byte_level(name, pattern, licence + "\n".join(texts), texts)
            for name, pattern in PATTERNS.items()
        },
        "sentencepiece": pieces(licence.splitlines() + texts, texts),
    }
    OUTPUT.write_text(json.dumps(content) + "\n", encoding="ascii")


def byte_level(name: str, pattern: str, training: str, texts: list[str]) -> dict[str, Any]:
    """Merges as pairs of token ids, the first of which is id 256; and the ids of each text."""
    ranks: dict[bytes, int] = bpe_train(training, BYTE_TOKENS, pattern, visualise=None)
    encoding = tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    merges = [split(token, rank, ranks) for token, rank in ranks.items() if len(token) > 1]
    normal = [unicodedata.normalize("NFC", t) if name == "qwen2" else t for t in texts]
    return {"merges": merges, "ids": [encoding.encode_ordinary(text) for text in normal]}


def split(token: bytes, rank: int, ranks: dict[bytes, int]) -> list[int]:
    """The two tokens that became this one: what is left if only earlier merges are done."""
    parts = [token[at : at + 1] for at in range(len(token))]
    while len(parts) > 2:
        joint = [ranks.get(parts[at] + parts[at + 1], rank) for at in range(len(parts) - 1)]
        at = joint.index(min(joint))
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return [ranks[part] for part in parts]


def pieces(lines: list[str], texts: list[str]) -> dict[str, Any]:
    """Tokens with scores and GGUF's token types, and the ids of each text."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line for line in lines if line),
        model_writer=model,
        model_type="bpe",
        vocab_size=PIECES,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        minloglevel=2,
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    numbers = range(processor.vocab_size())
    kinds = [
        (processor.is_unknown, 2),
        (processor.is_control, 3),
        (processor.is_byte, 6),
        (lambda _: True, 1),
    ]
    return {
        "tokens": [processor.id_to_piece(number) for number in numbers],
        "scores": [processor.get_score(number) for number in numbers],
        "types": [next(kind for test, kind in kinds if test(number)) for number in numbers],
        "ids": [processor.encode(text) for text in texts],
    }


if __name__ == "__main__":
    main()
