"""`aitbc run` and `aitbc witness`: nodes, which serve until they are stopped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import click

from ledger.checkpoint import witness_key
from ledger.errors import StoreError
from node.application import RELEASE
from node.assembly import open_node
from node.cli.options import (
    data_option,
    database_option,
    file_type,
    follow_parent,
    host_option,
    log_format_option,
    log_option,
    option,
    port_option,
    read_stored_options,
    stdin_option,
)
from node.config import (
    STRICT_LIMITS,
    NodeSettings,
    Role,
    choose_role,
    parse_public_url,
    parse_trusted_proxies,
)
from node.datadir import DataDirectory
from node.follower import open_follower, prepare_follower
from node.frontend import open_frontend
from node.logs import LogFormat, configure_logging
from node.running import Running
from node.server import OTHER_CONNECTIONS, serve
from node.witness import open_identity


@click.command()
@data_option
@host_option
@port_option
@option(
    "--mode",
    type=click.Choice(["auto", "dev", "strict"]),
    default="auto",
    help="dev leaves open what the API reference leaves open; auto: dev on loopback only.",
)
@option("--default-model", default="llama3.2", help="Model of jobs that name none.")
@option("--price-token-micros", type=click.IntRange(0, 10**9), default=10, help="Price of a token.")
@option(
    "--price-gpu-second-micros",
    type=click.IntRange(0, 10**12),
    default=1000,
    help="Price of a second, for miners that count no tokens.",
)
@option(
    "--batch-delay-ms",
    type=click.IntRange(0, 60_000),
    default=20,
    help="How long a receipt waits for company before its block is sealed.",
)
@option(
    "--max-pending-per-key",
    type=click.IntRange(1, 1_000_000),
    default=100,
    help="Pending jobs that one API key may have.",
)
@option(
    "--lease-ms",
    type=click.IntRange(100, 3_600_000),
    default=60_000,
    help="How long a job stays a miner's without a heartbeat.",
)
@option(
    "--heartbeat-interval-ms",
    type=click.IntRange(10, 3_600_000),
    default=20_000,
    help="How often miners are told to send one; well below the lease.",
)
@option(
    "--execution-timeout-ms",
    type=click.IntRange(100, 86_400_000),
    default=600_000,
    help="Longest run of one attempt, and the lease of miners without heartbeats.",
)
@option(
    "--queue-timeout-ms",
    type=click.IntRange(100, 604_800_000),
    default=3_600_000,
    help="How long a job waits for a miner before it fails.",
)
@option(
    "--rate-limit-key",
    type=click.FloatRange(0, 1_000_000),
    default=None,
    show_default=f"{STRICT_LIMITS.key} in strict mode, else 0",
    help="Requests per second that one API key may send to the API; 0: any number.",
)
@option(
    "--rate-limit-address",
    type=click.FloatRange(0, 1_000_000),
    default=None,
    show_default=f"{STRICT_LIMITS.address} in strict mode, else 0",
    help="The same for one client address, for requests without a valid key.",
)
@option(
    "--max-waiting",
    type=click.IntRange(2, 60_000),
    default=1_000,
    help="Long polls, event streams and completions at once, as far as the limit of open files "
    f"allows. {OTHER_CONNECTIONS:,} other connections are served besides.",
)
@option(
    "--public-url",
    default="",
    show_default=False,
    help="Where others reach this node, such as https://node.example/aitbc: for QR codes, feeds "
    "and commands on pages. Its path, if any, is what a proxy serves the node under.",
)
@option(
    "--trusted-proxy",
    "trusted_proxies",
    multiple=True,
    show_default=False,
    help="Address or network of a proxy whose X-Forwarded-For is believed; repeatable.",
)
@option(
    "--access-log/--no-access-log",
    default=None,
    show_default="on in strict mode, else off",
    help="A line in the log for each request of the API.",
)
@option(
    "--webhook-allow-private",
    is_flag=True,
    help="Let webhooks lead into private networks and to this machine, also by plain http.",
)
@option(
    "--text-retention-days",
    type=click.FloatRange(0, 36_500),
    default=7.0,
    help="How long prompts and results of ended jobs are kept; 0: for ever. Receipts stay.",
)
@option(
    "--audit-rate",
    type=click.FloatRange(0, 1),
    default=0.05,
    help="Share of the completed jobs that another miner audits, drawn by chance; its auditor sees "
    "prompt and result. 0: none.",
)
@option(
    "--role",
    type=click.Choice(get_args(Role)),
    default=None,
    show_default="follower with --follow, else authority",
    help="api: serve the API of an authority that has the same --database, beside it.",
)
@database_option
@option(
    "--coordinator-key",
    type=file_type,
    default=None,
    show_default=False,
    help="For --role api: a copy of the authority's keys/authority.json, to sign receipts with.",
)
@option(
    "--peer",
    "peers",
    multiple=True,
    show_default=False,
    help="Address of another node, such as http://10.0.0.2:8001, besides those in the authority "
    "set; repeatable.",
)
@option(
    "--follow",
    multiple=True,
    show_default=False,
    help="Address of a node to follow, without a key or a vote; repeatable.",
)
@option(
    "--genesis",
    type=file_type,
    default=None,
    show_default=False,
    help="A new follower's copy of the network's genesis file: all that it trusts.",
)
@option(
    "--checkpoint",
    type=file_type,
    default=None,
    show_default=False,
    help="A checkpoint file (./aitbc pin) that a new follower begins at; history follows behind.",
)
@log_option
@log_format_option
@stdin_option
@click.pass_context
def run(
    ctx: click.Context,
    /,
    *,
    log_file: Path | None,
    log_format: LogFormat,
    until_stdin_closes: bool,
    genesis: Path | None,
    **settings: Any,
) -> None:
    """Run a node: REST API, explorer, and its part in sealing blocks; or a follower (--follow).

    A node.toml in the data directory may set these options too; it counts least.
    """
    data = DataDirectory(settings["data"])
    node = NodeSettings(**settings | read_stored_options(ctx, data.options))
    role = choose_role(node)
    if node.checkpoint is not None and not node.follow:
        raise StoreError("--checkpoint is for followers: give --follow URL too")
    if node.follow:
        prepare_follower(data, sources=node.follow, genesis=genesis)
    if ctx.command is witness:
        _prepare_witness(data, sources=node.follow)
    configure_logging(log_file, log_format)
    follow_parent(enabled=until_stdin_closes)
    proxies = parse_trusted_proxies(node.trusted_proxies)
    node = replace(node, public_url=parse_public_url(node.public_url))
    serve(
        partial(_OPENERS[role], node),
        host=node.host,
        port=node.port,
        max_connections=OTHER_CONNECTIONS + node.max_waiting,
        trusted_proxies=proxies,
        ready=lambda url: print(f"AITBC node {RELEASE} at {url}", flush=True),  # noqa: T201
    )


_OPENERS: dict[Role, Callable[..., AbstractContextManager[Running]]] = {
    "api": open_frontend,
    "authority": open_node,
    "follower": open_follower,
}

witness = click.Command(
    "witness",
    params=run.params,
    callback=run.callback,
    help="Follow a node (--follow) and co-sign its checkpoints once they are verified here.\n\n"
    "The first start makes the witness' key, keys/witness.json, and its memory, witness.db, which "
    "is never copied, backed up or restored. Later ./aitbc run --data DIR does the same.",
)


def _prepare_witness(data: DataDirectory, *, sources: Sequence[str]) -> None:
    """Make the witness' key and memory, or check those that are there, and say whose they are.

    Raises:
        StoreError: there is nothing to follow, or key and memory do not belong together.
    """
    if not sources:
        raise StoreError(
            "a witness follows a network: give --follow URL, and --genesis FILE at its first start"
        )
    key, store = open_identity(data)
    store.close()
    click.echo(f"witness {key.account}", err=True)
    click.echo(f"its key for other tools: {witness_key(key.account)}", err=True)
