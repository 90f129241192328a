"""`aitbc model`: convert, name, list and describe the models that a miner runs."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import msgspec

from miner.conversion import MAX_TEMPLATE_BYTES, convert_file
from miner.modelinfo import KnownModel, ModelInfo, describe_model, find_digest, list_models
from miner.models.convert import Head
from miner.models.embedded import default_cache
from miner.models.llama import MAX_CONTEXT
from node.cli.options import file_type
from node.files import read_bounded

TERMINATED = 143
"""What a shell gives for SIGTERM."""
MAX_SLOTS = 1_024

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
model_argument = click.argument("model", type=click.Path(path_type=Path, exists=True))


@click.group()
def model() -> None:
    """Convert, name, list and describe models."""


@model.command()
@click.argument("gguf", type=file_type)
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--head",
    type=click.Choice(["int8", "fp32"]),
    default="int8",
    show_default=True,
    help="How logits are computed: on packed weights, or on weights unpacked to fp32.",
)
@click.option(
    "--context",
    type=click.IntRange(16, MAX_CONTEXT),
    help="Most tokens of prompt and answer together; by default as many as the file says.",
)
@click.option(
    "--chat-template", type=file_type, help="A jinja2 template in place of the file's own."
)
@click.option(
    "--half", is_flag=True, help="In half precision, for GPUs: a model of another digest."
)
@json_option
def convert(
    gguf: Path,
    directory: Path,
    head: Head,
    context: int | None,
    chat_template: Path | None,
    *,
    half: bool,
    as_json: bool,
) -> None:
    """Convert a GGUF file to a model directory for ./aitbc miner.

    The directory appears when it is whole and was tried; one that is there already is refused.
    """
    with _progress() as progress:
        digest = convert_file(
            gguf,
            directory,
            head=head,
            context=context,
            chat_template=None if chat_template is None else _read_template(chat_template),
            progress=progress,
            half=half,
        )
    if as_json:
        _print({"path": str(directory), "digest": digest})
    else:
        click.echo(f"{directory}: digest {digest}")


@model.command()
@model_argument
@json_option
def digest(model: Path, *, as_json: bool) -> None:
    """Print the digest that receipts name a model by."""
    found = find_digest(model, _cache())
    _print({"path": str(model), "digest": found}) if as_json else click.echo(found)


@model.command(name="list")
@json_option
def list_(*, as_json: bool) -> None:
    """List the embedded model, and others in the directory where models are kept."""
    known = list(list_models(_cache()))
    if as_json:
        _print({"models": known})
        return
    for one in known:
        click.echo(_tell_known(one))


@model.command()
@model_argument
@click.option("--context", type=click.IntRange(1, MAX_CONTEXT), help="Tokens of prompt and answer.")
@click.option(
    "--slots",
    type=click.IntRange(1, MAX_SLOTS),
    default=1,
    show_default=True,
    help="Jobs at the same time.",
)
@json_option
def info(model: Path, context: int | None, slots: int, *, as_json: bool) -> None:
    """Describe a model, and estimate the memory that it takes."""
    found = describe_model(model, cache=_cache(), context=context, slots=slots)
    if as_json:
        _print(found)
        return
    for line in _tell_model(found):
        click.echo(line)


def _read_template(path: Path) -> str:
    try:
        return read_bounded(path, MAX_TEMPLATE_BYTES).decode()
    except UnicodeDecodeError as error:
        raise click.BadParameter(f"{path} is not UTF-8", param_hint="--chat-template") from error


def _cache() -> Path:
    """Where models are kept, and digests remembered."""
    cache = default_cache(os.environ)
    cache.mkdir(parents=True, exist_ok=True)
    return cache


def _print(value: Any) -> None:
    click.echo(msgspec.json.format(msgspec.json.encode(value)).decode())


def _tell_known(one: KnownModel) -> str:
    if not one.digest or one.problem:
        return f"{one.name}: {one.problem} ({one.path})"
    return f"{one.name}: {one.digest} {_megabytes(one.size_bytes)} {one.layout} ({one.path})"


def _tell_model(found: ModelInfo) -> Iterator[str]:
    yield f"digest        {found.digest}"
    yield f"layout        {found.layout}, {_megabytes(found.size_bytes)}"
    yield f"architecture  {found.architecture}, {found.layers} layers"
    yield f"attention     {found.kv_heads} key heads, {found.head_size} wide"
    yield f"context       {found.context} tokens"
    yield f"vocabulary    {found.vocabulary} tokens"
    yield f"chat template {'yes' if found.has_chat_template else 'no: it cannot serve jobs'}"
    for each in found.weights:
        yield f"weights       {each.kind}: {each.tensors} tensors, {_megabytes(each.size_bytes)}"
    memory = found.memory
    yield (
        f"memory        about {_megabytes(memory.total_bytes)} on a CPU: weights and work "
        f"{_megabytes(memory.fixed_bytes)}, {memory.slots} x {memory.context} tokens "
        f"{_megabytes(memory.cache_bytes)}"
    )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.0f} MB"


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Show steps on one line of a terminal; let SIGTERM clean up as Ctrl-C does."""
    is_terminal = sys.stderr.isatty()

    def show(step: str) -> None:
        if is_terminal:
            click.echo(f"\r\033[K{step}", nl=False, err=True)

    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    try:
        yield show
    finally:
        signal.signal(signal.SIGTERM, before)
        if is_terminal:
            click.echo("\r\033[K", nl=False, err=True)
