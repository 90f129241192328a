"""`aitbc keys`: API keys of a data directory, whether its node runs or not."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import click

from ledger.errors import StoreError
from ledger.jobs import KeyRole
from ledger.store.registry import list_keys, revoke_key
from node.apikeys import issue_key, open_keys
from node.cli.options import data_option
from node.clock import read_clock_ms
from node.datadir import DataDirectory


@click.group()
def keys() -> None:
    """Make, list and revoke API keys."""


@keys.command("create")
@data_option
@click.option(
    "--role",
    type=click.Choice(["client", "miner", "admin"]),
    required=True,
    help="client submits, miner works, admin does everything.",
)
@click.option("--client", help="Holder's name on receipts (public); by default role and prefix.")
def keys_create(data: Path, role: str, client: str | None) -> None:
    """Make a key and print it, for the only time. A running node takes it at once."""
    now_ms = read_clock_ms()
    click.echo(issue_key(DataDirectory(data), cast("KeyRole", role), client=client, now_ms=now_ms))


@keys.command("list")
@data_option
def keys_list(data: Path) -> None:
    """List keys by prefix; secrets are not stored."""
    with open_keys(DataDirectory(data)) as store:
        for key in list_keys(store.reader):
            state = "revoked" if key.revoked_at_ms is not None else "active"
            click.echo(f"aik_{key.prefix}_…  {key.role:<7} {state:<8} {key.client}")


@keys.command("revoke")
@data_option
@click.argument("prefix")
def keys_revoke(data: Path, prefix: str) -> None:
    """Revoke the key with this prefix (aik_PREFIX_…), for ever and at once."""
    prefix = prefix.removeprefix("aik_").split("_")[0].rstrip("…")
    with open_keys(DataDirectory(data)) as store:
        done = store.write(lambda c: revoke_key(c, prefix, read_clock_ms())).result()
    if not done:
        raise StoreError(f"no active key with prefix {prefix}; see ./aitbc keys list")
    click.echo(f"revoked aik_{prefix}_…")
