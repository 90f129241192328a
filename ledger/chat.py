"""A conversation as the one prompt of a job.

A prompt that is the canonical JSON of a non-empty array of messages is a chat; every other text is
one message of the user. So the prompt alone says what it is, without a flag, and its digest commits
to the whole conversation. One message of the user is written as its plain text, unless that text
would itself be read as a chat: it stays the text of a user, whatever it looks like.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Literal

import msgspec

from ledger.encoding import decode, encode
from ledger.errors import EncodingError

ChatRole = Literal["assistant", "system", "user"]

MAX_CHAT_BYTES = 1 << 20
MAX_MESSAGES = 1_024

_BEGINNING = '[{"content":'
"""Keys are sorted and there is no white space, so no chat begins otherwise."""


class ChatMessage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One turn of a conversation."""

    role: ChatRole
    content: str


def build_chat_prompt(messages: Sequence[ChatMessage]) -> str:
    """Return the prompt of a conversation; `parse_chat` returns the same messages from it.

    Raises:
        EncodingError: no message, more than MAX_MESSAGES, more than MAX_CHAT_BYTES.
    """
    if not 1 <= len(messages) <= MAX_MESSAGES:
        raise EncodingError(f"chat: expected 1 to {MAX_MESSAGES} messages, got {len(messages)}")
    if len(messages) == 1 and messages[0].role == "user":
        text = messages[0].content
        if parse_chat(text) == tuple(messages):
            return text
    chat = encode(list(messages))
    if len(chat) > MAX_CHAT_BYTES:
        raise EncodingError(f"chat: expected at most {MAX_CHAT_BYTES} bytes, got {len(chat)}")
    return chat.decode()


def parse_chat(prompt: str) -> tuple[ChatMessage, ...]:
    """Return the messages that a prompt stands for."""
    if prompt.startswith(_BEGINNING):
        with contextlib.suppress(EncodingError):
            chat = decode(prompt.encode(), tuple[ChatMessage, ...], max_bytes=MAX_CHAT_BYTES)
            if 1 <= len(chat) <= MAX_MESSAGES:
                return chat
    return (ChatMessage(role="user", content=prompt),)
