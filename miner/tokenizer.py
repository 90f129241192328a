"""Text to token ids and back: a tokenizer.json and the chat template beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import tokenizers

from miner.errors import ModelFormatError
from miner.prompt import PromptEncoder
from miner.template import ChatTemplate, Message, read_template

__all__ = ["ChatTokenizer", "Message", "TextStream", "read_json"]

MAX_CONFIG_BYTES: Final = 64 << 20
REPLACEMENT: Final = "\ufffd"
NUL: Final = "\0"


class ChatTokenizer:
    """The tokenizer of one model directory."""

    def __init__(self, directory: Path) -> None:
        """Read the files.

        Raises:
            ModelFormatError: a file is missing or damaged.
            UnsupportedModelError: there is no chat template.
        """
        config = read_json(directory / "tokenizer_config.json")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
        except Exception as error:  # the library raises bare Exception
            raise ModelFormatError(f"{directory / 'tokenizer.json'}: {error}") from error
        special = {
            key: _token_text(config.get(key)) for key in ("bos_token", "eos_token", "pad_token")
        }
        self._template = ChatTemplate(read_template(directory, config), special)
        self._prompts = PromptEncoder(self._tokenizer, self._template)

    @property
    def vocabulary(self) -> int:
        """Number of token ids, special ones included."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def render(self, messages: Sequence[Message]) -> str:
        """The conversation as the model was trained to see it, the answer's opening last.

        Raises:
            JobError: the template refuses this conversation.
        """
        return self._template.render(messages)

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of the rendered conversation; contents are text, whatever they look like.

        Raises:
            JobError: the template refuses this conversation, or makes structure of its contents.
        """
        return self._prompts.encode(messages)

    def encode(self, text: str) -> list[int]:
        """Token ids of text, in which control tokens count; nothing is added to it."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of token ids, without special tokens; U+FFFD is for NUL, which no result holds."""
        text: str = self._tokenizer.decode(list(token_ids), skip_special_tokens=True)
        return text.replace(NUL, REPLACEMENT)


class TextStream:
    """Text of a growing list of tokens, in pieces that never cut a character or a stop sequence.

    The pieces joined are the text; it ends before the stop sequence that is complete first.
    """

    def __init__(self, tokenizer: ChatTokenizer, stop: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._stop = [sequence for sequence in stop if sequence]
        self._tail: list[int] = []
        """Tokens since the last point at which the text was whole; few, so decoding is cheap."""
        self._context: list[int] = []
        """Tokens before the tail, so that a leading space is decoded as in the middle of text."""
        self._held = ""
        """Text that may be the start of a stop sequence."""
        self.text = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Add a token; the text that is now certain, often empty."""
        self._tail.append(token)
        before = self._tokenizer.decode(self._context)
        after = self._tokenizer.decode(self._context + self._tail)
        if after.endswith(REPLACEMENT) and len(self._tail) < 8:
            return ""  # likely the first bytes of a character
        self._context, self._tail = self._tail, []
        return self._release(after[len(before) :], final=False)

    def finish(self) -> str:
        """Everything still held back."""
        before = self._tokenizer.decode(self._context)
        after = self._tokenizer.decode(self._context + self._tail)
        self._tail = []
        return self._release(after[len(before) :], final=True)

    def _release(self, fresh: str, *, final: bool) -> str:
        if self.stopped:
            return ""
        text = self._held + fresh
        # The one that is complete first counts, however the text was cut into tokens.
        found = [(at + len(s), at) for s in self._stop if (at := text.find(s)) >= 0]
        self.stopped = bool(found)
        if found:
            keep = min(found)[1]
        elif final:
            keep = len(text)
        else:
            keep = len(text) - self._possible_stop(text)
        self._held = "" if self.stopped else text[keep:]
        self.text += text[:keep]
        return text[:keep]

    def _possible_stop(self, text: str) -> int:
        """Length of the longest end of `text` that begins a stop sequence."""
        longest = max(map(len, self._stop), default=1) - 1
        for size in range(min(longest, len(text)), 0, -1):
            if any(sequence.startswith(text[-size:]) for sequence in self._stop):
                return size
        return 0


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a model directory.

    Raises:
        ModelFormatError: missing, too large, or no JSON object.
    """
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ModelFormatError(f"{path}: larger than {MAX_CONFIG_BYTES} bytes")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFormatError(f"{path}: {error}") from error
    if not isinstance(content, dict):
        raise ModelFormatError(f"{path}: expected a JSON object")
    return content


def _token_text(value: object) -> str:
    """A special token is given as text or as an object with its text under "content"."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else ""
