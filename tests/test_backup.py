"""Backups of nodes that run, and what a node restored from one is and does."""

import contextlib
import json
import shutil
import sqlite3
import stat
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from ledger.authorities import Authority
from ledger.errors import StoreError
from ledger.jobs import Caller as Holder
from ledger.store.chain import ChainStore
from ledger.store.fsck import verify_chain
from ledger.store.reading import build_pin
from ledger.store.votes import KEEP_HEIGHTS
from ledger.views import ReceiptFilter
from node import backup as module
from node.backup import make_backup
from node.cli.setchange import Edits
from node.datadir import DataDirectory, create_joining_directory, load_key
from tests.authorities import Authorities, serve_node
from tests.backups import back_up, make_market, put_back, silent
from tests.caller import Caller
from tests.live import ROOT, LiveFollower, LiveNode
from tests.load import Load
from tests.test_cli import aitbc, one_line, run_node
from tests.test_membership import is_final, run_job, submit_change, wait_until

MAX_LOOKS = 5000
TIMEOUT_S = 300


def fsck(data: DataDirectory):
    return verify_chain(data.ledger, data.load_genesis(), silent)


def run_backup(data: Path, output: Path) -> subprocess.CompletedProcess[str]:
    """Make a backup in a process of its own, as an operator does."""
    command = [sys.executable, "-m", "node", "backup", "--data", data, "--output", output]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S)


