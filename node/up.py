"""`aitbc up`: a whole network of one on this machine, with one real job through it.

Makes the data directory if there is none, prepares the embedded model, starts a node and a miner
as processes of their own, runs a sample job, shows its receipt and verifies it. The children's
standard input is a pipe from here: should this process die, they end too.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import msgspec

from ledger.block import hash_genesis
from ledger.errors import LedgerError, StoreError
from ledger.jobs import KeyRole
from ledger.proof import Disclosure, verify_bundle
from ledger.store.database import Database
from ledger.store.market import open_market
from miner.models.embedded import default_cache, prepare_embedded_model
from node.apikeys import authenticate, create_key
from node.assembly import read_clock_ms
from node.config import EMBEDDED_MODEL
from node.datadir import DataDirectory, create_data_directory, write_private
from node.report import print_verdict
from node.restclient import RequestFailedError, RestClient

SAMPLE_PROMPT = "In one sentence: why is the sky blue?"
SAMPLE_PARAMS = {"max_tokens": 64, "temperature": 0.0, "top_p": 1.0, "seed": 1}
START_TIMEOUT_S = 60.0
JOB_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 20.0
INTERRUPTED = 130
"""Exit status of a run that was to end by itself; what a shell gives for SIGINT."""
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


class Interrupted(BaseException):
    """SIGTERM or SIGINT arrived."""


def run_up(settings: UpSettings) -> int:
    """Run it all; returns the exit status."""
    _raise_on_signals()
    try:
        return _run(settings)
    except Interrupted:
        click.echo("Stopped.")
        return INTERRUPTED if settings.once else 0


def _run(settings: UpSettings) -> int:
    data = prepare_data(settings.data)
    model = prepare_embedded_model(default_cache(os.environ), lambda line: click.echo(f"  {line}"))
    click.echo(f"Model    {model.name} ({model.digest[:16]}…) in {model.path}")
    keys = prepare_keys(data)
    environment = {"AITBC_CONFIG": str(settings.config)} if settings.config else {}
    with _child(_node_command(settings, data), environment) as node:
        url = _read_address(node)
        environment["AITBC_KEY"] = keys["miner_key"]
        with _child(_miner_command(settings, data, url, model.path), environment) as miner:
            _write_connection(data, url, keys, {"node": node.pid, "miner": miner.pid})
            click.echo(f"Node     {url}  data in {data.root}")
            try:
                run_sample_job(url, keys["client_key"], data, lambda: _check_alive(node, miner))
            except LedgerError as error:
                _check_alive(node, miner)
                raise StoreError(f"the sample job did not end well: {error}") from error
            if settings.once:
                return 0
            click.echo(f"\nExplorer {url}/    API {url}/openapi.json    Ctrl-C stops")
            while True:
                _check_alive(node, miner)
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


def prepare_keys(data: DataDirectory) -> dict[str, str]:
    """Return API keys for this node: those of the last run while they hold, else new ones."""
    genesis_hash = hash_genesis(data.load_genesis())
    kept = _read_connection(data)
    with data.lock():
        store = open_market(data.market, genesis_hash)
        try:
            return {
                name: _prepare_key(store, str(kept.get(name, "")), role, genesis_hash)
                for name, role in _KEYS.items()
            }
        finally:
            store.close()


def _prepare_key(store: Database, kept: str, role: KeyRole, genesis_hash: bytes) -> str:
    caller = authenticate(store.reader, kept, genesis_hash=genesis_hash)
    if caller is not None and caller.role == role:
        return kept

    def create(connection: sqlite3.Connection) -> str:
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
        job = client.submit(SAMPLE_PROMPT, model=EMBEDDED_MODEL, params=SAMPLE_PARAMS)
        click.echo(f"\nJob      {job['job_id']}\nPrompt   {SAMPLE_PROMPT}")
        job = client.wait_for_job(
            job["job_id"], timeout_s=JOB_TIMEOUT_S, progress=lambda _: check_alive()
        )
        if job["status"] != "completed":
            raise RequestFailedError(
                f"job {job['job_id']} {job['status']}: {job.get('error', job['status_reason'])}"
            )
        receipt = client.wait_for_receipt(job["receipt_id"], timeout_s=START_TIMEOUT_S)
        bundle = client.proof(job["receipt_id"])
    click.echo(f"Answer   {job['result'].strip()}\n")
    click.echo(
        f"Receipt  {receipt['receipt_id']}: {receipt['units']} {receipt['unit_type']} of "
        f"{receipt['model']} for {receipt['price']} credits, final in block "
        f"{receipt['block_height']}"
    )
    click.echo(f"         {url}/receipts/{receipt['receipt_id']}")
    disclosure = Disclosure(
        prompt=job["prompt"],
        prompt_salt=job["disclosure"]["prompt_salt"],
        result=job["result"],
        result_salt=job["disclosure"]["result_salt"],
    )
    verdict = verify_bundle(bundle, genesis=data.load_genesis(), disclosure=disclosure)
    print_verdict(verdict)
    if not verdict.verified:
        raise RequestFailedError("its receipt does not verify")


# --- processes ----------------------------------------------------------------------------------


@contextmanager
def _child(command: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """Run a child in a session of its own, so that Ctrl-C reaches it through us, in order."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **environment},
        start_new_session=True,
        text=True,
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()


def _node_command(settings: UpSettings, data: DataDirectory) -> list[str]:
    return [
        *(sys.executable, "-m", "node", "run"),
        *("--data", str(data.root)),
        *("--host", settings.host, "--port", str(settings.port)),
        *("--default-model", EMBEDDED_MODEL),
        *("--log-file", str(data.root / "logs" / "node.log")),
        "--until-stdin-closes",
    ]


def _miner_command(settings: UpSettings, data: DataDirectory, url: str, model: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "node", "miner"),
        *("--url", url),
        *("--keyfile", str(data.miner_key)),
        *("--miner-id", settings.miner_id),
        *("--model", f"{EMBEDDED_MODEL}={model}"),
        *("--threads", str(settings.threads)),
        *("--log-file", str(data.root / "logs" / "miner.log")),
        "--until-stdin-closes",
    ]


def _read_address(node: subprocess.Popen[str]) -> str:
    """The node's first line of output ends in its address; it comes once the socket listens."""
    assert node.stdout is not None
    line = node.stdout.readline().strip()
    if not line:
        node.wait()
        raise click.exceptions.Exit(1)  # the node has said why, in one line
    return line.rsplit(" ", 1)[-1]


def _check_alive(node: subprocess.Popen[str], miner: subprocess.Popen[str]) -> None:
    for name, process in (("node", node), ("miner", miner)):
        if process.poll() is not None:
            raise StoreError(
                f"the {name} ended by itself (exit {process.returncode}); see logs/{name}.log in "
                "the data directory"
            )


def _raise_on_signals() -> None:
    def interrupt(_number: int, _frame: object) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        raise Interrupted

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)


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
