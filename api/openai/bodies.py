"""Bodies of OpenAI's completions, into jobs.

What a client asks for is done, or refused by its name: no value is silently ignored that would
change the answer. A parameter that is not known here is refused too, as OpenAI does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec

from api.bodies import (
    MAX_STOPS,
    MAX_TOKENS,
    ModelLine,
    Number,
    StopText,
    decode_body,
    parse_integer,
    parse_micros,
    refuse_nul,
)
from api.errors import refuse_field
from ledger.chat import MAX_MESSAGES, ChatMessage, ChatRole, build_chat_prompt
from ledger.encoding import MAX_INTEGER
from ledger.errors import EncodingError
from ledger.jobs import JobOrder

DEFAULT_MAX_TOKENS = 1_024
DEFAULT_TEMPERATURE = 1
DEFAULT_TOP_P = 1

ROLES: Mapping[str, ChatRole] = {
    "assistant": "assistant",
    "developer": "system",
    "system": "system",
    "user": "user",
}

IGNORED = frozenset(
    {
        *("metadata", "parallel_tool_calls", "prompt_cache_key", "prompt_cache_retention"),
        *("safety_identifier", "store", "user"),
    }
)
"""Parameters that change nothing about an answer."""

# Parameters that are not supported, with the values that ask for nothing. `null` always does.
_NOTHING: Mapping[str, tuple[object, ...]] = {
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "n": (1,),
    "presence_penalty": (0,),
    "service_tier": ("auto", "default"),
}
_NO_CHAT: Mapping[str, tuple[object, ...]] = {
    **_NOTHING,
    "audio": (),
    "function_call": ("auto", "none"),
    "functions": ([],),
    "logprobs": (False,),
    "modalities": (["text"],),
    "prediction": (),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "tool_choice": ("auto", "none"),
    "tools": ([],),
    "top_logprobs": (0,),
    "verbosity": ("medium",),
    "web_search_options": (),
}
_NO_COMPLETION: Mapping[str, tuple[object, ...]] = {
    **_NOTHING,
    "best_of": (1,),
    "echo": (False,),
    "logprobs": (),
    "suffix": ("",),
}
# Of a message. An answer that is sent back as a turn has these, empty.
_NO_MESSAGE: Mapping[str, tuple[object, ...]] = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "refusal": ("",),
    "tool_call_id": (),
    "tool_calls": ([],),
}


class StreamOptionsBody(msgspec.Struct):
    """`stream_options`."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    """Padding against listeners who count bytes; not sent, which its absence shows."""


class SamplingBody(msgspec.Struct):
    """What both kinds of completions take."""

    model: ModelLine | None = None
    max_tokens: Number | None = None
    temperature: Number | None = None
    top_p: Number | None = None
    seed: Number | None = None
    stop: StopText | Annotated[list[StopText], msgspec.Meta(max_length=MAX_STOPS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptionsBody | None = None


class PartBody(msgspec.Struct):
    """A part of a message's content."""

    type: str
    text: str | None = None


class MessageBody(msgspec.Struct):
    """A message of a chat."""

    role: str
    content: str | list[PartBody] | None = None
    name: str | None = None


