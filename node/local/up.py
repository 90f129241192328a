"""`aitbc up`: a whole network of one on this machine, with one real job through it.

Makes the data directory if there is none, prepares the embedded model, starts a node and a miner
as processes of their own, runs a sample job, shows its receipt and verifies it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import msgspec

from ledger.block import hash_genesis
from ledger.errors import LedgerError, StoreError
from ledger.jobs import KeyRole
from ledger.proof import Disclosure, verify_bundle
from ledger.store.marketstore import MarketStore
from ledger.store.registry import find_key
from ledger.store.sessions import Connection
from miner.models.embedded import default_cache, prepare_embedded_model
from node.apikeys import authenticate, create_key, open_keys
from node.clock import read_clock_ms
from node.config import EMBEDDED_MODEL
from node.datadir import DataDirectory, create_data_directory
from node.files import write_private
from node.local.children import (
    check_alive,
    child,
    miner_command,
    read_address,
    run_interruptible,
)
from node.report import print_verdict
from node.restclient import RequestFailedError, RestClient

SAMPLE_PROMPT = "In one sentence: why is the sky blue?"
SAMPLE_PARAMS = {"max_tokens": 64, "temperature": 0.0, "top_p": 1.0, "seed": 1}
START_TIMEOUT_S = 60.0
JOB_TIMEOUT_S = 300.0
_POLL_S = 0.1
_KEYS: dict[str, KeyRole] = {"client_key": "client", "miner_key": "miner", "admin_key": "admin"}


@dataclass(frozen=True, slots=True, kw_only=True)
class UpSettings:
    """What `aitbc up` needs to know."""

    data: Path
    host: str
    port: int
    once: bool
    miner_id: str
    threads: int
    config: Path | None
    """The TOML file that was given here; the children take from it what no flag of ours says."""


def run_up(settings: UpSettings) -> int:
    """Run it all; returns the exit status."""
    return run_interruptible(lambda: _run(settings), is_endless=not settings.once)


def _run(settings: UpSettings) -> int:
    data = prepare_data(settings.data)
    model = prepare_embedded_model(default_cache(os.environ), lambda line: click.echo(f"  {line}"))
    click.echo(f"Model    {model.name} in {model.path.parent}")
    keys = prepare_keys(data, _read_connection(data))
    environment = {"AITBC_CONFIG": str(settings.config)} if settings.config else {}
    with child(_node_command(settings, data), environment) as node:
        url = read_address(node)
        environment["AITBC_KEY"] = keys["miner_key"]
        with child(_miner_command(settings, data, url), environment) as miner:
            _write_connection(data, url, keys, {"node": node.pid, "miner": miner.pid})
            click.echo(f"Node     {url}  data in {data.root}")

            def check_children() -> None:
                check_alive("node", node, data.log("node"))
                check_alive("miner", miner, data.log("miner"))

            try:
                run_sample_job(url, keys["client_key"], data, check_children)
            except LedgerError as error:
                check_children()
                raise StoreError(f"the sample job did not end well: {error}") from error
            if settings.once:
                return 0
            click.echo(f"\nExplorer {url}/    API {url}/docs    Ctrl-C stops")
            while True:
                check_children()
                time.sleep(_POLL_S)


def prepare_data(root: Path) -> DataDirectory:
    """Open the data directory, or make it with keys and genesis."""
    data = DataDirectory(root)
    if not data.genesis.exists():
        data = create_data_directory(
            root, network="aitbc-local", name="authority-1", now_ms=read_clock_ms()
        )
        click.echo(f"Made     {root} with a new key and genesis")
    data.load_genesis()
    return data


def prepare_keys(data: DataDirectory, kept: Mapping[str, Any]) -> dict[str, str]:
    """Return API keys for this node: those of the last run while they hold, else new ones."""
    genesis_hash = hash_genesis(data.load_genesis())
    with data.lock(), open_keys(data) as store:
        return {
            name: _prepare_key(store, str(kept.get(name, "")), role, genesis_hash)
            for name, role in _KEYS.items()
        }


def prepare_miner_keys(data: DataDirectory, kept: Mapping[str, str]) -> dict[str, str]:
    """Return a miner's key for each name, while the node runs: the kept ones while they hold."""
    genesis_hash = hash_genesis(data.load_genesis())
    with open_keys(data) as store:
        return {name: _prepare_key(store, key, "miner", genesis_hash) for name, key in kept.items()}