def list_hashes(path: Path) -> list[bytes]:
    """Hashes of the blocks of a ledger, lowest first."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return [row[0] for row in connection.execute("SELECT hash FROM blocks ORDER BY height")]


@pytest.fixture
def market(tmp_path):
    node = make_market(tmp_path / "node")
    node.data = DataDirectory(tmp_path / "node")
    yield node
    node.close()


# --- what is in a backup ------------------------------------------------------------------------


@pytest.fixture(params=["backup", "backup.tar"])
def form(request):
    return request.param


def test_what_is_backed_up_comes_back(market, tmp_path, form):
    final = [market.finish(), market.finish()]
    market.seal()
    waiting = market.finish()
    job = market.submit()
    (market.data.options).write_text("port = 8002\n")
    back_up(market.data, tmp_path / form)
    restored = put_back(tmp_path / form, DataDirectory(tmp_path / "new"))
    assert (restored.tip, restored.waiting) == (market.chain.tip(), 1)

    again = make_market(tmp_path / "new")
    try:
        assert again.read(job) == job
        assert again.pending_receipts == [waiting]
        again.seal()
        shown = {view.payload.receipt_id for view in again.views.receipts(ReceiptFilter(), limit=9)}
        assert shown == {*final, waiting}
    finally:
        again.close()
    assert (tmp_path / "new" / "node.toml").read_text() == "port = 8002\n"


def test_a_backup_is_its_owners_alone_and_holds_no_key_and_no_memory_of_votes(tmp_path):
    live = LiveNode(tmp_path / "data")
    live.create_key("admin")
    ChainStore(live.data.ledger, live.data.load_genesis()).close()
    (tmp_path / "data" / "witness.db").write_bytes(b"memory")
    for output in (tmp_path / "b", tmp_path / "b.tar"):
        back_up(live.data, output)
    names = {"manifest.json", "genesis.json", "node.db", "ledger.db"}
    assert {path.name for path in (tmp_path / "b").iterdir()} == names
    with tarfile.open(tmp_path / "b.tar") as archive:
        assert set(archive.getnames()) == names
        assert {(member.mode, member.uname, member.uid) for member in archive} == {(0o600, "", 0)}
    assert stat.S_IMODE((tmp_path / "b").stat().st_mode) == 0o700
    for path in (tmp_path / "b.tar", *(tmp_path / "b").iterdir()):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    seed = json.loads(live.data.authority_key.read_bytes())["seed"].encode()
    assert seed not in (tmp_path / "b.tar").read_bytes()


def test_a_receipt_that_becomes_final_between_the_two_copies_is_in_the_backup(
    market, tmp_path, monkeypatch
):
    """This is why node.db is copied first: in the other order neither copy would hold it."""
    receipt = market.finish()
    copy, copied = module._copy_database, []

    def copy_and_seal(source, target, progress):
        copy(source, target, progress)
        copied.append(source.name)
        market.seal()

    monkeypatch.setattr(module, "_copy_database", copy_and_seal)
    back_up(market.data, tmp_path / "b")
    assert market.pending_receipts == []
    restored = put_back(tmp_path / "b", DataDirectory(tmp_path / "new"))
    assert (restored.tip.height, restored.waiting) == (1, 0)
    again = make_market(tmp_path / "new")
    try:
        assert again.views.receipt(receipt).transaction.finality == "final"
        again.finish()
        assert again.seal() == 2
        assert again.verify() == 2
    finally:
        again.close()


def test_a_copy_is_one_state_however_much_is_written_meanwhile(market, tmp_path, monkeypatch):
    jobs = [market.submit(owner) for owner in holders(3)]
    monkeypatch.setattr(module, "PAGES_PER_STEP", 1)
    steps = 0

    def write(what, _done, _total):
        nonlocal steps
        steps += 1
        assert steps < 1000, "the copy starts over with every write"
        if what == "copying node.db":
            market.submit(holders(steps + 10)[-1])  # would raise if the copy held a lock

    make_backup(market.data, tmp_path / "b", release="test", now_ms=1, progress=write)
    assert steps > 20
    with contextlib.closing(sqlite3.connect(tmp_path / "b" / "node.db")) as connection:
        assert connection.execute("SELECT count(*) FROM jobs").fetchone() == (len(jobs),)


def holders(count: int) -> list[Holder]:
    """Clients with a key each, so that none has too many jobs pending."""
    return [Holder(key=f"key-{i}", client="client-1", role="client") for i in range(count)]


# --- a node under load --------------------------------------------------------------------------


def test_every_receipt_acknowledged_before_a_backup_is_final_once_in_the_restored_node(tmp_path):
    node = LiveNode(tmp_path / "node", "--max-pending-per-key", "100000", "--batch-delay-ms", "500")
    key = node.create_key("admin", "load")
    node.start()
    load = Load(node.url, key)
    try:
        load.run_until(100)
        jobs, receipts = list(load.jobs), dict(load.receipts)
        made = run_backup(node.data.root, tmp_path / "b.tar")
        assert made.returncode == 0, made.stderr
        assert len(load.receipts) > len(receipts), "nothing happened meanwhile"
    finally:
        node.kill()
        load.join()
    assert receipts

    # The authority moves to another disk: its keys and its own votes.db, and the backup.
    copy = DataDirectory(tmp_path / "copy")
    shutil.copytree(node.data.root, copy.root)
    for path in copy.root.glob("*.db*"):
        if not path.name.startswith("votes."):
            path.unlink()
    restored = aitbc("restore", "--data", copy.root, "--input", tmp_path / "b.tar", "--fsck")
    assert restored.exit_code == 0, restored.output
    assert "votes.db is this authority's own and stays" in restored.output

    again = LiveNode.__new__(LiveNode)
    again.__dict__ |= node.__dict__ | {"data": copy}
    again.start()
    try:
        with Caller(again.url, key) as caller:
            for _ in range(MAX_LOOKS):
                if not caller.get("/health").json()["pending_transactions"]:
                    break
            for job_id in jobs:
                shown = caller.get(f"/v1/jobs/{job_id}").raise_for_status().json()
                if job_id in receipts:
                    assert (shown["status"], shown["receipt_id"]) == ("completed", receipts[job_id])
            for receipt_id in receipts.values():
                assert caller.get(f"/v1/receipts/{receipt_id}").json()["status"] == "final"
            later = caller.finish_job()
        assert later
    finally:
        assert again.stop() == 0
    fsck(copy)
    with contextlib.closing(sqlite3.connect(copy.ledger)) as connection:
        found = [row[0] for row in connection.execute("SELECT receipt_id FROM receipts")]
    assert len(found) == len(set(found))
    assert set(receipts.values()) <= set(found)
    # Not one block is another one than before.
    before = list_hashes(node.data.ledger)
    assert list_hashes(copy.ledger)[: len(before)] == before


# --- an authority whose votes are newer than its ledger -------------------------------------------


@pytest.mark.parametrize("blocks", [1, 2, KEEP_HEIGHTS, KEEP_HEIGHTS + 1])
def test_what_a_lone_authority_remembers_to_have_voted_for_comes_out_of_its_votes(
    market, tmp_path, blocks
):
    market.finish()
    market.seal()
    back_up(market.data, tmp_path / "b")
    for _ in range(blocks):
        market.finish()
        market.seal()
    before = list_hashes(market.data.ledger)
    market._close()
    put_back(tmp_path / "b", market.data, replace=True)
    market._open()
    assert market.chain.tip().height == 1
    assert market.seal() == 1 + blocks
    assert list_hashes(market.data.ledger) == before
    market.finish()
    assert market.seal() == 2 + blocks
    assert market.verify() == 2 + blocks


@pytest.fixture
def forgetful(tmp_path):
    """An authority alone, restored to a ledger that ends before all that it remembers."""
    node = LiveNode(tmp_path / "node", "--mode", "dev", "--batch-delay-ms", "0")
    node.key = node.create_key("admin")
    node.start()
    follower = LiveFollower(tmp_path / "follower", node)
    with Caller(node.url, node.key) as caller:
        caller.finish_job()
        caller.wait_for_block(1)
        back_up(node.data, tmp_path / "b")
        for height in range(2, KEEP_HEIGHTS + 5):
            caller.finish_job()
            caller.wait_for_block(height)
        node.height = height
    follower.start()
    with Caller(follower.url) as caller:
        caller.wait_for_block(node.height)
    assert node.stop() == 0
    node.before = list_hashes(node.data.ledger)
    node.advice = aitbc("restore", "--data", node.data.root, "--input", tmp_path / "b", "--replace")
    yield node, follower
    node.kill()
    follower.kill()


def test_a_lone_authority_votes_on_no_height_that_it_has_forgotten(forgetful):
    node, follower = forgetful
    assert node.advice.exit_code == 0, node.advice.output
    assert "votes.db is newer than this ledger, which ends at block 1" in node.advice.output
    line = one_line(run_node("--data", node.data.root, "--port", "0"))
    assert "ends at block 1" in line
    assert "must not vote on them again. Start it with --peer URL" in line
    assert list_hashes(node.data.ledger) == node.before[:1]

    node._arguments = (*node._arguments, "--peer", follower.url)
    node.start()
    with Caller(node.url, node.key) as caller:
        caller.wait_for_block(node.height)
        caller.finish_job()
        caller.wait_for_block(node.height + 1)
    assert node.stop() == 0
    assert list_hashes(node.data.ledger)[:-1] == node.before
    assert fsck(node.data).height == node.height + 1


def test_an_authority_whose_chain_has_a_gap_is_told_how_to_get_the_whole_one(tmp_path):
    """The ledger of a follower that began at a pin, restored into an authority's directory."""
    network = Authorities(tmp_path, 4)
    secret = network.create_key(0, "admin")
    with contextlib.ExitStack() as stack:
        nodes = [stack.enter_context(network.run(index)) for index in range(3)]
        run_job(network.urls[0], secret)
        wait_until(lambda: nodes[0].chain.tip().height == 1)
        run_job(network.urls[0], secret)
        wait_until(lambda: nodes[0].chain.tip().height == 2)
        tip = nodes[0].chain.tip()
        pin = build_pin(nodes[0].chain.database.reader)
        away = network.directories[3]
        with contextlib.closing(ChainStore(away.ledger, network.genesis)) as store:
            store.adopt_pin(pin).result()
        with pytest.raises(StoreError, match=r"Move ledger\.db out") as caught, network.run(3):
            pass
        assert "blocks 1 to 2 are missing" in str(caught.value)
        away.ledger.rename(tmp_path / "moved.db")
        nodes.append(stack.enter_context(network.run(3)))
        wait_until(lambda: nodes[3].chain.tip() == tip)
    assert fsck(away) == tip