class ChatBody(SamplingBody, kw_only=True):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[MessageBody], msgspec.Meta(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Number | None = None


class CompletionBody(SamplingBody, kw_only=True):
    """`POST /v1/completions`."""

    prompt: str | Annotated[list[str], msgspec.Meta(min_length=1, max_length=1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a client asks for."""

    order: JobOrder
    stream: bool
    include_usage: bool
    """A last chunk says how many tokens there were."""


def parse_chat_body(body: bytes, *, default_model: str) -> Wanted:
    """Parse a chat completion.

    Raises:
        RequestError: VALIDATION_FAILED with the path of the parameter, VALIDATION_MALFORMED_JSON.
    """
    given = decode_body(body, dict[str, Any])
    _check_body(given, ChatBody, _NO_CHAT)
    _check_messages(given.get("messages"))
    chat = decode_body(body, ChatBody)
    limits = {chat.max_tokens, chat.max_completion_tokens} - {None}
    if len(limits) > 1:
        raise refuse_field("max_tokens", "expected the same as max_completion_tokens, or neither")
    turns = [_turn(f"messages[{index}]", turn) for index, turn in enumerate(chat.messages)]
    name = "max_tokens" if chat.max_completion_tokens is None else "max_completion_tokens"
    chat.max_tokens = limits.pop() if limits else None
    return _want(chat, turns, default_model=default_model, place="messages", limit_name=name)


def parse_completion_body(body: bytes, *, default_model: str) -> Wanted:
    """Parse a completion of a text, which is one message of the user.

    Raises:
        RequestError: as `parse_chat_body`.
    """
    given = decode_body(body, dict[str, Any])
    _check_body(given, CompletionBody, _NO_COMPLETION)
    completion = decode_body(body, CompletionBody)
    prompt = completion.prompt
    text = prompt if isinstance(prompt, str) else prompt[0]
    refuse_nul("prompt", text)
    turn = ChatMessage(role="user", content=text)
    return _want(completion, [turn], default_model=default_model, place="prompt")


def _want(
    body: SamplingBody,
    turns: list[ChatMessage],
    *,
    default_model: str,
    place: str,
    limit_name: str = "max_tokens",
) -> Wanted:
    try:
        prompt = build_chat_prompt(turns)
    except EncodingError as error:
        raise refuse_field(place, str(error)) from error
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    for index, text in enumerate(stop):
        refuse_nul(f"stop[{index}]", text)
    options = body.stream_options or StreamOptionsBody()
    if body.stream_options is not None and not body.stream:
        raise refuse_field("stream_options", "expected only with stream: true")
    order = JobOrder(
        prompt=prompt,
        model=default_model if body.model is None else body.model,
        max_tokens=parse_integer(
            limit_name, body.max_tokens, default=DEFAULT_MAX_TOKENS, low=1, high=MAX_TOKENS
        ),
        temperature_micros=parse_micros(
            "temperature", body.temperature, default=DEFAULT_TEMPERATURE, low=0, high=2
        ),
        # A share of 0 leaves the likeliest token, as the smallest share does.
        top_p_micros=max(
            1, parse_micros("top_p", body.top_p, default=DEFAULT_TOP_P, low=0, high=1)
        ),
        seed=None
        if body.seed is None
        else parse_integer("seed", body.seed, default=0, low=0, high=MAX_INTEGER),
        stop=stop,
    )
    return Wanted(order=order, stream=bool(body.stream), include_usage=bool(options.include_usage))


def _turn(place: str, turn: MessageBody) -> ChatMessage:
    role = ROLES.get(turn.role)
    if role is None:
        raise refuse_field(
            f"{place}.role", f"expected one of {', '.join(ROLES)}; tools are not supported"
        )
    content = turn.content
    if content is None:
        raise refuse_field(f"{place}.content", "expected text")
    if not isinstance(content, str):
        parts = [_text(f"{place}.content[{index}]", part) for index, part in enumerate(content)]
        content = "".join(parts)
    refuse_nul(f"{place}.content", content)
    return ChatMessage(role=role, content=content)


def _text(place: str, part: PartBody) -> str:
    if part.type != "text":
        raise refuse_field(f"{place}.type", "expected text; nothing else is supported")
    if part.text is None:
        raise refuse_field(f"{place}.text", "this field is required")
    return part.text


def _check_body(
    given: Mapping[str, object],
    known: type[SamplingBody],
    harmless: Mapping[str, tuple[object, ...]],
) -> None:
    asked = {name: value for name, value in given.items() if name not in IGNORED}
    _check_parameters(asked, known, harmless)
    options = given.get("stream_options")
    if isinstance(options, dict):
        _check_parameters(options, StreamOptionsBody, {}, "stream_options.")


def _check_messages(messages: object) -> None:
    """Look at what the types of the messages let pass."""
    for index, turn in enumerate(messages if isinstance(messages, list) else ()):
        if not isinstance(turn, dict):
            continue
        place = f"messages[{index}]"
        _check_parameters(turn, MessageBody, _NO_MESSAGE, f"{place}.")
        parts = turn.get("content")
        for number, part in enumerate(parts if isinstance(parts, list) else ()):
            # A part of another type is refused by that, which says more.
            if isinstance(part, dict) and part.get("type") == "text":
                _check_parameters(part, PartBody, {}, f"{place}.content[{number}].")


def _check_parameters(
    given: Mapping[str, object],
    known: type[msgspec.Struct],
    harmless: Mapping[str, tuple[object, ...]],
    place: str = "",
) -> None:
    """Refuse parameters that ask for what is not done here."""
    for name, value in given.items():
        asks = value is not None and value not in harmless.get(name, ())
        if asks and name not in known.__struct_fields__:
            what = "value" if name in harmless else "parameter"
            raise refuse_field(f"{place}{name[:100]}", f"this {what} is not supported")
