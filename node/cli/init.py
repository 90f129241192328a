"""`aitbc init`: the data directory of an authority, of a new network or to join one."""

from __future__ import annotations

from pathlib import Path

import click
from click.core import ParameterSource

from ledger.block import hash_genesis, parse_genesis
from node.cli.options import data_option, file_type, option
from node.clock import read_clock_ms
from node.datadir import create_data_directory, create_joining_directory, load_key
from node.files import load_document
from node.p2p.address import parse_url


@click.command()
@data_option
@option("--network", default="aitbc-local", help="Name of the network: a-z, 0-9 and hyphens.")
@option("--name", default="authority-1", help="This authority's name, as the explorer shows it.")
@click.option(
    "--url", default="", help="Where other nodes will reach this one, if there will be any."
)
@click.option(
    "--genesis",
    type=file_type,
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
        is_named = ctx.get_parameter_source("name") is not ParameterSource.DEFAULT
        _join(data, genesis, name=name if is_named else "NAME", url=url)
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
    document = load_document(genesis, parse_genesis)
    made = create_joining_directory(data, document)
    account = load_key(made.authority_key)[0].account
    click.echo(f"Made {data}: network {document.network}, new account {account}")
    click.echo(
        "It has no vote yet. An authority proposes it, a quorum signs, and so does this key:\n"
        f"  ./aitbc authority propose --add {name}={account}={url or 'URL'}\n"
        f"  ./aitbc authority sign change.json --data {data} --url URL"
    )
