"""The chat template of a model directory, rendered.

It comes with the model, from anybody, so it runs in jinja2's immutable sandbox.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from miner.errors import JobError, ModelFormatError, UnsupportedModelError


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


class ChatTemplate:
    """One template with the special tokens that it may write."""

    def __init__(self, source: str, special: Mapping[str, str]) -> None:
        """Compile.

        Raises:
            ModelFormatError: no jinja2 template.
        """
        self._special = dict(special)
        self._template = _compile(source)

    def render(self, messages: Sequence[Message]) -> str:
        """The conversation as the model was trained to see it, the answer's opening last.

        Raises:
            JobError: the template refuses this conversation.
        """
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            return self._template.render(
                messages=turns, add_generation_prompt=True, tools=None, **self._special
            )
        except (
            jinja2.TemplateError,
            TypeError,
            ValueError,
            ArithmeticError,
            LookupError,
            AttributeError,
            RecursionError,
        ) as error:
            # Without the template's words, which may quote the messages.
            name = type(error).__name__
            raise JobError(f"the model's chat template refuses the messages: {name}") from error


def read_template(directory: Path, config: Mapping[str, Any]) -> str:
    """The source, from chat_template.jinja or tokenizer_config.json.

    Raises:
        UnsupportedModelError: there is none.
    """
    beside = directory / "chat_template.jinja"
    if beside.is_file():
        return beside.read_text(encoding="utf-8")
    source = config.get("chat_template")
    if isinstance(source, list):
        named = {
            item.get("name"): item.get("template") for item in source if isinstance(item, dict)
        }
        source = named.get("default")
    if not isinstance(source, str):
        raise UnsupportedModelError(f"{directory}: the model has no chat template")
    return source


def _compile(source: str) -> jinja2.Template:
    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def to_json(value: object, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = raise_exception
    environment.filters["tojson"] = to_json
    try:
        return environment.from_string(source)
    except jinja2.TemplateError as error:
        raise ModelFormatError(f"chat template: {error}") from error
