"""`aitbc network`: a whole network of several authorities on this machine.

    DIR/network.json        who there is: role, address, process, data directory, API keys
    DIR/authority-N/        the data directory of an authority; any of them can be stopped, and
                            started again alone with `aitbc run --data DIR/authority-N`
    DIR/follower-N/         that of a follower
    DIR/miner-N/            key and log of a miner

Every node is a process of its own and talks to the others over HTTP, as on machines apart.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import click
import msgspec

from ledger.errors import StoreError
from ledger.store.database import sync_directory
from miner.models.embedded import default_cache, prepare_embedded_model
from node.clock import read_clock_ms
from node.config import EMBEDDED_MODEL, format_options
from node.datadir import (
    DataDirectory,
    Founder,
    create_follower_directory,
    create_network,
)
from node.files import write_private
from node.local.children import (
    check_alive,
    child,
    miner_command,
    read_address,
    run_interruptible,
)
from node.local.ports import HOST, choose_ports
from node.local.up import (
    START_TIMEOUT_S,
    complete_sample_job,
    prepare_keys,
    prepare_miner_keys,
    show_receipt,
)
from node.restclient import RestClient

_POLL_S = 0.2
_DRAFT = ".new"
"""What a network is made in; one that a start has left is made anew."""
_MADE = ".made"
"""What it is called once it is whole, until its directories are in their places."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalNetworkSettings:
    """What `aitbc network` needs to know."""

    data: Path
    authorities: int
    followers: int
    miners: int
    base_port: int
    """0 lets the system choose the ports."""
    once: bool


class NodeEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One node in network.json."""

    name: str
    role: Literal["authority", "follower"]
    url: str
    pid: int
    data: str
    client_key: str
    miner_key: str
    """For a miner of one's own; those of this network do not use it."""
    admin_key: str
    miner_keys: dict[str, str] = {}
    """Those of this network's miners that work for it, or did, by their names. Each has its own:
    miners of one key count as one operator's, and never audit each other."""


class NetworkFile(msgspec.Struct, frozen=True, kw_only=True):
    """network.json, readable by its owner alone."""

    genesis: str
    """Path of the genesis file."""
    nodes: tuple[NodeEntry, ...]


def run_local_network(settings: LocalNetworkSettings) -> int:
    """Run it all; returns the exit status."""
    return run_interruptible(lambda: _run(settings), is_endless=not settings.once)


def _run(settings: LocalNetworkSettings) -> int:
    if settings.once and not settings.miners:
        raise StoreError("--once runs a job, which needs a miner: give --miners 1 or more")
    if settings.miners:
        _prepare_model()
    known = _read_network_file(settings.data)
    directories = prepare_directories(settings)
    keys = {d.root.name: prepare_keys(d, known.get(d.root.name, {})) for d in directories}
    with ExitStack() as stack:
        running = {
            directory.root.name: stack.enter_context(child(_node_command(directory), {}))
            for directory in directories
        }
        nodes = tuple(_describe(d, running[d.root.name], keys[d.root.name]) for d in directories)
        hosts = _choose_hosts(nodes, settings.miners)
        nodes = tuple(
            give_miner_keys(node, number, hosts, known.get(node.name, {}))
            for number, node in enumerate(nodes)
        )
        genesis = str(directories[0].genesis.resolve())
        _write_network_file(settings.data, NetworkFile(genesis=genesis, nodes=nodes))
        for node in nodes:
            click.echo(f"{node.name:<14} {node.url}  pid {node.pid}  data in {node.data}")
        for name, number in hosts.items():
            command = _miner_command(settings.data / name, nodes[number], name)
            key = nodes[number].miner_keys[name]
            running[name] = stack.enter_context(child(command, {"AITBC_KEY": key}))
            click.echo(f"{name:<14} of {nodes[number].name}  pid {running[name].pid}")
        if settings.once:
            _run_job(nodes[hosts["miner-1"]], nodes, running, settings.data)
            return 0
        click.echo(f"\nExplorer {nodes[0].url}/    {_network_file(settings.data)}    Ctrl-C stops")
        while True:
            note_ended(running, settings.data)
            time.sleep(_POLL_S)


def _node_command(directory: DataDirectory) -> list[str]:
    return ["run", "--data", str(directory.root), "--log-file", str(directory.log("node"))]


def _prepare_model() -> None:
    """Fetch the embedded model once, before all miners want it."""
    prepare_embedded_model(default_cache(os.environ), lambda line: click.echo(f"  {line}"))


# --- data directories ---------------------------------------------------------------------------


def prepare_directories(settings: LocalNetworkSettings) -> list[DataDirectory]:
    """Open the nodes' directories, or make them."""
    _settle(settings.data)
    authorities = [settings.data / f"authority-{i + 1}" for i in range(settings.authorities)]
    followers = [settings.data / f"follower-{i + 1}" for i in range(settings.followers)]
    found = sorted(path.parent.name for path in settings.data.glob("*-*/genesis.json"))
    wanted = sorted(path.name for path in (*authorities, *followers))
    if not found:
        return _create_directories(settings, authorities, followers)
    if found != wanted:
        raise StoreError(
            f"{settings.data}: holds {', '.join(found)}; start it with as many authorities and "
            "followers as it has, or choose another --data"
        )
    return [DataDirectory(root) for root in (*authorities, *followers)]