def test_an_old_copy_of_votes_db_is_not_voted_from(tmp_path):
    """Whoever puts one back could sign the opposite of what the chain shows."""
    node = LiveNode(tmp_path / "node", "--mode", "dev")
    key = node.create_key("admin")
    node.start()
    with Caller(node.url, key) as caller:
        caller.finish_job()
        caller.wait_for_block(1)
        assert node.stop() == 0
        old = node.data.votes.read_bytes()
    node.start()
    with Caller(node.url, key) as caller:
        caller.finish_job()
        caller.wait_for_block(2)
    assert node.stop() == 0
    newest = node.data.votes.read_bytes()
    node.data.votes.write_bytes(old)
    line = one_line(run_node("--data", node.data.root, "--port", "0"))
    assert "votes.db: does not know this key's vote for block 2, which is final" in line
    node.data.votes.write_bytes(newest)
    node.start()
    assert node.stop() == 0


def test_a_restored_authority_without_its_votes_is_told_what_to_do_and_does_not_vote(tmp_path):
    live = LiveNode(tmp_path / "data")
    live.create_key("client")
    ChainStore(live.data.ledger, live.data.load_genesis()).close()
    back_up(live.data, tmp_path / "b")
    live.data.votes.unlink()
    done = aitbc("restore", "--data", live.data.root, "--input", tmp_path / "b", "--replace")
    assert done.exit_code == 0
    assert "the node refuses to vote" in done.output
    assert "Never put an old votes.db back" in done.output
    assert "votes.db: missing" in one_line(run_node("--data", live.data.root, "--port", "0"))


def test_a_new_key_takes_over_the_jobs_and_api_keys_of_one_whose_votes_are_lost(tmp_path):
    live = LiveNode(tmp_path / "data")
    key = live.create_key("client", "alice")
    live.start()
    with Caller(live.url, key) as caller:
        job = caller.post("/v1/jobs", prompt="Why?").json()["job_id"]
    live.kill()
    back_up(live.data, tmp_path / "b")
    made = create_joining_directory(tmp_path / "new", live.data.load_genesis())
    seed = made.authority_key.read_bytes()
    put_back(tmp_path / "b", made)
    assert made.authority_key.read_bytes() == seed
    live.data = made
    live.start()
    with Caller(live.url, key) as caller:
        assert caller.get(f"/v1/jobs/{job}").json()["status"] == "pending"
    assert live.stop() == 0


