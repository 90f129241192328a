"""`aitbc up` and `aitbc network`: everything on this machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from node.cli.options import (
    data_option,
    follow_parent,
    host_option,
    option,
    port_option,
    stdin_option,
)
from node.config import DEFAULT_PORT
from node.local.network import LocalNetworkSettings, run_local_network
from node.local.up import UpSettings, run_up


@click.command()
@data_option
@host_option
@port_option
@click.option("--once", is_flag=True, help="Run one job, verify its receipt, stop.")
@option("--miner-id", default="miner-1", help="Name of the miner beside the node.")
@option("--threads", type=click.IntRange(0, 256), default=0, help="0: as many as there are cores.")
@click.pass_context
def up(ctx: click.Context, /, **settings: Any) -> None:
    """Start a node with explorer and a miner, run a job through them, and keep serving."""
    sys.exit(run_up(UpSettings(config=ctx.find_root().params["config"], **settings)))


@click.command()
@option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("network"),
    help="Directory of the whole network; made if missing.",
)
@option("--authorities", type=click.IntRange(1, 100), default=4, help="Nodes that seal blocks.")
@option("--followers", type=click.IntRange(0, 100), default=1, help="Nodes that only follow.")
@option("--miners", type=click.IntRange(0, 100), default=1, help="Miners, one authority each.")
@option(
    "--base-port",
    type=click.IntRange(0, 65_335),
    default=DEFAULT_PORT,
    help="Port of the first node, the others follow; 0 lets the system choose.",
)
@click.option("--once", is_flag=True, help="Run one job, wait until all nodes show it, stop.")
@stdin_option
def network(*, until_stdin_closes: bool, **settings: Any) -> None:
    """Run a whole network on this machine: each node a process of its own."""
    follow_parent(enabled=until_stdin_closes)
    sys.exit(run_local_network(LocalNetworkSettings(**settings)))
