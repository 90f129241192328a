"""Options of the command line: a flag, an `AITBC_*` variable, or a key of a TOML file."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import click
import msgspec
from click.core import ParameterSource

from ledger.errors import StoreError
from node.config import DEFAULT_DATA, DEFAULT_PORT, read_config_file, watch_parent
from node.datadir import DataDirectory
from node.logs import LogFormat

F = TypeVar("F", bound=Callable[..., Any])

file_type = click.Path(path_type=Path, dir_okay=False)


def option(name: str, *names: str, **attributes: Any) -> Callable[[F], F]:
    """Declare an option that `AITBC_<NAME>` sets too."""
    variable = "AITBC_" + name.split("/")[0].lstrip("-").replace("-", "_").upper()
    attributes = {"show_default": True, "show_envvar": True, **attributes}
    return click.option(name, *names, envvar=variable, **attributes)


data_option = option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    default=DEFAULT_DATA,
    help="Data directory of the node.",
)
database_option = option(
    "--database",
    default="",
    show_default=False,
    help="postgresql://USER@HOST/NAME that holds jobs, miners and keys; by default node.db does.",
)
url_option = option("--url", help="Address of the node; by default that of --data's running node.")
default_url_option = option(
    "--url", default=f"http://127.0.0.1:{DEFAULT_PORT}", help="Address of the node."
)
host_option = option("--host", default="127.0.0.1", help="Address to listen on.")
port_option = option(
    "--port",
    type=click.IntRange(0, 65535),
    default=DEFAULT_PORT,
    help="Port to listen on; 0 lets the system choose.",
)
log_option = option(
    "--log-file",
    type=file_type,
    default=None,
    show_default=False,
    help="Write the log there, rotated; by default to standard error.",
)
log_format_option = option(
    "--log-format",
    type=click.Choice(get_args(LogFormat)),
    default="text",
    help="json: each line of the log is one JSON object.",
)
stdin_option = click.option("--until-stdin-closes", is_flag=True, hidden=True)


def follow_parent(*, enabled: bool) -> None:
    """End as SIGTERM would when standard input closes: the process behind it has ended."""
    if enabled:
        threading.Thread(target=watch_parent, name="parent", daemon=True).start()


def read_stored_options(ctx: click.Context, path: Path) -> dict[str, Any]:
    """Return the options that a data directory sets for the command, where nothing else does.

    Raises:
        StoreError: the file is not TOML, names an option that the command does not have, or gives
            one a value that it does not take.
    """
    if not path.exists():
        return {}
    parameters = {str(parameter.name): parameter for parameter in ctx.command.params}
    values = read_config_file(path)
    if unknown := sorted(values.keys() - parameters.keys()):
        raise StoreError(f"{path}: unknown keys {', '.join(unknown)}; see ./aitbc run --help")
    refuse_lone_values(path, values, lists={n for n, p in parameters.items() if p.multiple})
    return {
        name: _cast(ctx, parameters[name], value, path)
        for name, value in values.items()
        if ctx.get_parameter_source(name) is ParameterSource.DEFAULT
    }


def find_database(data: DataDirectory, given: str) -> str:
    """Return the database of a data directory's node: what is given, or what its options say.

    Raises:
        StoreError: its options are no TOML.
    """
    if given or not data.options.exists():
        return given
    return str(read_config_file(data.options).get("database", ""))


def refuse_lone_values(path: Path, values: Mapping[str, Any], *, lists: Collection[str]) -> None:
    """Refuse a repeatable option whose value is no list.

    Raises:
        StoreError: there is one.
    """
    for name, value in values.items():
        if name in lists and not isinstance(value, list):
            raise StoreError(f'{path}: {name}: expected a list, such as ["…"]')


class Connection(msgspec.Struct):
    """What commands need of connection.json."""

    url: str
    client_key: str


def read_connection(data: Path) -> Connection:
    """Return how to reach the running `aitbc up` of a data directory.

    Raises:
        StoreError: there is none.
    """
    path = DataDirectory(data).connection
    try:
        return msgspec.json.decode(path.read_bytes(), type=Connection)
    except (OSError, ValueError) as error:
        raise StoreError(
            f"{path}: names no running node; give its address with --url, and a --key"
        ) from error


def _cast(ctx: click.Context, parameter: click.Parameter, value: object, path: Path) -> Any:
    try:
        return parameter.type_cast_value(ctx, value)
    except click.BadParameter as error:
        raise StoreError(f"{path}: {parameter.name}: {error.message}") from error
