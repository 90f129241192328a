"""A follower as a process of its own, behind a real node that runs jobs."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ledger.block import parse_genesis
from ledger.proof import verify_bundle
from ledger.store.fsck import verify_chain
from tests.caller import Caller
from tests.live import ROOT, LiveFollower, LiveNode


@pytest.fixture
def node(tmp_path):
    live = LiveNode(tmp_path / "node", "--mode", "dev")
    live.key = live.create_key("admin")
    live.start()
    yield live
    live.stop()


@pytest.fixture
def follower(tmp_path, node):
    live = LiveFollower(tmp_path / "follower", node)
    yield live
    live.kill()


def test_jobs_of_a_node_are_final_and_provable_on_its_follower(node, follower):
    with Caller(node.url, node.key) as coordinator:
        first = coordinator.finish_job()
        coordinator.wait_for_block(1)
        follower.start()
        with Caller(follower.url) as caller:
            caller.wait_for_block(1)
            second = coordinator.finish_job()
            caller.wait_for_block(2)
            for receipt_id in (first, second):
                path = f"/v1/receipts/{receipt_id}"
                assert caller.get(path).json()["status"] == "final"
                bundle = caller.get(f"{path}/proof").content
                assert bundle == coordinator.get(f"{path}/proof").content
                genesis = parse_genesis(node.data.genesis.read_bytes())
                assert verify_bundle(bundle, genesis=genesis).verified
                assert caller.get(f"/receipts/{receipt_id}").status_code == 200
            health = caller.get("/health").json()
            assert (health["height"], health["sync"]["state"]) == (2, "idle")
            assert health["sync"]["source"] == node.url
            assert caller.get("/").status_code == 200


def test_a_follower_refuses_what_belongs_to_a_coordinator_and_names_one(node, follower):
    follower.start()
    with Caller(follower.url, key="aik_of_another_node") as caller:
        for answer in (
            caller.post("/v1/jobs", prompt="Why?"),
            caller.get("/v1/jobs/job_00000000000000000000000000"),
            caller.get("/v1/jobs/available?miner_id=m1"),
            caller.post("/v1/miners/register", miner_id="m1", capabilities=["*"]),
            caller.http.post("/v1/jobs/x/claim", content=b"no json"),
            caller.post("/v1/chat/completions", messages=[]),
            caller.post("/v1/completions", prompt="Why?"),
            caller.get("/v1/models"),
            caller.get("/v1/models/org/name:7b"),
        ):
            assert (answer.status_code, answer.json()["error_code"]) == (421, "NODE_IS_FOLLOWER")
            assert node.url in answer.json()["detail"]
        assert answer.json()["error"]["code"] == "node_is_follower", "as these clients read it"
        assert caller.get("/v1/receipts").json() == []
        assert caller.get("/v1/genesis").content + b"\n" == node.data.genesis.read_bytes()
    assert not follower.data.authority_key.exists()
    assert not follower.data.votes.exists()


def test_a_follower_that_was_killed_goes_on_from_its_data_directory_alone(node, follower):
    with Caller(node.url, node.key) as coordinator:
        coordinator.finish_job()
        follower.start()
        with Caller(follower.url) as caller:
            caller.wait_for_block(1)
        follower.kill()
        coordinator.finish_job()
        coordinator.wait_for_block(2)
        follower.forget_arguments()
        follower.start()
        with Caller(follower.url) as caller:
            caller.wait_for_block(2)
        assert follower.stop() == 0
    assert node.stop() == 0
    genesis = node.data.load_genesis()
    tips = [verify_chain(n.data.ledger, genesis, lambda *_: None) for n in (node, follower)]
    assert tips[0] == tips[1]


def test_a_follower_of_followers_serves_blocks_too(tmp_path, node, follower):
    with Caller(node.url, node.key) as coordinator:
        coordinator.finish_job()
    follower.start()
    second = LiveFollower(tmp_path / "second", follower)
    second.start()
    try:
        with Caller(second.url) as caller:
            caller.wait_for_block(1)
            assert caller.get("/health").json()["sync"]["source"] == follower.url
    finally:
        second.stop()


def write_pin(node: LiveNode, path: Path) -> Path:
    """What `./aitbc pin` prints beside a running node."""
    result = subprocess.run(
        [sys.executable, "-m", "node", "pin", "--data", str(node.data.root)],
        cwd=ROOT,
        capture_output=True,
        timeout=60,
        check=True,
    )
    path.write_bytes(result.stdout)
    return path


def test_a_follower_begins_at_a_checkpoint_and_has_the_whole_history_in_the_end(tmp_path, node):
    with Caller(node.url, node.key) as coordinator:
        for height in (1, 2, 3):
            coordinator.finish_job()
            coordinator.wait_for_block(height)
        pin = write_pin(node, tmp_path / "pin.json")
        coordinator.finish_job()
        coordinator.wait_for_block(4)
    follower = LiveFollower(tmp_path / "follower", node, "--checkpoint", str(pin))
    for _ in range(2):  # the second start, with the same options, changes nothing
        follower.start()
        try:
            with Caller(follower.url) as caller:
                caller.wait_for_block(4)
                while "missing" in caller.get("/health").json():
                    pass
                assert len(caller.get("/v1/receipts").json()) == 4
        finally:
            follower.stop()
    node.stop()
    genesis = node.data.load_genesis()
    tips = [verify_chain(n.data.ledger, genesis, lambda *_: None) for n in (node, follower)]
    assert tips[0] == tips[1]


def test_while_history_is_missing_a_follower_says_so_everywhere(tmp_path, node):
    with Caller(node.url, node.key) as coordinator:
        old = coordinator.finish_job()
        coordinator.wait_for_block(1)
        pin = write_pin(node, tmp_path / "pin.json")
    node.stop()  # so nobody has the history
    follower = LiveFollower(tmp_path / "follower", node, "--checkpoint", str(pin))
    follower.start()
    try:
        with Caller(follower.url) as caller:
            health = caller.get("/health").json()
            assert (health["height"], health["missing"]) == (1, {"from": 1, "to": 1})
            unknown = caller.get(f"/v1/receipts/{old}")
            assert unknown.status_code == 404
            assert "still fetches the history of blocks 1 to 1" in unknown.json()["detail"]
            page = caller.get(f"/receipts/{old}")
            assert page.status_code == 404
            assert "not found yet" in page.text
            assert "History of blocks #1 to #1 still being fetched" in page.text
            refused = caller.get("/v1/consistency?from=0")
            assert (refused.status_code, refused.json()["error_code"]) == (503, "HISTORY_MISSING")
            network = caller.get("/network")
            assert network.status_code == 503
            assert "still fetches the history" in network.text
    finally:
        follower.stop()
    result = subprocess.run(
        [sys.executable, "-m", "node", "fsck", "--data", str(follower.data.root)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 1
    assert "blocks 1 to 1 are missing" in result.stderr
    shutil.copytree(node.data.root / "keys", follower.data.root / "keys")
    shutil.copy(node.data.votes, follower.data.votes)
    follower.data.options.unlink()
    result = run("--data", str(follower.data.root))
    assert result.returncode == 1
    assert "a node that does not know all receipts cannot vote" in result.stderr


def test_a_checkpoint_file_that_is_none_is_told(tmp_path, node):
    bad = tmp_path / "bad.json"
    bad.write_text("{}")
    result = run(
        *("--data", str(tmp_path / "new"), "--follow", node.url),
        *("--genesis", str(node.data.genesis), "--checkpoint", str(bad)),
    )
    assert result.returncode == 1
    assert "pinned checkpoint: document is not a Pin" in result.stderr
    result = run("--data", str(node.data.root), "--checkpoint", str(bad))
    assert result.returncode == 1
    assert "--checkpoint is for followers" in result.stderr


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "node", "run", "--port", "0", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_follower_without_a_genesis_file_does_not_start(tmp_path):
    result = run("--data", str(tmp_path / "new"), "--follow", "http://127.0.0.1:1")
    assert result.returncode == 1
    assert "needs --genesis FILE" in result.stderr
    assert not (tmp_path / "new").exists()


def test_a_directory_of_another_network_is_refused(tmp_path, node, follower):
    follower.start()
    follower.stop()
    other = LiveNode(tmp_path / "other")
    result = run(
        *("--data", str(follower.data.root), "--follow", node.url),
        *("--genesis", str(other.data.genesis)),
    )
    assert result.returncode == 1
    assert "belongs to network" in result.stderr


def test_an_authority_does_not_follow(node):
    node.stop()
    result = run("--data", str(node.data.root), "--follow", "http://127.0.0.1:1")
    assert result.returncode == 1
    assert "holds the key of an authority" in result.stderr


def test_a_source_of_another_network_is_told_to_be_one(tmp_path, node):
    other = LiveNode(tmp_path / "other")
    other.url = node.url
    follower = LiveFollower(tmp_path / "follower", other)
    follower.start()
    try:
        with Caller(follower.url) as caller:
            sync = wait_until_stalled(caller)
        assert "another chain" in sync["last_error"]
    finally:
        follower.stop()


def wait_until_stalled(caller: Caller):
    """The first fault follows the first answer, so this asks a few times at most."""
    while (sync := caller.get("/health").json()["sync"])["state"] != "stalled":
        pass
    return sync