def _prepare_key(store: MarketStore, kept: str, role: KeyRole, genesis_hash: bytes) -> str:
    caller = authenticate(partial(find_key, store.reader), kept, genesis_hash=genesis_hash)
    if caller is not None and caller.role == role:
        return kept

    def create(connection: Connection) -> str:
        return create_key(
            connection,
            genesis_hash=genesis_hash,
            role=role,
            client="local" if role == "client" else None,
            now_ms=read_clock_ms(),
        )

    return store.write(create).result()


def run_sample_job(
    url: str, key: str, data: DataDirectory, check_alive: Callable[[], None]
) -> None:
    """Send one job through the node and verify its receipt with our own genesis file.

    `check_alive` raises once nobody is left who could finish the job.
    """
    with RestClient(url, key) as client:
        job = complete_sample_job(client, check_alive)
        show_receipt(client, job, data)


def complete_sample_job(client: RestClient, check_alive: Callable[[], None]) -> dict[str, Any]:
    """Send one job to a node and return it completed."""
    job = client.submit(SAMPLE_PROMPT, model=EMBEDDED_MODEL, params=SAMPLE_PARAMS)
    click.echo(f"\nJob      {job['job_id']}\nPrompt   {SAMPLE_PROMPT}")
    job = client.wait_for_job(
        job["job_id"], timeout_s=JOB_TIMEOUT_S, progress=lambda _: check_alive()
    )
    if job["status"] != "completed":
        raise RequestFailedError(
            f"job {job['job_id']} {job['status']}: {job.get('error', job['status_reason'])}"
        )
    click.echo(f"Answer   {job['result'].strip()}\n")
    return job


def show_receipt(client: RestClient, job: dict[str, Any], data: DataDirectory) -> None:
    """Wait until a node shows the job's receipt as final; print it and verify its proof."""
    receipt = client.wait_for_receipt(job["receipt_id"], timeout_s=START_TIMEOUT_S)
    click.echo(
        f"Receipt  {receipt['receipt_id']}: {receipt['units']} {receipt['unit_type']} of "
        f"{receipt['model']} for {receipt['price']} credits, final in block "
        f"{receipt['block_height']}"
    )
    # Which files answered: a GPU is given others than a processor.
    click.echo(f"         model digest {receipt['model_digest']}")
    click.echo(f"         {client.url}/receipts/{receipt['receipt_id']}")
    disclosure = Disclosure(
        prompt=job["prompt"],
        prompt_salt=job["disclosure"]["prompt_salt"],
        result=job["result"],
        result_salt=job["disclosure"]["result_salt"],
    )
    bundle = client.proof(job["receipt_id"])
    verdict = verify_bundle(bundle, genesis=data.load_genesis(), disclosure=disclosure)
    print_verdict(verdict)
    if not verdict.verified:
        raise RequestFailedError("its receipt does not verify")


# --- processes and files -------------------------------------------------------------------------


def _node_command(settings: UpSettings, data: DataDirectory) -> list[str]:
    return [
        "run",
        *("--data", str(data.root)),
        *("--host", settings.host, "--port", str(settings.port)),
        *("--default-model", EMBEDDED_MODEL),
        *("--database", ""),  # its keys and jobs stay in its directory
        *("--log-file", str(data.log("node"))),
    ]


def _miner_command(settings: UpSettings, data: DataDirectory, url: str) -> list[str]:
    return miner_command(
        url=url,
        keyfile=data.miner_key,
        miner_id=settings.miner_id,
        threads=settings.threads,
        log=data.log("miner"),
    )


def _read_connection(data: DataDirectory) -> dict[str, Any]:
    try:
        return dict(msgspec.json.decode(data.connection.read_bytes(), type=dict[str, Any]))
    except (OSError, ValueError):
        return {}


def _write_connection(
    data: DataDirectory, url: str, keys: dict[str, str], pids: dict[str, int]
) -> None:
    connection = {"url": url, **keys, "genesis": str(data.genesis.resolve()), "pids": pids}
    write_private(data.connection, msgspec.json.format(msgspec.json.encode(connection)) + b"\n")
