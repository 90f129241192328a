"""The `aitbc` command: every option is a flag, an `AITBC_*` variable, or a key of a TOML file."""

from __future__ import annotations

import logging
import logging.handlers
import os
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec
from click.core import ParameterSource

from ledger.block import hash_genesis, parse_genesis
from ledger.errors import LedgerError, StoreError
from ledger.proof import parse_disclosure, verify_bundle
from ledger.statement import (
    MAX_STATEMENT_BYTES,
    StatementVerdict,
    is_statement,
    verify_statement,
)
from ledger.store.fsck import verify_chain
from miner.errors import MinerError
from miner.models.embedded import default_cache, prepare_embedded_model
from miner.service import MinerSettings, run_miner
from node.assembly import RELEASE, open_node, read_clock_ms
from node.cli_authority import authority
from node.cli_checkpoint import checkpoint
from node.cli_keys import keys
from node.cli_pin import pin
from node.cli_witness import prepare_witness
from node.config import (
    DEFAULT_PORT,
    NodeSettings,
    read_config_file,
    watch_parent,
)
from node.datadir import (
    DataDirectory,
    create_data_directory,
    create_joining_directory,
    load_key,
)
from node.datadir import create_key as create_key_file
from node.follower import open_follower, prepare_follower
from node.localnet import LocalNetworkSettings, run_local_network
from node.options import data_option, option, read_stored_options, url_option
from node.report import print_statement, print_verdict
from node.restclient import RestClient
from node.server import serve
from node.sync.source import parse_url
from node.up import UpSettings, run_up

F = TypeVar("F", bound=Callable[..., Any])

LOG_BYTES = 10 << 20
LOG_FILES = 3
MAX_FILE_BYTES = MAX_STATEMENT_BYTES + 1
"""Largest bundle or genesis file that is read: a statement and its line feed."""


host_option = option("--host", default="127.0.0.1", help="Address to listen on.")
port_option = option(
    "--port",
    type=click.IntRange(0, 65535),
    default=DEFAULT_PORT,
    help="Port to listen on; 0 lets the system choose.",
)
key_option = option("--key", help="API key; without --url, by default from connection.json.")
log_option = option(
    "--log-file",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    show_default=False,
    help="Write the log there, rotated; by default to standard error.",
)
stdin_option = click.option("--until-stdin-closes", is_flag=True, hidden=True)


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
    type=click.Path(path_type=Path, dir_okay=False),
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
    if unknown := sorted(values.keys() - _list_option_names(cli)):
        raise StoreError(f"{config}: unknown keys {', '.join(unknown)}; see ./aitbc run --help")
    ctx.default_map = _spread(cli, values)


def _list_option_names(command: click.Command) -> set[str]:
    names = {str(p.name) for p in command.params if isinstance(p, click.Option)}
    if isinstance(command, click.Group):
        names = set().union(*map(_list_option_names, command.commands.values()))
    return names


def _spread(group: click.Group, values: dict[str, Any]) -> dict[str, Any]:
    """Offer the values to every command; each takes those that it knows."""
    return {
        name: _spread(command, values) if isinstance(command, click.Group) else values
        for name, command in group.commands.items()
    }


@cli.command()
@data_option
@option("--network", default="aitbc-local", help="Name of the network: a-z, 0-9 and hyphens.")
@option("--name", default="authority-1", help="This authority's name, as the explorer shows it.")
@click.option(
    "--url", default="", help="Where other nodes will reach this one, if there will be any."
)
@click.option(
    "--genesis",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Join the network of this genesis file instead: with a new key that its authorities may "
    "take into their set.",
)
@click.pass_context
def init(
    ctx: click.Context, /, *, data: Path, network: str, name: str, url: str, genesis: Path | None
) -> None:
    """Make a data directory: a key, a genesis of one authority, its votes.db."""
    if url:
        parse_url(url)
    if genesis is not None:
        if ctx.get_parameter_source("network") is ParameterSource.COMMANDLINE:
            raise click.UsageError("--genesis names the network; leave out --network")
        _join(data, genesis, name=name, url=url)
        return
    made = create_data_directory(data, network=network, name=name, url=url, now_ms=read_clock_ms())
    document = made.load_genesis()
    click.echo(
        f"Made {data}: network {network}, authority {document.authority_set.members[0].account}"
    )
    click.echo(
        f"Genesis {hash_genesis(document).hex()} in {made.genesis}; give this file to verifiers."
    )


