"""Write the tables of docs/configuration.md from the commands themselves.

    python -m scripts.configuration

Whatever stands outside of the marked tables is kept.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import click

from node.cli import cli

FILE = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"

_TABLE = re.compile(r"(<!-- options of ([a-z]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_HEAD = "| option | variable | key | default | |\n|---|---|---|---|---|\n"


def rewrite(text: str) -> str:
    """Return the document with its tables as the commands are now."""

    def replace(match: re.Match[str]) -> str:
        return f"{match[1]}{build_table(match[2])}{match[3]}"

    return _TABLE.sub(replace, text)


def list_tables(text: str) -> list[str]:
    """Return the commands whose tables the document has."""
    return [match[2] for match in _TABLE.finditer(text)]


def build_table(name: str) -> str:
    """Return the table of a command; `aitbc` is what stands before every command."""
    command: click.Command = cli if name == "aitbc" else cli.commands[name]
    context = click.Context(command)
    rows = [
        _build_row(option, context)
        for option in command.params
        if isinstance(option, click.Option) and not option.hidden and not option.is_eager
    ]
    return _HEAD + "".join(rows)


def _build_row(option: click.Option, context: click.Context) -> str:
    variable = f"`{option.envvar}`" if option.envvar else ""
    flags = "/".join([*option.opts, *option.secondary_opts])
    cells = (
        f"`{flags}`",
        variable,
        f"`{option.name}`",
        _tell_default(option, context),
        " ".join([*filter(None, [option.help, _tell_range(option.type)])]),
    )
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"


def _tell_default(option: click.Option, context: click.Context) -> str:
    if option.required:
        return "required"
    if isinstance(option.show_default, str):
        return option.show_default
    default = option.get_default(context)
    if isinstance(default, (bool, type(None))):
        return "on" if default else ""
    if isinstance(default, (str, int, float, Path)) and default != "":
        return f"`{default}`"
    return ""


def _tell_range(kind: object) -> str:
    if isinstance(kind, click.Choice):
        return f"One of {', '.join(kind.choices)}."
    if isinstance(kind, (click.IntRange, click.FloatRange)):
        return f"{kind.min} to {kind.max}."
    return ""


def main() -> int:
    """Run from the command line."""
    FILE.write_text(rewrite(FILE.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
