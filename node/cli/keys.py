"""`aitbc keys`: API keys of a data directory, whether its node runs or not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import click

from ledger.errors import StoreError
from ledger.jobs import KeyRole
from ledger.quotas import KeyLimits
from ledger.store.limits import load_limits, set_limits
from ledger.store.marketstore import MarketStore
from ledger.store.registry import list_keys, revoke_key
from ledger.store.sessions import Connection
from node.apikeys import issue_key, open_keys
from node.cli.options import data_option, database_option, find_database
from node.clock import read_clock_ms
from node.datadir import DataDirectory

MAX_LIMIT = 10**12
LIMITS = {
    "max_pending": "Jobs that may wait at once; by default as --max-pending-per-key says.",
    "daily_jobs": "Jobs that the key may submit on a day of UTC.",
    "daily_tokens": "Sum of max_tokens that the key may submit on a day of UTC.",
}


class LimitType(click.ParamType[int]):
    """A number above zero, or `none`, which is 0 here."""

    name = "limit"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number."""
        return 0 if value == "none" else click.IntRange(1, MAX_LIMIT).convert(value, param, ctx)


def limit_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of a key's limits."""
    for name, text in reversed(LIMITS.items()):
        flag = f"--{name.replace('_', '-')}"
        command = click.option(flag, type=LimitType(), metavar="N|none", help=text)(command)
    return command


def change_limits(limits: KeyLimits, given: Mapping[str, int | None]) -> KeyLimits:
    """Return limits with those that are given; 0 removes one."""
    return replace(
        limits, **{name: value or None for name, value in given.items() if value is not None}
    )


@click.group()
def keys() -> None:
    """Make, list, limit and revoke API keys."""


@keys.command("create")
@data_option
@database_option
@click.option(
    "--role",
    type=click.Choice(["client", "miner", "admin"]),
    required=True,
    help="client submits, miner works, admin does everything.",
)
@click.option("--client", help="Holder's name on receipts (public); by default role and prefix.")
@limit_options
def keys_create(
    data: Path, database: str, role: str, client: str | None, **limits: int | None
) -> None:
    """Make a key and print it, for the only time. A running node takes it at once."""
    key = issue_key(
        DataDirectory(data),
        cast("KeyRole", role),
        client=client,
        now_ms=read_clock_ms(),
        limits=change_limits(KeyLimits(), limits),
        database=find_database(DataDirectory(data), database),
    )
    click.echo(key)


@keys.command("limit")
@data_option
@database_option
@click.argument("prefix")
@limit_options
def keys_limit(data: Path, database: str, prefix: str, **limits: int | None) -> None:
    """Change what the key with this prefix (aik_PREFIX_…) may submit; `none` ends a limit."""
    prefix = parse_prefix(prefix)
    if all(value is None for value in limits.values()):
        raise click.UsageError("name a limit to change, such as --daily-jobs 100")

    def limit(connection: Connection) -> bool:
        changed = change_limits(load_limits(connection, prefix), limits)
        return set_limits(connection, prefix, changed)

    with _open_keys(data, database) as store:
        done = store.write(limit).result()
    if not done:
        raise StoreError(f"no key with prefix {prefix}; see ./aitbc keys list")
    click.echo(f"limited aik_{prefix}_…")


@keys.command("list")
@data_option
@database_option
def keys_list(data: Path, database: str) -> None:
    """List keys by prefix; secrets are not stored."""
    with _open_keys(data, database) as store:
        for key in list_keys(store.reader):
            state = "revoked" if key.revoked_at_ms is not None else "active"
            line = f"aik_{key.prefix}_…  {key.role:<7} {state:<8} {key.client}"
            click.echo(" ".join([line, *format_limits(key.limits)]))


@keys.command("revoke")
@data_option
@database_option
@click.argument("prefix")
def keys_revoke(data: Path, database: str, prefix: str) -> None:
    """Revoke the key with this prefix (aik_PREFIX_…), for ever and at once."""
    prefix = parse_prefix(prefix)
    with _open_keys(data, database) as store:
        done = store.write(lambda c: revoke_key(c, prefix, read_clock_ms())).result()
    if not done:
        raise StoreError(f"no active key with prefix {prefix}; see ./aitbc keys list")
    click.echo(f"revoked aik_{prefix}_…")


def _open_keys(data: Path, database: str) -> AbstractContextManager[MarketStore]:
    directory = DataDirectory(data)
    return open_keys(directory, find_database(directory, database))


def parse_prefix(text: str) -> str:
    """Return the prefix, also of what `keys list` shows or of a whole key."""
    return text.removeprefix("aik_").split("_")[0].rstrip("…")


def format_limits(limits: KeyLimits) -> list[str]:
    """Return the limits that a key has, in words."""
    values = {name: getattr(limits, name) for name in LIMITS}
    return [f" {name.replace('_', '-')}={value}" for name, value in values.items() if value]