def _join(data: Path, genesis: Path, *, name: str, url: str) -> None:
    document = parse_genesis(_read_file(genesis))
    made = create_joining_directory(data, document)
    account = load_key(made.authority_key)[0].account
    click.echo(f"Made {data}: network {document.network}, new account {account}")
    click.echo(
        "It has no vote yet. An authority proposes it, a quorum signs, and so does this key:\n"
        f"  ./aitbc authority propose --add {name}={account}={url or 'URL'}\n"
        f"  ./aitbc authority sign change.json --data {data} --url URL"
    )


@cli.command()
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
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    show_default=False,
    help="A new follower's copy of the network's genesis file: all that it trusts.",
)
@option(
    "--checkpoint",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    show_default=False,
    help="A checkpoint file (./aitbc pin) that a new follower begins at; history follows behind.",
)
@log_option
@stdin_option
@click.pass_context
def run(
    ctx: click.Context,
    /,
    *,
    log_file: Path | None,
    until_stdin_closes: bool,
    genesis: Path | None,
    **settings: Any,
) -> None:
    """Run a node: REST API, explorer, and its part in sealing blocks; or a follower (--follow).

    A node.toml in the data directory may set these options too; it counts least.
    """
    data = DataDirectory(settings["data"])
    node = NodeSettings(**settings | read_stored_options(ctx, data.options))
    if node.checkpoint is not None and not node.follow:
        raise StoreError("--checkpoint is for followers: give --follow URL too")
    if node.follow:
        prepare_follower(data, sources=node.follow, genesis=genesis)
    if ctx.command is witness:
        prepare_witness(data, sources=node.follow)
    _configure_logging(log_file)
    _follow_parent(enabled=until_stdin_closes)
    serve(
        partial(open_follower if node.follow else open_node, node),
        host=node.host,
        port=node.port,
        ready=lambda url: print(f"AITBC node {RELEASE} at {url}", flush=True),  # noqa: T201
    )


witness = click.Command(
    "witness",
    params=run.params,
    callback=run.callback,
    help="Follow a node (--follow) and co-sign its checkpoints once they are verified here.\n\n"
    "The first start makes the witness' key, keys/witness.json, and its memory, witness.db, which "
    "is never copied, backed up or restored. Later ./aitbc run --data DIR does the same.",
)


@cli.command()
@option("--url", default=f"http://127.0.0.1:{DEFAULT_PORT}", help="Address of the node.")
@option("--key", default="", show_default=False, help="API key of role miner.")
@option(
    "--keyfile",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="The miner's signing key; it is made if missing.",
)
@option("--miner-id", default="miner-1", help="This miner's name on the node.")
@option(
    "--model",
    "models",
    multiple=True,
    help="NAME=DIR of a model to serve; repeatable. Without one the embedded model is served.",
)
@option("--threads", type=click.IntRange(0, 256), default=0, help="0: as many as there are cores.")
@log_option
@stdin_option
def miner(
    *,
    url: str,
    key: str,
    keyfile: Path,
    miner_id: str,
    models: tuple[str, ...],
    threads: int,
    log_file: Path | None,
    until_stdin_closes: bool,
) -> None:
    """Run jobs of a node on ONNX Runtime, and sign their receipts."""
    _configure_logging(log_file)
    _follow_parent(enabled=until_stdin_closes)
    signing_key = load_key(keyfile)[0] if keyfile.exists() else create_key_file(keyfile)
    cache = default_cache(os.environ)
    served = dict(_parse_model(model) for model in models)
    if not served:
        embedded = prepare_embedded_model(cache, lambda line: click.echo(line, err=True))
        served = {embedded.name: embedded.path}
    settings = MinerSettings(
        url=url,
        api_key=key,
        miner_id=miner_id,
        key=signing_key,
        models=served,
        cache=cache,
        threads=threads or os.cpu_count() or 1,
    )
    sys.exit(run_miner(settings))


@cli.command()
@click.argument("prompt")
@data_option
@url_option
@key_option
@click.option("--model", help="Model name; by default the node's default model.")
@click.option("--max-tokens", type=int, help="Most tokens to generate.")
@click.option("--temperature", type=float, help="0 to 2; 0 takes the likeliest token.")
@click.option("--top-p", type=float, help="Above 0 up to 1.")
@click.option("--seed", type=int, help="Makes the answer repeatable.")
@click.option("--wait", is_flag=True, help="Wait for the answer and print it.")
@click.option(
    "--timeout", type=float, default=300.0, show_default=True, help="Seconds to wait at most."
)
def submit(
    *,
    prompt: str,
    data: Path,
    url: str | None,
    key: str | None,
    model: str | None,
    wait: bool,
    timeout: float,
    **params: Any,
) -> None:
    """Submit a job and print its id; with --wait, print its answer and its receipt's id."""
    given = {name: value for name, value in params.items() if value is not None}
    if url is None:
        connection = _read_connection(data)
        url, key = connection.url, key or connection.client_key
    with RestClient(url, key) as client:
        job = client.submit(prompt, model=model, params=given)
        queue = job.get("queue", {})
        click.echo(job["job_id"], err=wait)
        click.echo(
            f"{job['status']}; active miners that serve {job['model']}: "
            f"{queue.get('eligible_miners', 0)}",
            err=True,
        )
        if not wait:
            return
        job = client.wait_for_job(job["job_id"], timeout_s=timeout, progress=lambda _: None)
    if job["status"] != "completed":
        raise StoreError(
            f"job {job['job_id']} {job['status']}: {job.get('error', job.get('status_reason'))}"
        )
    click.echo(job["result"])
    click.echo(f"receipt {job['receipt_id']}", err=True)


