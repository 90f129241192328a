"""`aitbc up` as its users run it: real processes, the real model, a real job."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import stat
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from ledger.store.fsck import verify_chain
from node.datadir import DataDirectory

ROOT = Path(__file__).parent.parent
TIMEOUT_S = 120


def command(data: Path, *arguments: str, port: int = 0, config: Path | None = None) -> list[str]:
    return [
        *(sys.executable, "-m", "node"),
        *(("--config", str(config)) if config else ()),
        *("up", "--data", str(data), "--port", str(port)),
        *("--threads", "1"),
        *arguments,
    ]


@pytest.fixture
def environment(embedded_model):
    """The model is in the cache, so that nothing is downloaded here."""
    del embedded_model
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def run_once(data: Path, environment, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(data, "--once", **options),
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )


@contextmanager
def serving(data: Path, environment, *arguments: str, until: str = "Explorer"):
    """A running `up` that has said so much; killed at the end if need be."""
    process = subprocess.Popen(
        command(data, *arguments),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(until):
                break
        else:
            raise AssertionError("up ended before it served")
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(TIMEOUT_S)
        process.stdout.close()


def has_ended(pid: int) -> bool:
    """A process that is gone, or a zombie that nobody has asked for."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"


def wait_for_end(pid: int) -> None:
    """Block until a process that is not our child has ended."""
    with suppress(ProcessLookupError):
        descriptor = os.pidfd_open(pid)
        try:
            ready, _, _ = select.select([descriptor], [], [], TIMEOUT_S)
            assert ready, f"process {pid} goes on"
        finally:
            os.close(descriptor)


def read_connection(data: Path) -> dict:
    return json.loads((data / "connection.json").read_text())


def test_one_command_runs_a_job_and_verifies_its_receipt_and_a_second_one_goes_on(
    tmp_path, environment
):
    data = tmp_path / "data"
    first = run_once(data, environment)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "The sky is blue" in first.stdout
    assert "FAILED" not in first.stdout
    assert first.stdout.count(" verified ") >= 10
    connection = read_connection(data)
    assert set(connection) == {"url", "client_key", "miner_key", "admin_key", "genesis", "pids"}
    assert stat.S_IMODE((data / "connection.json").stat().st_mode) == 0o600
    assert Path(connection["genesis"]).read_bytes() == (data / "genesis.json").read_bytes()
    assert all(has_ended(pid) for pid in connection["pids"].values())

    config = tmp_path / "aitbc.toml"
    config.write_text("price_token_micros = 1000000")
    second = run_once(data, environment, config=config)
    assert second.returncode == 0, second.stdout + second.stderr
    assert "69 tokens of smollm2:135m for 69 credits" in second.stdout  # the node read it too
    again = read_connection(data)
    assert [again[key] for key in ("client_key", "miner_key", "admin_key")] == [
        connection[key] for key in ("client_key", "miner_key", "admin_key")
    ]
    paths = DataDirectory(data)
    tip = verify_chain(paths.ledger, paths.load_genesis(), lambda _height, _last: None)
    assert (tip.height, tip.tree_size) == (2, 2)


def test_interrupted_it_stops_its_children_and_ends_well(tmp_path, environment):
    data = tmp_path / "data"
    with serving(data, environment) as process:
        pids = read_connection(data)["pids"].values()
        assert not any(has_ended(pid) for pid in pids)
        process.send_signal(signal.SIGINT)
        assert process.wait(TIMEOUT_S) == 0
        assert all(has_ended(pid) for pid in pids)


def test_killed_it_takes_its_children_along(tmp_path, environment):
    data = tmp_path / "data"
    with serving(data, environment) as process:
        pids = list(read_connection(data)["pids"].values())
        process.kill()
        try:
            for pid in pids:
                wait_for_end(pid)
        finally:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def test_a_run_of_one_job_that_is_interrupted_is_no_success(tmp_path, environment):
    with serving(tmp_path / "data", environment, "--once", until="Prompt") as process:
        process.send_signal(signal.SIGTERM)
        assert process.wait(TIMEOUT_S) == 130


def test_a_miner_that_dies_is_not_waited_for(tmp_path, environment):
    data = tmp_path / "data"
    with serving(data, environment, "--once", until="Prompt") as process:
        pids = read_connection(data)["pids"]
        os.kill(pids["miner"], signal.SIGKILL)
        assert process.wait(TIMEOUT_S) == 1
        assert "Error: the miner ended by itself (exit -9)" in process.stdout.read()
        assert has_ended(pids["node"])


def test_a_port_in_use_is_one_clear_line(tmp_path, environment):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = subprocess.run(
            command(tmp_path / "data", "--once", port=port),
            env=environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
    assert ended.returncode == 1
    assert len(ended.stderr.splitlines()) == 1, ended.stderr
    assert f"port {port}" in ended.stderr
    assert "--port" in ended.stderr
