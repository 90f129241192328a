"""The `aitbc` command: every option is a flag, an `AITBC_*` variable, or a key of a TOML file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ledger.errors import LedgerError, StoreError
from miner.errors import MinerError
from node.application import RELEASE
from node.cli.audit import audit
from node.cli.authority import authority
from node.cli.backup import backup, restore
from node.cli.chain import fsck, pin
from node.cli.checkpoint import checkpoint
from node.cli.init import init
from node.cli.keys import keys
from node.cli.local import network, up
from node.cli.miner import miner
from node.cli.model import model
from node.cli.options import file_type, option, refuse_lone_values
from node.cli.run import run, witness
from node.cli.submit import submit
from node.cli.verify import verify
from node.config import read_config_file


class _Commands(click.Group):
    """Turns our errors into one line and an exit status, whatever the command."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (LedgerError, MinerError) as error:
            raise click.ClickException(str(error)) from error
        except OSError as error:
            place = f"{error.filename}: " if error.filename else ""
            raise click.ClickException(f"{place}{error.strerror or error}") from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(RELEASE, message="aitbc %(version)s")
@option(
    "--config",
    type=file_type,
    default=None,
    show_default=False,
    help="TOML file with option names as keys, such as port = 8001.",
)
@click.pass_context
def cli(ctx: click.Context, config: Path | None) -> None:
    """Run a ledger of AI compute: jobs, miners, signed receipts, proofs.

    Options come from flags, then AITBC_* variables, then the --config file.
    """
    if config is None:
        return
    values = read_config_file(config)
    options = _list_options(cli)
    if unknown := sorted(values.keys() - {str(one.name) for one in options}):
        raise StoreError(f"{config}: unknown keys {', '.join(unknown)}; see ./aitbc run --help")
    lone = {one.name for one in options if not one.multiple}
    refuse_lone_values(
        config, values, lists={str(one.name) for one in options if one.name not in lone}
    )
    ctx.default_map = _spread(cli, values)


def _list_options(command: click.Command) -> list[click.Option]:
    if isinstance(command, click.Group):
        return [one for inner in command.commands.values() for one in _list_options(inner)]
    return [one for one in command.params if isinstance(one, click.Option)]


def _spread(group: click.Group, values: dict[str, Any]) -> dict[str, Any]:
    """Offer the values to every command; each takes those that it knows."""
    return {
        name: _spread(command, values) if isinstance(command, click.Group) else values
        for name, command in group.commands.items()
    }


for _command in (
    init,
    run,
    witness,
    miner,
    model,
    submit,
    verify,
    audit,
    checkpoint,
    fsck,
    backup,
    restore,
    pin,
    keys,
    authority,
    up,
    network,
):
    cli.add_command(_command)


def main() -> None:
    """Entry point of `./aitbc`."""
    cli(prog_name="aitbc")