@cli.command()
@click.argument("bundle", type=click.Path(path_type=Path, dir_okay=False))
@option(
    "--genesis",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="Your own copy of the network's genesis file: what you trust.",
)
@click.option(
    "--disclosure",
    type=click.Path(path_type=Path, dir_okay=False),
    help="JSON with prompt, result and salts, to check the texts too.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as JSON.")
def verify(bundle: Path, genesis: Path, disclosure: Path | None, *, as_json: bool) -> None:
    """Verify a proof bundle or a statement bundle, claim by claim.

    Exit status 0 if all claims hold, 1 if one fails or the bundle is none, 2 if one of your own
    files is missing or malformed.
    """
    status = 2
    try:
        trusted = parse_genesis(_read_file(genesis))
        shown = parse_disclosure(_read_file(disclosure)) if disclosure else None
        data = _read_file(bundle)
        if is_statement(data) and shown is not None:
            raise click.UsageError("a disclosure is of one receipt, this is a statement of many")
        status = 1
        verdict = (
            verify_statement(data, genesis=trusted)
            if is_statement(data)
            else verify_bundle(data, genesis=trusted, disclosure=shown)
        )
    except LedgerError as error:
        click.echo(f"Error: {error}", err=True)
        if as_json:
            click.echo(msgspec.json.encode({"verified": False, "error": str(error)}))
        sys.exit(status)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(verdict)).decode())
    elif isinstance(verdict, StatementVerdict):
        print_statement(verdict)
    else:
        print_verdict(verdict)
    sys.exit(0 if verdict.verified else 1)


@cli.command()
@data_option
def fsck(data: Path) -> None:
    """Verify the whole ledger.db from genesis: every hash, signature, tree node and counter."""
    directory = DataDirectory(data)
    genesis = directory.load_genesis()
    shown = sys.stderr.isatty()

    def progress(height: int, last: int) -> None:
        if shown and (height % 100 == 0 or height == last):
            click.echo(f"\rblock {height} of {last}", nl=height == last, err=True)

    tip = verify_chain(directory.ledger, genesis, progress)
    click.echo(f"ok: {tip.height} blocks, {tip.tree_size} transactions, head {tip.hash.hex()}")


@cli.command()
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


@cli.command()
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
def network(**settings: Any) -> None:
    """Run a whole network on this machine: each node a process of its own."""
    sys.exit(run_local_network(LocalNetworkSettings(**settings)))


cli.add_command(authority)
cli.add_command(keys)
cli.add_command(checkpoint)
cli.add_command(pin)
cli.add_command(witness)


def main() -> None:
    """Entry point of `./aitbc`."""
    cli(prog_name="aitbc")


def _parse_model(text: str) -> tuple[str, Path]:
    name, separator, directory = text.partition("=")
    if not (name and separator and directory):
        raise click.BadParameter(f"expected NAME=DIR, got {text}", param_hint="--model")
    return name, Path(directory)


def _read_file(path: Path) -> bytes:
    try:
        with path.open("rb") as handle:
            data = handle.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}") from error
    if len(data) > MAX_FILE_BYTES:
        raise StoreError(f"{path}: is larger than any proof or genesis file")
    return data


class _Connection(msgspec.Struct):
    """What `submit` needs of connection.json."""

    url: str
    client_key: str


def _read_connection(data: Path) -> _Connection:
    path = DataDirectory(data).connection
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Connection)
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: there is no `aitbc up` to ask; give --url and --key") from error


def _configure_logging(path: Path | None) -> None:
    handler: logging.Handler = logging.StreamHandler()
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.handlers.RotatingFileHandler(
            path, maxBytes=LOG_BYTES, backupCount=LOG_FILES
        )
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # it tells of every request
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        handlers=[handler],
    )
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # it has a line for every request


def _follow_parent(*, enabled: bool) -> None:
    if enabled:
        threading.Thread(target=watch_parent, name="parent", daemon=True).start()