def _create_directories(
    settings: LocalNetworkSettings, authorities: list[Path], followers: list[Path]
) -> list[DataDirectory]:
    """Make them all beside their places: the network is there whole, or not at all."""
    for root in (*authorities, *followers):
        if root.exists() and (not root.is_dir() or any(root.iterdir())):
            raise StoreError(f"{root}: is not an empty directory; choose another --data")
    draft = settings.data / _DRAFT
    shutil.rmtree(draft, ignore_errors=True)
    try:
        _fill(draft, settings, [r.name for r in authorities], [r.name for r in followers])
        draft.replace(settings.data / _MADE)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    _settle(settings.data)
    return [DataDirectory(root) for root in (*authorities, *followers)]


def _fill(
    draft: Path, settings: LocalNetworkSettings, authorities: list[str], followers: list[str]
) -> None:
    ports = choose_ports(settings.base_port, len(authorities) + len(followers))
    urls = [f"http://{HOST}:{port}" for port in ports]
    founders = [
        Founder(root=draft / name, name=name, url=url)
        for name, url in zip(authorities, urls, strict=False)
    ]
    made = create_network(founders, network="aitbc-local", now_ms=read_clock_ms())
    genesis = made[0].load_genesis()
    made += [create_follower_directory(draft / name, genesis) for name in followers]
    for directory, port in zip(made, ports, strict=True):
        options: dict[str, str | int | list[str]] = {
            "host": HOST,
            "port": port,
            "default_model": EMBEDDED_MODEL,
        }
        if directory.root.name in followers:
            options["follow"] = urls[: len(authorities)]
        write_private(directory.options, format_options(options))


def _settle(root: Path) -> None:
    """Move a network that was made whole to its place, also after a start that was cut off."""
    made = root / _MADE
    if made.is_dir():
        for directory in sorted(made.iterdir()):
            directory.replace(root / directory.name)
        made.rmdir()
        sync_directory(root)


# --- network.json -------------------------------------------------------------------------------


def _network_file(root: Path) -> Path:
    return root / "network.json"


def _read_network_file(root: Path) -> dict[str, Mapping[str, Any]]:
    """Return what is known of the nodes of an earlier run, by name."""
    try:
        known = msgspec.json.decode(_network_file(root).read_bytes(), type=NetworkFile)
    except (OSError, ValueError):
        return {}
    return {node.name: msgspec.to_builtins(node) for node in known.nodes}


def _write_network_file(root: Path, network: NetworkFile) -> None:
    write_private(_network_file(root), msgspec.json.format(msgspec.json.encode(network)) + b"\n")


def _describe(
    directory: DataDirectory, process: subprocess.Popen[str], keys: Mapping[str, str]
) -> NodeEntry:
    return NodeEntry(
        name=directory.root.name,
        role="authority" if directory.authority_key.exists() else "follower",
        url=read_address(process),
        pid=process.pid,
        data=str(directory.root.resolve()),
        client_key=keys["client_key"],
        miner_key=keys["miner_key"],
        admin_key=keys["admin_key"],
    )


# --- miners and the job -------------------------------------------------------------------------


def _choose_hosts(nodes: tuple[NodeEntry, ...], miners: int) -> dict[str, int]:
    """Return each miner's authority, as its place among the nodes.

    The first miner's is one that does not propose the next block.
    """
    authorities = [number for number, node in enumerate(nodes) if node.role == "authority"]
    with RestClient(nodes[authorities[0]].url) as client:
        height = int(client.health()["height"])
    first = (height + 2) % len(authorities)  # member (h + v) mod n proposes height h in view v
    return {f"miner-{i + 1}": authorities[(first + i) % len(authorities)] for i in range(miners)}


def give_miner_keys(
    node: NodeEntry, number: int, hosts: Mapping[str, int], known: Mapping[str, Any]
) -> NodeEntry:
    """Add a key for each miner that works for a node to those of earlier runs."""
    kept: dict[str, str] = known.get("miner_keys", {})
    names = [name for name, host in hosts.items() if host == number]
    if not names:
        return msgspec.structs.replace(node, miner_keys=kept)
    data = DataDirectory(Path(node.data))
    keys = prepare_miner_keys(data, {name: kept.get(name, "") for name in names})
    return msgspec.structs.replace(node, miner_keys={**kept, **keys})


def _miner_command(root: Path, host: NodeEntry, miner_id: str) -> list[str]:
    return miner_command(
        url=host.url,
        keyfile=root / "miner.json",
        miner_id=miner_id,
        threads=1,
        log=root / "miner.log",
    )


def _run_job(
    host: NodeEntry,
    nodes: tuple[NodeEntry, ...],
    running: Mapping[str, subprocess.Popen[str]],
    root: Path,
) -> None:
    """Run a job through one node, and wait until every node shows its receipt as final."""

    def check_all() -> None:
        for name, process in running.items():
            check_alive(name, process, root / name)

    click.echo(f"\nThrough  {host.name}, which does not propose the next block")
    with RestClient(host.url, host.client_key) as client:
        job = complete_sample_job(client, check_all)
        show_receipt(client, job, DataDirectory(Path(host.data)))
    for node in nodes:
        with RestClient(node.url) as client:
            receipt = client.wait_for_receipt(
                job["receipt_id"], timeout_s=START_TIMEOUT_S, may_be_unknown=True
            )
        click.echo(f"  final on {node.name} in block {receipt['block_height']}")


def note_ended(running: dict[str, subprocess.Popen[str]], root: Path) -> None:
    """Tell of every process that has ended, and how a node is started again; the others go on."""
    for name, process in list(running.items()):
        if process.poll() is not None:
            del running[name]
            click.echo(f"{name} ended (exit {process.returncode}); the others go on")
            if DataDirectory(root / name).genesis.exists():
                click.echo(f"  start it again: ./aitbc run --data {root / name}")
