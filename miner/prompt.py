"""The token ids of a conversation, in which contents are text and nothing else.

A template writes control tokens, such as `<|im_start|>`, around contents; a tokenizer makes the
same tokens of the same characters wherever they stand, so a user's text could end its own turn
and speak as the system. The rule here: the control tokens of a prompt are exactly those that the
template writes for the same roles around neutral contents. Nothing in a content adds, removes or
moves one; where that cannot be had, the job is refused.

Prompts that keep the rule by themselves are encoded as every other program does it: rendered
whole, encoded whole. Only of the others the contents' control tokens are spelled out as text.
Normative text: docs/sampling.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import Final

import tokenizers

from miner.errors import JobError
from miner.template import ChatTemplate, Message

NEUTRAL: Final = "x"
MARKERS: Final = [chr(point) for point in range(0xFDD0, 0xFDF0)]
"""Code points that Unicode keeps free of meaning: one that the text lacks breaks up a token."""
WHITE_SPACE: Final = (
    "\t\n\v\f\r \u0085\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009"
    "\u200a\u2028\u2029\u202f\u205f\u3000"
)
"""Unicode's White_Space, which a control token may take with it."""
MAX_PLAIN: Final = 4
"""Plain tokenizers kept; templates write few different sets of control tokens."""


class PromptEncoder:
    """Encodes conversations by one tokenizer and one template."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, template: ChatTemplate) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._added: dict[int, tokenizers.AddedToken] = tokenizer.get_added_tokens_decoder()
        unknown = getattr(tokenizer.model, "unk_token", None)
        # What a tokenizer cannot spell becomes the unknown token; that opens no turn.
        self._special = frozenset(
            number
            for number, token in self._added.items()
            if token.special and token.content != unknown
        )
        self._plain = lru_cache(MAX_PLAIN)(self._build_plain)

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """The ids of the rendered conversation.

        Raises:
            JobError: the template refuses it, or makes structure of its contents.
        """
        neutral = [_with_content(m, NEUTRAL if m.content.strip() else m.content) for m in messages]
        frame = self._encode_whole(self._template.render(neutral))
        control = self._special | {token for token in frame if self._marks(token)}
        expected = [token for token in frame if token in control]
        text = self._template.render(messages)
        ids = self._encode_whole(text)
        if _only(ids, control) != expected:
            ids = self._encode_parts(messages, text, control)
            if _only(ids, control) != expected:
                raise JobError(
                    "the model's chat template makes control tokens of a message's text: "
                    "leave out of it what looks like one"
                )
        return ids

    def _marks(self, token: int) -> bool:
        """Whether an added token that is not called special is more than words and spaces."""
        added = self._added.get(token)
        return added is not None and any(
            not (character.isalnum() or character.isspace()) for character in added.content
        )

    def _encode_whole(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def _encode_parts(
        self, messages: Sequence[Message], text: str, control: frozenset[int]
    ) -> list[int]:
        """The template's control tokens by their ids; all between them as text."""
        marker = next((one for one in MARKERS if one not in text), "")
        numbers = {self._added[number].content: number for number in control}
        # The longest that begins at a place counts, as the tokenizer takes it.
        names = "|".join(map(re.escape, sorted(numbers, key=len, reverse=True)))
        broken = re.compile(f"(?s)(?=(?:{names})).")
        marked = self._template.render(
            [
                _with_content(m, broken.sub(lambda found: found[0] + marker, m.content))
                for m in messages
            ]
        )
        if not marker or marked.replace(marker, "") != text:
            raise JobError("the model's chat template cannot take control tokens in a message")
        parts = re.split(f"({names})", marked)
        plain = self._plain(control)
        ids: list[int] = []
        for at, part in enumerate(parts):
            if at % 2:
                ids.append(numbers[part])
                continue
            run = part
            if at and self._added[numbers[parts[at - 1]]].rstrip:
                run = run.lstrip(WHITE_SPACE)
            if at + 1 < len(parts) and self._added[numbers[parts[at + 1]]].lstrip:
                run = run.rstrip(WHITE_SPACE)
            ids += plain.encode(run.replace(marker, ""), add_special_tokens=False).ids
        return ids

    def _build_plain(self, control: frozenset[int]) -> tokenizers.Tokenizer:
        """The same tokenizer, to which the control tokens are ordinary text."""
        content = json.loads(self._tokenizer.to_str())
        for token in content["added_tokens"]:
            token["special"] = token["id"] in control
        plain = tokenizers.Tokenizer.from_str(json.dumps(content))
        plain.encode_special_tokens = True
        return plain


def _with_content(message: Message, content: str) -> Message:
    return Message(role=message.role, content=content)


def _only(ids: Sequence[int], wanted: Collection[int]) -> list[int]:
    return [token for token in ids if token in wanted]
