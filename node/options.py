"""Options of the command line: a flag, an `AITBC_*` variable, or a key of a TOML file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from node.config import DEFAULT_DATA

F = TypeVar("F", bound=Callable[..., Any])


def option(name: str, *names: str, **attributes: Any) -> Callable[[F], F]:
    """Declare an option that `AITBC_<NAME>` sets too."""
    variable = "AITBC_" + name.lstrip("-").replace("-", "_").upper()
    attributes = {"show_default": True, "show_envvar": True, **attributes}
    return click.option(name, *names, envvar=variable, **attributes)


data_option = option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    default=DEFAULT_DATA,
    help="Data directory of the node.",
)
