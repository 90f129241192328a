"""What is no backup, lies about itself, or would replace what nobody asked to replace."""

import contextlib
import io
import json
import os
import shutil
import sqlite3
import tarfile
from pathlib import Path

import pytest
from blake3 import blake3

from ledger.encoding import encode
from ledger.errors import StoreError
from node import backup as module
from node.datadir import DataDirectory, create_joining_directory
from tests.backups import back_up, make_market, put_back
from tests.builders import build_genesis
from tests.test_cli import aitbc, refusal


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A data directory, and its backup in both forms."""
    root = tmp_path_factory.mktemp("good")
    node = make_market(root / "data")
    for _ in range(2):
        node.finish()
        node.seal()
    node.finish()
    node.close()
    for name in ("b", "b.tar"):
        back_up(DataDirectory(root / "data"), root / name)
    return root


@pytest.fixture
def copied(good, tmp_path):
    return Path(shutil.copytree(good / "b", tmp_path / "b"))


def refuse_restore(source: Path, data: Path) -> str:
    line = refusal(aitbc("restore", "--data", data, "--input", source))
    assert not data.exists()
    return line


def change_manifest(path: Path, change) -> None:
    manifest = json.loads((path / "manifest.json").read_bytes())
    change(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))


def change_file(name: str, /, **changes):
    def change(manifest):
        (entry,) = (file for file in manifest["files"] if file["name"] == name)
        entry |= changes

    return change


MANIFESTS = {
    "another format": (lambda m: m.update(v=2), "is a backup of format 2, this release reads 1"),
    "format zero": (lambda m: m.update(v=0), "manifest.json is not that of a backup"),
    "another kind": (lambda m: m.update(kind="x"), "manifest.json is not that of a backup"),
    "a way out": (change_file("node.db", name="../node.db"), "is not that of a backup"),
    "an absolute path": (change_file("node.db", name="/etc/passwd"), "is not that of a backup"),
    "keys": (change_file("node.db", name="keys/authority.json"), "is not that of a backup"),
    "votes": (change_file("node.db", name="votes.db"), "is not that of a backup"),
    "an unknown field": (lambda m: m.update(extra=1), "is not that of a backup"),
    "a negative size": (change_file("node.db", size_bytes=-1), "is not that of a backup"),
    "a huge size": (change_file("node.db", size_bytes=2**53 - 1), "expected 9007199254740991"),
    "no ledger": (lambda m: m["files"].pop(), "the backup lacks ledger.db"),
    "a file twice": (lambda m: m["files"].append(m["files"][0]), "lists a file twice"),
    "many files": (lambda m: m.update(files=m["files"] * 2), "is not that of a backup"),
    "another hash": (change_file("ledger.db", blake3="00" * 32), "ledger.db: expected BLAKE3 00"),
    "another network": (lambda m: m.update(genesis="00" * 32), "genesis.json: is not of the netw"),
    "another height": (lambda m: m.update(height=3), "ends at block 2"),
    "another head": (lambda m: m.update(hash="00" * 32), "ends at block 2"),
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_a_manifest_that_lies_is_refused(copied, tmp_path, case):
    change, expected = MANIFESTS[case]
    change_manifest(copied, change)
    assert expected in refuse_restore(copied, tmp_path / "new")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "[" * 9000, '{"kind": "aitbc-backup", "v": 1}', "x" * 20_000]
)
def test_what_is_no_manifest_is_refused(copied, tmp_path, text):
    (copied / "manifest.json").write_text(text)
    assert "manifest.json" in refuse_restore(copied, tmp_path / "new")


@pytest.mark.parametrize("name", ["manifest.json", "genesis.json", "node.db", "ledger.db"])
def test_links_pipes_and_missing_files_are_refused(copied, tmp_path, name):
    path, elsewhere = copied / name, tmp_path / "elsewhere"
    path.rename(elsewhere)
    assert f"{name}: cannot be read: No such file" in refuse_restore(copied, tmp_path / "new")
    path.symlink_to(elsewhere)
    assert f"{name}: cannot be read: is a symbolic link" in refuse_restore(copied, tmp_path / "new")
    path.unlink()
    os.mkfifo(path)
    assert "is no regular file" in refuse_restore(copied, tmp_path / "new")


@pytest.mark.parametrize("name", ["genesis.json", "node.db", "ledger.db"])
def test_every_file_that_is_not_the_one_of_the_manifest_is_refused(copied, tmp_path, name):
    path = copied / name
    whole = path.read_bytes()
    for damaged in (whole[:-1], b"", whole + b"\0"):
        path.write_bytes(damaged)
        assert f"{name}: expected {len(whole)} bytes" in refuse_restore(copied, tmp_path / "new")
    for place in (0, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert f"{name}: expected BLAKE3" in refuse_restore(copied, tmp_path / "new")


def seal_manifest(path: Path, name: str) -> None:
    """Let the manifest name what the file is now: nobody signs a manifest."""
    data = (path / name).read_bytes()
    digest = blake3(data).hexdigest()
    change_manifest(path, change_file(name, size_bytes=len(data), blake3=digest))


def execute(path: Path, *statements: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


DATABASES = {
    "a trigger in node.db": (
        "node.db",
        "CREATE TRIGGER t AFTER DELETE ON mempool BEGIN DELETE FROM jobs; END",
        "node.db: holds the trigger 't'",
    ),
    "a trigger of a node's name in node.db that does something else": (
        "node.db",
        "DROP TRIGGER jobs_made",
        "CREATE TRIGGER jobs_made AFTER DELETE ON mempool BEGIN DELETE FROM jobs; END",
        "node.db: holds the trigger 'jobs_made'",
    ),
    "a view in ledger.db": (
        "ledger.db",
        "CREATE VIEW v AS SELECT 1",
        "ledger.db: holds the view 'v'",
    ),
    "a newer node.db": (
        "node.db",
        "INSERT INTO _sqlite_migrations (migration_set, name, applied_at)"
        " VALUES ('node', 'm999', '')",
        "node.db: was written by a newer release (m999)",
    ),
    "a newer ledger.db": (
        "ledger.db",
        "INSERT INTO _sqlite_migrations (migration_set, name, applied_at)"
        " VALUES ('ledger', 'm999', '')",
        "ledger.db: was written by a newer release (m999)",
    ),
    "node.db of another network": (
        "node.db",
        "UPDATE node SET genesis_hash = zeroblob(32)",
        "node.db: belongs to network 0000",
    ),
    "ledger.db of another network": (
        "ledger.db",
        "UPDATE genesis SET hash = zeroblob(32)",
        "ledger.db: holds network 0000",
    ),
    "a certificate of nobody": (
        "ledger.db",
        "UPDATE blocks SET certificate = (SELECT certificate FROM blocks WHERE height = 1)",
        "ledger.db: the newest block does not verify",
    ),
    "no mempool": ("node.db", "DROP TABLE mempool", "is not readable"),
}


@pytest.mark.parametrize("case", DATABASES)
def test_databases_that_no_node_would_run_on_are_refused(copied, tmp_path, case):
    name, *statements, expected = DATABASES[case]
    execute(copied / name, *statements)
    seal_manifest(copied, name)
    line = refuse_restore(copied, tmp_path / "new")
    assert expected in line
    assert ".restore." not in line


@pytest.mark.parametrize("name", ["node.db", "ledger.db"])
def test_a_database_that_is_none_is_refused(copied, tmp_path, name):
    (copied / name).write_bytes(b"no database" * 999)
    seal_manifest(copied, name)
    assert f"{name}: is not a readable database" in refuse_restore(copied, tmp_path / "new")


def test_damage_that_only_a_full_check_finds_is_found_by_it(copied, tmp_path):
    execute(copied / "ledger.db", "UPDATE receipts SET price_micros = 1 WHERE leaf = 0")
    seal_manifest(copied, "ledger.db")
    checked = aitbc("restore", "--data", tmp_path / "new", "--input", copied, "--fsck")
    assert "rows of block 1 in receipts differ" in refusal(checked)
    assert not (tmp_path / "new").exists()
    assert aitbc("restore", "--data", tmp_path / "new", "--input", copied).exit_code == 0


def test_an_archive_that_ends_anywhere_but_at_its_end_is_refused(good, tmp_path):
    whole = (good / "b.tar").read_bytes()
    cut = tmp_path / "cut.tar"
    for size in {*range(0, len(whole), 8192), *range(0, 3000, 100), len(whole) - 1}:
        cut.write_bytes(whole[:size])
        with pytest.raises(StoreError):
            put_back(cut, DataDirectory(tmp_path / "new"))
        assert not (tmp_path / "new").exists()


def repack(good: Path, target: Path, change, **options) -> None:
    """Write the archive again with what `change(members)` makes of its (header, bytes) pairs."""
    with tarfile.open(good / "b.tar") as archive:
        members = [(member, archive.extractfile(member).read()) for member in archive]
    with tarfile.open(target, "w", **options) as archive:
        for member, data in change(members):
            archive.addfile(member, io.BytesIO(data))


def renamed(member: tarfile.TarInfo, **changes) -> tarfile.TarInfo:
    other = tarfile.TarInfo(member.name)
    other.size = member.size
    for name, value in changes.items():
        setattr(other, name, value)
    return other


def link(name: str, kind: bytes) -> tuple[tarfile.TarInfo, bytes]:
    return renamed(tarfile.TarInfo(name), type=kind, linkname="/etc/passwd"), b""


ARCHIVES = {
    "a way out": (
        lambda m: [*m[:2], (renamed(m[2][0], name="../node.db"), m[2][1]), *m[3:]],
        "expected node.db next, got ../node.db",
    ),
    "a symbolic link": (lambda m: [*m[:2], link("node.db", b"2"), *m[3:]], "no regular file"),
    "a hard link": (lambda m: [*m[:2], link("node.db", b"1"), *m[3:]], "no regular file"),
    "a device": (lambda m: [*m[:2], link("node.db", b"3"), *m[3:]], "no regular file"),
    "a long name": (
        lambda m: [*m[:2], (renamed(m[2][0], name="n" * 300), m[2][1]), *m[3:]],
        "no regular file",
    ),
    "a file more": (lambda m: [*m, m[1]], "goes on behind its last file"),
    "a file less": (lambda m: m[:-1], "expected ledger.db next, got its end"),
    "another order": (lambda m: [m[0], *m[:0:-1]], "expected genesis.json next, got ledger.db"),
    "no manifest": (lambda m: m[1:], "does not begin with manifest.json"),
    "nothing": (lambda m: [], "does not begin with manifest.json"),
}


@pytest.mark.parametrize("case", ARCHIVES)
def test_archives_that_no_backup_makes_are_refused(good, tmp_path, case):
    change, expected = ARCHIVES[case]
    repack(good, tmp_path / "x.tar", change, format=tarfile.GNU_FORMAT)
    assert expected in refuse_restore(tmp_path / "x.tar", tmp_path / "new")


def test_what_is_no_archive_is_refused(tmp_path):
    for data in (b"x" * 512, b"x", os.urandom(2048)):
        (tmp_path / "x.tar").write_bytes(data)
        refuse_restore(tmp_path / "x.tar", tmp_path / "new")
    line = refuse_restore(tmp_path / "missing", tmp_path / "new")
    assert line.endswith("missing: cannot be read: No such file or directory")


def test_a_backup_of_another_network_is_refused_by_genesis_and_by_votes(good, tmp_path):
    root = tmp_path / "other"
    data = create_joining_directory(root, build_genesis(1, network="other-net"))
    expected = "belongs to network"
    assert expected in refusal(aitbc("restore", "--data", root, "--input", good / "b"))
    data.genesis.unlink()
    expected = "was not made with this node's key on this network"
    assert expected in refusal(aitbc("restore", "--data", root, "--input", good / "b"))
    assert not any((root / name).exists() for name in ("genesis.json", "node.db", "ledger.db"))


def test_nothing_is_replaced_unasked_and_nothing_is_ever_deleted(good, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(good / "data", root)
    (root / "node.toml").write_text("port = 1\n")
    before = {path.name: path.read_bytes() for path in root.iterdir()}
    line = refusal(aitbc("restore", "--data", root, "--input", good / "b"))
    assert "node.db: exists already; with --replace it is moved aside" in line
    done = aitbc("restore", "--data", root, "--input", good / "b", "--replace")
    assert done.exit_code == 0, done.output
    after = {path.name: path.read_bytes() for path in root.iterdir()}
    for name in ("votes.db", "genesis.json", "node.toml"):
        assert after[name] == before[name]
    for name in ("node.db", "ledger.db"):
        (aside,) = (key for key in after if key.startswith(f"{name}.replaced-"))
        assert after[aside] == before[name]
        assert f"What was there is now {root / aside}" in done.output


def test_a_write_ahead_log_of_the_old_file_never_meets_the_new_one(good, tmp_path):
    """One that SQLite cannot put into its file, even, is moved away with it."""
    root = tmp_path / "data"
    shutil.copytree(good / "data", root)
    with contextlib.closing(sqlite3.connect(root / "node.db")) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("UPDATE jobs SET prompt = 'changed'")
        connection.commit()
        wal = (root / "node.db-wal").read_bytes()
    (root / "node.db").write_bytes(b"damaged" * 999)
    (root / "node.db-wal").write_bytes(wal)
    done = aitbc("restore", "--data", root, "--input", good / "b", "--replace")
    assert done.exit_code == 0, done.output
    assert not (root / "node.db-wal").exists()
    (aside,) = root.glob("node.db.replaced-*-wal")
    assert aside.read_bytes() == wal
    with contextlib.closing(sqlite3.connect(root / "node.db")) as connection:
        assert ("changed",) not in connection.execute("SELECT prompt FROM jobs").fetchall()


def test_a_directory_that_a_node_holds_is_not_restored_into(good, tmp_path):
    data = DataDirectory(Path(shutil.copytree(good / "data", tmp_path / "data")))
    with data.lock():
        line = refusal(aitbc("restore", "--data", data.root, "--input", good / "b", "--replace"))
    assert "another node runs on this data directory; stop it first" in line
    assert not list(data.root.glob("*replaced*"))


def test_a_backup_overwrites_nothing(good, tmp_path):
    for name in ("b", "b.tar"):
        (tmp_path / name).symlink_to(tmp_path / "nowhere")
        line = refusal(aitbc("backup", "--data", good / "data", "--output", tmp_path / name))
        assert "exists already, and a backup replaces nothing" in line
    line = refusal(aitbc("backup", "--data", good / "data", "--output", tmp_path / "no" / "b"))
    assert "no: is no directory; is the backup's disk mounted?" in line


def test_a_directory_that_no_node_has_run_on_has_no_backup(tmp_path):
    assert aitbc("init", "--data", tmp_path / "data").exit_code == 0
    line = refusal(aitbc("backup", "--data", tmp_path / "data", "--output", tmp_path / "b"))
    assert "nothing to back up: no node has run here yet" in line
    assert "make a data directory" in refusal(
        aitbc("backup", "--data", tmp_path / "none", "--output", tmp_path / "b")
    )


@pytest.mark.parametrize("name", ["node.db", "ledger.db"])
def test_damaged_databases_are_not_called_a_backup(good, tmp_path, name):
    root = tmp_path / "data"
    shutil.copytree(good / "data", root)
    damaged = bytearray((root / name).read_bytes())
    damaged[8192 * 4 : 8192 * 5] = os.urandom(8192)
    (root / name).write_bytes(damaged)
    line = refusal(aitbc("backup", "--data", root, "--output", tmp_path / "b"))
    assert name in line
    assert {path.name for path in tmp_path.iterdir()} == {"data"}


def test_a_backup_that_reads_back_as_something_else_is_not_called_one(good, tmp_path, monkeypatch):
    write = module.write_archive

    def write_badly(target, files, **options):
        write(target, files, **options)
        data = bytearray(target.read_bytes())
        data[len(data) // 2] ^= 1
        target.write_bytes(data)

    monkeypatch.setattr(module, "write_archive", write_badly)
    line = refusal(aitbc("backup", "--data", good / "data", "--output", tmp_path / "b.tar"))
    assert "expected BLAKE3" in line
    assert list(tmp_path.iterdir()) == []


def test_files_of_two_networks_are_not_called_a_backup(good, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(good / "data", root)
    (root / "genesis.json").write_bytes(encode(build_genesis(1, network="other-net")))
    line = refusal(aitbc("backup", "--data", root, "--output", tmp_path / "b"))
    assert "is of another network than genesis.json" in line


def test_it_is_said_that_a_backup_is_private_and_what_an_earlier_one_left_behind(good, tmp_path):
    left = tmp_path / ".old.backup-draft.x"
    left.mkdir()
    done = aitbc("backup", "--data", good / "data", "--output", tmp_path / "b")
    assert done.exit_code == 0
    assert "digests of API keys and webhooks' secrets: keep it private." in done.stdout
    assert f"{left}: left by a backup that was cut off" in done.stderr
