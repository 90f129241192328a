"""What the miner and its reference are both asked: conversations, and strings to tokenize."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from miner.tokenizer import Message

ROOT: Final = Path(__file__).parents[2]
ENGLISH: Final = ROOT / "LICENSE"
SEED: Final = 1
RANDOM_STRINGS: Final = 3_000
LINE_STRINGS: Final = 1_500

QUESTIONS: Final = {
    "fact": "What is the capital of France?",
    "list": "List five animals that live in the sea.",
    "story": "Tell me a short story about a lighthouse keeper.",
    "sums": "Compute 12 + 30, then 1999 - 47, then explain why 1999 is prime.",
    "German": "Schreibe drei Sätze über den Herbst in München, bitte mit Umlauten!",
    "French": "Où se trouve la bibliothèque ? Réponds en français, s'il te plaît.",
    "Spanish": "¿Qué tiempo hace mañana en Córdoba? ¡Cuéntame!",
    "Russian": "Почему небо голубое? Ответь коротко.",
    "Chinese": "请用中文介绍一下长城。",
    "Japanese": "日本の首都はどこですか。短く答えてください。",
    "Korean": "한국의 수도는 어디입니까?",
    "Arabic": "ما هي عاصمة مصر؟ أجب بجملة واحدة.",
    "Hindi": "भारत की राजधानी क्या है?",
    "emoji": "Explain these to a child: 🦊 👩‍👩‍👧‍👦 🇩🇪 ❤️‍🔥",
    "Python": "Continue:\n\ndef fibonacci(n: int) -> int:\n    if n < 2:\n        return n\n",
    "C": 'Explain: for (int i = 0; i < n; ++i) { sum += a[i] * b[i]; } printf("%d\\n", sum);',
    "JSON": 'Repeat this JSON: {"key": [1, 2.5, null], "nested": {"ok": true, "s": "\\u00e9"}}',
    "table": "Sort by age:\n\n| name | age |\n|---|---|\n| Ann | 41 |\n| Bob | 7 |\n| Cy | 23 |\n",
    "one letter": "a",
    "spaces": "   \n\n\t  What   is\t\tthis?  \r\n ",
}
LONG: Final = {"1,000 tokens": 4_600, "2,500 tokens": 11_300, "5,000 tokens": 22_600}
"""Characters of English text before the question."""

EDGES: Final = (
    "",
    " ",
    "  two  spaces  ",
    "tab\tand\nnewline\r\n",
    "don't we'll I'VE they're it\u2019s",
    "12345 1,000.50 0x1F 3e-10 1/2 ½ ²³ ٣ ५ 五 Ⅷ ①",
    "a1b22c333d4444",
    "Ünïcödé ß ẞ ﬁ \uff21\uff22",
    "e\u0301 \u00e9 a\u0308\u0323 \u1ea1\u0308",
    "\u1112\u1161\u11ab 한",
    "👩‍👩‍👧‍👦 🇩🇪🇫🇷 🏴\U000e0067\U000e0062\U000e007f 👍🏽 ❤\ufe0f",
    "\u200b\u200d\u2060\ufeff\u00a0\u3000\u2028\u2029\u0085",
    "\x00\x01\x07\x1b\x7f\x80\x9f",
    "\ufffd\ufffe\uffff\U0001ffff\U0010ffff",
    "\u202eright to left\u202c \u0627\u0644\u0639\u0631\u0628\u064a\u0629",
    "<|im_start|>user\nhi<|im_end|>\n",
    "<|endoftext|><|im_start|<|im_end|>|>",
    "<|im_start|><|im_start|> <|im_end|>x<|im_end|>",
    "<file_sep><repo_name><jupyter_code> <gh_stars",
    "a" * 3_000,
    " " * 1_000,
    "\n" * 500,
    "ab " * 700,
    "0123456789" * 100,
    "....!!!???---___***###",
)
ALPHABETS: Final = tuple(
    "".join(chr(code) for code in range(first, last) if unicodedata.category(chr(code)) != "Cs")
    for first, last in (
        (0x20, 0x7F),
        (0x00, 0x100),
        (0x100, 0x250),
        (0x300, 0x370),
        (0x370, 0x530),
        (0x590, 0x700),
        (0x900, 0xE80),
        (0x2000, 0x2C00),
        (0x3000, 0x3400),
        (0x4E00, 0x9FFF),
        (0xAC00, 0xD7A4),
        (0xE000, 0x10000),
        (0x1D400, 0x1D800),
        (0x1F300, 0x1FB00),
        (0x20000, 0x2A000),
    )
)
MIXED: Final = (" ", "  ", "\n", "\t", "\r\n", "'s", "'LL", "1", "22", ".", "<|im_end|>", "\u0301")


def build_conversations() -> dict[str, tuple[Message, ...]]:
    """Conversations by name; more than 20, the longest of several thousand tokens."""
    asked: dict[str, tuple[Message, ...]] = {
        name: (Message(role="user", content=text),) for name, text in QUESTIONS.items()
    }
    english = ENGLISH.read_text(encoding="utf-8") * 2
    for name, characters in LONG.items():
        text = f"{english[:characters]}\n\nWhat is this text about?"
        asked[name] = (Message(role="user", content=text),)
    asked["system prompt"] = (
        Message(role="system", content="Answer in one word."),
        Message(role="user", content="Opposite of hot?"),
    )
    asked["turns"] = (
        Message(role="system", content="You are a terse pirate."),
        Message(role="user", content="Who are you?"),
        Message(role="assistant", content="A pirate, arr."),
        Message(role="user", content="Where is your ship?"),
        Message(role="assistant", content="Sunk."),
        Message(role="user", content="What now?"),
    )
    turns = [
        Message(role=role, content=f"{role} says {number} and {number * number}.")
        for number in range(20)
        for role in ("user", "assistant")
    ]
    asked["many turns"] = (*turns, Message(role="user", content="Which number comes next?"))
    return asked


def build_strings() -> list[str]:
    """Some thousand strings: edge cases, lines of this repository, random Unicode."""
    return [*EDGES, *_lines(), *_random_strings(random.Random(SEED))]  # noqa: S311 - no secret


def _lines() -> list[str]:
    """Lines of text and code, with their ends, and some of them joined to longer ones."""
    paths = [*ROOT.glob("docs/*.md"), *ROOT.glob("miner/*.py"), ROOT / "templates" / "base.html"]
    text = "".join(path.read_text(encoding="utf-8") for path in sorted(paths) if path.exists())
    lines = text.splitlines(keepends=True)
    single = lines[:: max(1, len(lines) // LINE_STRINGS)]
    return [*single, *("".join(lines[at : at + 40]) for at in range(0, len(lines), 400))]


def _random_strings(source: random.Random) -> Iterator[str]:
    for _ in range(RANDOM_STRINGS):
        alphabets = source.sample(ALPHABETS, source.randint(1, 3))
        yield "".join(_random_pieces(source, alphabets))


def _random_pieces(source: random.Random, alphabets: Sequence[str]) -> Iterator[str]:
    for _ in range(source.randint(1, 30)):
        if source.random() < 0.3:
            yield source.choice(MIXED)
        else:
            yield "".join(source.choices(source.choice(alphabets), k=source.randint(1, 8)))
