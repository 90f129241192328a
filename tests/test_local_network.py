"""`aitbc network` as its users run it, and what must hold whatever happens to its nodes."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from ledger.errors import StoreError
from ledger.store.fsck import verify_chain
from ledger.store.registry import list_keys
from node.apikeys import open_keys
from node.datadir import DataDirectory
from node.local.children import Interrupted
from node.local.network import (
    LocalNetworkSettings,
    NodeEntry,
    give_miner_keys,
    note_ended,
    prepare_directories,
    run_local_network,
)
from node.local.ports import FIRST_PORT, HOST, LAST_PORT, choose_ports
from scripts.local_network import LocalNetwork

ROOT = Path(__file__).parent.parent
TIMEOUT_S = 180


def settings(data: Path, **changes) -> LocalNetworkSettings:
    fields = {
        "data": data,
        "authorities": 2,
        "followers": 1,
        "miners": 0,
        "base_port": 0,
        "once": False,
    }
    return LocalNetworkSettings(**fields | changes)


def verify(data: str) -> tuple[int, str]:
    directory = DataDirectory(Path(data))
    tip = verify_chain(directory.ledger, directory.load_genesis(), lambda _height, _last: None)
    return tip.tree_size, tip.hash.hex()


def test_once_runs_a_job_that_every_node_shows_as_final(tmp_path, embedded_model):
    del embedded_model  # in the cache, so that nothing is downloaded here
    root = tmp_path / "network"
    command = [sys.executable, "-m", "node", "network", "--data", str(root), "--base-port", "0"]
    done = subprocess.run(
        [*command, "--authorities", "4", "--followers", "1", "--miners", "1", "--once"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    nodes = json.loads((root / "network.json").read_text())["nodes"]
    assert [node["role"] for node in nodes] == ["authority"] * 4 + ["follower"]
    for node in nodes:
        assert f"final on {node['name']} in block 1" in done.stdout
        assert all(node[key].startswith("aik_") for key in ("client_key", "miner_key", "admin_key"))
    assert [list(node["miner_keys"]) for node in nodes].count(["miner-1"]) == 1
    assert "does not propose the next block" in done.stdout
    assert "3 of 4 authorities signed" in done.stdout or "4 of 4 authorities signed" in done.stdout
    assert len({verify(node["data"]) for node in nodes}) == 1
    # The file holds keys.
    assert stat.S_IMODE((root / "network.json").stat().st_mode) == 0o600


def test_a_network_is_started_with_as_many_nodes_as_it_has(tmp_path):
    root = tmp_path / "network"
    (root / "authority-1").mkdir(parents=True)
    (root / "authority-1" / "genesis.json").write_text("{}")
    with pytest.raises(StoreError, match=r"holds authority-1; start it with as many"):
        run_local_network(settings(root))


@pytest.mark.parametrize("moves", [0, 1, 2, 3])
def test_a_network_whose_making_was_cut_off_is_there_whole_or_not_at_all(
    tmp_path, monkeypatch, moves
):
    """`moves`: how many renames of whole directories happen before the end."""
    root = tmp_path / "network"
    done = []

    def replace(path: Path, target: Path) -> Path:
        if path.parent in {root, root / ".made"}:
            if len(done) == moves:
                raise Interrupted
            done.append(target)
        return path.rename(target)

    with monkeypatch.context() as cut:
        cut.setattr(Path, "replace", replace)
        with pytest.raises(Interrupted):
            prepare_directories(settings(root))
    assert len(done) == moves
    directories = prepare_directories(settings(root))
    assert {d.root.name for d in directories} == {"authority-1", "authority-2", "follower-1"}
    assert sorted(path.name for path in root.iterdir()) == sorted(d.root.name for d in directories)
    assert len({d.genesis.read_bytes() for d in directories}) == 1
    assert all(d.options.exists() for d in directories)


def test_miners_of_one_authority_have_keys_of_their_own_and_keep_them(tmp_path):
    (data,) = prepare_directories(settings(tmp_path, authorities=1, followers=0))
    keys = {"client_key": "", "miner_key": "", "admin_key": ""}
    node = NodeEntry(
        name="authority-1", role="authority", url="", pid=0, data=str(data.root), **keys
    )
    first = give_miner_keys(node, 0, {"miner-1": 0, "miner-2": 0, "miner-3": 1}, {}).miner_keys
    assert list(first) == ["miner-1", "miner-2"]
    with open_keys(data) as store:
        assert {(key.role, key.prefix) for key in list_keys(store.reader)} == {
            ("miner", key.split("_")[1]) for key in first.values()
        }
    known = {"miner_keys": first}
    again = give_miner_keys(node, 0, {"miner-1": 1, "miner-2": 0, "miner-3": 0}, known).miner_keys
    assert {name: again[name] for name in first} == first
    assert len(set(again.values())) == 3
    assert give_miner_keys(node, 0, {"miner-1": 1}, known).miner_keys == first


def test_a_directory_with_something_in_it_is_not_made_part_of_a_network(tmp_path):
    root = tmp_path / "network"
    (root / "follower-1").mkdir(parents=True)
    (root / "follower-1" / "mine.txt").write_text("mine")
    with pytest.raises(StoreError, match="follower-1: is not an empty directory"):
        prepare_directories(settings(root))
    assert [path.name for path in root.iterdir()] == ["follower-1"]


def test_a_port_in_use_is_told_before_anything_is_made(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StoreError, match=f"port {port}: .*choose another --base-port"):
            prepare_directories(settings(tmp_path, base_port=port))
    assert list(tmp_path.iterdir()) == []


def test_a_job_needs_a_miner(tmp_path):
    with pytest.raises(StoreError, match="--miners 1 or more"):
        run_local_network(settings(tmp_path / "network", once=True))
    assert not (tmp_path / "network").exists()


def test_a_network_whose_parent_is_killed_ends_with_it(tmp_path):
    """Its standard input closes; nobody is left who would stop it."""
    network = LocalNetwork(tmp_path / "network", authorities=1, followers=0)
    with network.run():
        network.abandon()
        network.wait_until_ended("authority-1")


def test_of_a_node_that_has_ended_it_is_said_how_to_start_it_again(tmp_path, capsys):
    running, children = {}, {}
    try:
        for name, code in (("authority-1", "input()"), ("authority-2", ""), ("miner-1", "")):
            command = [sys.executable, "-c", code]
            children[name] = subprocess.Popen(command, stdin=subprocess.PIPE, text=True)
        running.update(children)
        prepare_directories(settings(tmp_path))
        for name in ("authority-2", "miner-1"):
            children[name].wait(TIMEOUT_S)
        note_ended(running, tmp_path)
        assert list(running) == ["authority-1"]
        lines = capsys.readouterr().out.splitlines()
        assert [line for line in lines if "ended" in line or "again" in line] == [
            "authority-2 ended (exit 0); the others go on",
            f"  start it again: ./aitbc run --data {tmp_path / 'authority-2'}",
            "miner-1 ended (exit 0); the others go on",
        ]
    finally:
        for process in children.values():
            process.communicate("\n", timeout=TIMEOUT_S)


def test_ports_are_free_distinct_and_none_that_a_connection_might_take():
    ports = choose_ports(0, 50)
    assert len(set(ports)) == 50
    assert all(FIRST_PORT <= port <= LAST_PORT for port in ports)
    with (
        socket.create_server((HOST, ports[0])),
        pytest.raises(StoreError, match="choose another --base-port"),
    ):
        choose_ports(ports[0], 1)