def test_receipts_of_an_authority_whose_disk_is_lost_become_final_through_its_new_key(tmp_path):
    """The steps of docs/backup.md: a new directory, the backup, a change that lists both keys."""
    network = Authorities(tmp_path, 4)
    lost, secret = network.directories[3], network.create_key(3, "admin")
    with network.run(3):
        receipt = run_job(network.urls[3], secret)  # alone it makes nothing final
        back_up(lost, tmp_path / "b")
    made = create_joining_directory(tmp_path / "new", network.genesis)
    assert put_back(tmp_path / "b", made).waiting == 1
    key = load_key(made.authority_key)[0]
    old = network.keys[3].account
    added = Authority(account=key.account, name="the new key", url=network.urls[3])
    with contextlib.ExitStack() as stack:
        nodes = [stack.enter_context(network.run(index)) for index in range(3)]
        nodes.append(stack.enter_context(serve_node(made, network.urls[3])))
        submit_change(
            network.urls[0],
            nodes[0].chain.tip(),
            Edits(added=[added], removed=[old], coordinators_added=[old]),
            [*network.keys[:3], key],
        )
        wait_until(lambda: is_final(nodes, receipt))
        later = run_job(network.urls[3], secret)
        wait_until(lambda: is_final(nodes, later))
    assert len({fsck(data).hash for data in (*network.directories[:3], made)}) == 1


def test_a_restored_follower_goes_on_where_the_backup_ends(tmp_path):
    node = LiveNode(tmp_path / "node", "--mode", "dev")
    node.key = node.create_key("admin")
    node.start()
    follower = LiveFollower(tmp_path / "follower", node)
    try:
        with Caller(node.url, node.key) as caller:
            caller.finish_job()
            caller.wait_for_block(1)
            follower.start()
            with Caller(follower.url) as reader:
                reader.wait_for_block(1)
            back_up(follower.data, tmp_path / "b")
            follower.kill()
            caller.finish_job()
            caller.wait_for_block(2)
        done = aitbc("restore", "--data", tmp_path / "again", "--input", tmp_path / "b")
        assert "A follower: ./aitbc run --data" in done.output
        follower.data = DataDirectory(tmp_path / "again")
        follower.forget_arguments()  # the backup's node.toml says whom to follow
        follower.start()
        with Caller(follower.url) as reader:
            reader.wait_for_block(2)
    finally:
        follower.kill()
        node.kill()
    assert fsck(follower.data).height == 2


# --- kill -9 --------------------------------------------------------------------------------------


def kill_at_each_step(*arguments) -> int:
    done = subprocess.run(
        [sys.executable, "-m", "tests.killing", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.parametrize("end", ["", ".tar"])
def test_a_backup_that_is_killed_leaves_nothing_that_looks_like_one(market, tmp_path, end):
    market.finish()
    market.seal()
    market._close()
    steps = kill_at_each_step("backup", market.data.root, tmp_path / ("b{}" + end))
    assert steps > 20
    whole = [step for step in range(steps + 1) if (tmp_path / f"b{step}{end}").exists()]
    assert steps in whole
    for step in whole:  # renamed, and killed before it could say so
        data = DataDirectory(tmp_path / f"new{step}")
        put_back(tmp_path / f"b{step}{end}", data)
        assert fsck(data).height == 1
    assert min(whole) > steps - 10
    left = module.list_drafts(tmp_path / "x")
    assert left
    assert {stat.S_IMODE(path.stat().st_mode) for path in left} == {0o700}
    market._open()


def test_a_restore_that_is_killed_leaves_a_ledger_that_is_not_behind_its_node_db(market, tmp_path):
    market.finish()
    market.seal()
    back_up(market.data, tmp_path / "b")
    market.finish()
    market.seal()
    market.submit()
    market._close()
    for step in range(101):
        shutil.copytree(market.data.root, tmp_path / f"n{step}")
    steps = kill_at_each_step("restore", tmp_path / "n{}", tmp_path / "b")
    assert 20 < steps <= 100
    seen = set()
    for step in range(steps + 1):
        data = DataDirectory(tmp_path / f"n{step}")
        with contextlib.closing(sqlite3.connect(data.market)) as connection:
            (jobs,) = connection.execute("SELECT count(*) FROM jobs").fetchone()
        seen.add((jobs, fsck(data).height))
        put_back(tmp_path / "b", data, replace=True)
        assert fsck(data).height == 1
        assert not list(data.root.glob(".restore.*"))
    assert seen == {(3, 2), (1, 2), (1, 1)}
    market._open()
