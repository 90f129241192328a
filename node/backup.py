"""Backups: a consistent copy of a node's two databases, made while the node may be running.

What is in one, `node.manifest` tells. votes.db, witness.db and keys/ never are: an old memory of
what a key has signed lets that key sign the opposite.

**node.db is copied first, ledger.db after it.** A receipt is written to node.db before it is
acknowledged, and leaves its mempool only once ledger.db holds it durably. So a receipt that was
acknowledged before, and does not wait in the copy of node.db, was in ledger.db already, and is in
the later copy of that. In the other order it could fall between the two. The ledger's copy may thus
be ahead of node.db's: a node skips what waits there and is final already.

Each copy is one snapshot: a read transaction is held while SQLite's online backup takes page after
page. In WAL mode that keeps no writer waiting; the write-ahead log only cannot be reused meanwhile,
so it grows by what the node writes. Without the transaction every write of the node would make the
copy start over.

A backup is made beside its place under a name that begins with a dot, checked, fsynced and renamed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

from blake3 import blake3
from sqlite_utils.migrations import Migrations

from ledger.block import Tip, hash_genesis
from ledger.encoding import encode
from ledger.errors import StoreError
from ledger.store import chain, market
from ledger.store.database import (
    find_foreign_code,
    make_private,
    open_reader,
    require_schema,
    sync_directory,
)
from node.archive import write_archive
from node.datadir import DataDirectory
from node.files import read_bounded, write_private
from node.manifest import (
    CHUNK_BYTES,
    MANIFEST,
    NAMES,
    BackupFile,
    Manifest,
    Name,
    Progress,
    verify_backup,
)

ARCHIVE_SUFFIX = ".tar"
"""An output with this ending is one file, any other a directory."""
PAGES_PER_STEP = 512
"""4 MiB: how much is copied between two reports."""
STEPS_PER_SYNC = 8
"""32 MiB: how much the disk is handed at once, so that the node's own fsyncs do not queue behind
gigabytes."""
DRAFT_MARK = ".backup-draft."


def make_backup(
    data: DataDirectory, output: Path, *, release: str, now_ms: int, progress: Progress
) -> Manifest:
    """Copy what can be restored of a data directory, whether its node runs or not.

    `output` appears whole or not at all; what a kill leaves beside it begins with a dot.

    Raises:
        OSError: the disk refuses.
        StoreError: there is nothing to back up, something there already, or a copy fails a check.
    """
    genesis = data.load_genesis()
    for path in (data.market, data.ledger):
        if not path.is_file():
            raise StoreError(f"{path}: there is nothing to back up: no node has run here yet")
    with _draft(output) as draft:
        for name in ("genesis.json", "node.toml"):
            if (source := data.root / name).exists():
                write_private(draft / name, read_bounded(source))
        _copy_database(data.market, draft / "node.db", progress)
        _copy_database(data.ledger, draft / "ledger.db", progress)
        tip = _check_copies(DataDirectory(draft), hash_genesis(genesis), progress)
        manifest = Manifest(
            genesis=hash_genesis(genesis).hex(),
            network=genesis.network,
            release=release,
            created_ms=now_ms,
            height=tip.height,
            hash=tip.hash.hex(),
            files=tuple(_describe(draft, name, progress) for name in _list_names(draft)),
        )
        write_private(draft / MANIFEST, encode(manifest) + b"\n")
        _put_in_place(draft, output, manifest, progress)
    return manifest


def list_drafts(output: Path) -> list[Path]:
    """Return what backups that were cut off have left beside `output`."""
    return sorted(output.parent.glob(f".*{DRAFT_MARK}*"))


def read_hash(path: Path, report: Callable[[int], None]) -> str:
    """Return the BLAKE3 of a file in hex. `report(bytes)` is called with what was read so far."""
    digest, done = blake3(), 0
    with path.open("rb") as handle:
        while chunk := handle.read(CHUNK_BYTES):
            digest.update(chunk)
            done += len(chunk)
            report(done)
    return digest.hexdigest()


def list_databases(data: DataDirectory) -> list[tuple[Path, Migrations]]:
    """Return the databases that are backed up, each with its schema."""
    return [(data.market, market.migrations), (data.ledger, chain.migrations)]


def check_database(path: Path, migrations: Migrations) -> None:
    """Check a database file by itself: that it is one, sound, and does nothing of its own accord.

    Raises:
        StoreError: it is not.
    """
    try:
        with contextlib.closing(open_reader(path)) as connection:
            code = find_foreign_code(connection, migrations)
            (found,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        raise StoreError(f"{path}: is not a readable database: {error}") from error
    if code is not None:
        raise StoreError(f"{path}: holds the {code[0]} {code[1]!r}, and no node makes one there")
    if found != "ok":
        raise StoreError(f"{path}: SQLite finds the file damaged: {' '.join(found.split())}")


@contextlib.contextmanager
def _draft(output: Path) -> Iterator[Path]:
    """Yield an empty private directory beside the place of a backup; it is gone afterwards."""
    if os.path.lexists(output):
        raise StoreError(f"{output}: exists already, and a backup replaces nothing; name another")
    if not output.parent.is_dir():
        raise StoreError(f"{output.parent}: is no directory; is the backup's disk mounted?")
    place = tempfile.mkdtemp(prefix=f".{output.name}{DRAFT_MARK}", dir=output.parent)
    try:
        yield Path(place)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _copy_database(source: Path, target: Path, progress: Progress) -> None:
    """Copy one state of a database that others may write to, durably, into one file."""
    steps = count(1)

    def report(_status: int, remaining: int, total: int) -> None:
        if next(steps) % STEPS_PER_SYNC == 0:
            _sync_file(target)
        progress(f"copying {source.name}", total - remaining, total)

    make_private(target)
    try:
        with (
            contextlib.closing(open_reader(source)) as reader,
            contextlib.closing(sqlite3.connect(target, isolation_level=None)) as copy,
        ):
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM sqlite_schema").fetchone()  # takes the snapshot
            copy.execute("PRAGMA synchronous = OFF")  # it is synced here
            reader.backup(copy, pages=PAGES_PER_STEP, progress=report)
            # Alone it needs no write-ahead log, and can be read where nothing can be written.
            copy.execute("PRAGMA journal_mode = DELETE")
    except sqlite3.Error as error:
        raise StoreError(f"{source}: cannot be copied: {error}") from error
    _sync_file(target)


def _check_copies(draft: DataDirectory, genesis_hash: bytes, progress: Progress) -> Tip:
    """Check the copies by themselves, and that they are of one network; returns the tip."""
    for path, migrations in list_databases(draft):
        progress(f"checking {path.name}", 0, 1)
        check_database(path, migrations)
    with (
        contextlib.closing(open_reader(draft.market)) as node,
        contextlib.closing(open_reader(draft.ledger)) as ledger,
    ):
        require_schema(draft.market, node, market.migrations)
        require_schema(draft.ledger, ledger, chain.migrations)
        found = {
            "genesis.json": hash_genesis(draft.load_genesis()),
            "node.db": (node.execute("SELECT genesis_hash FROM node").fetchone() or [b""])[0],
            "ledger.db": (ledger.execute("SELECT hash FROM genesis").fetchone() or [b""])[0],
        }
        for name, of_file in found.items():
            if of_file != genesis_hash:
                raise StoreError(f"{name}: is of another network than genesis.json")
        chain.check_tail(ledger, draft.ledger)
        return chain.load_tip(ledger)


def _list_names(draft: Path) -> list[Name]:
    return [name for name in NAMES if (draft / name).exists()]


def _describe(draft: Path, name: Name, progress: Progress) -> BackupFile:
    size_bytes = (draft / name).stat().st_size
    digest = read_hash(draft / name, lambda done: progress(f"hashing {name}", done, size_bytes))
    return BackupFile(name=name, size_bytes=size_bytes, blake3=digest)


def _put_in_place(draft: Path, output: Path, manifest: Manifest, progress: Progress) -> None:
    """Verify the draft as a restore would, and give it its name."""
    finished = draft
    if output.suffix == ARCHIVE_SUFFIX:
        finished = draft / "archive"
        _pack(draft, finished, manifest, progress)
    sync_directory(draft)
    verify_backup(finished, progress)
    if os.path.lexists(output):  # the rename would replace a file
        raise StoreError(f"{output}: somebody else has made it meanwhile")
    finished.rename(output)
    sync_directory(output.parent)


def _pack(draft: Path, archive: Path, manifest: Manifest, progress: Progress) -> None:
    files = [draft / MANIFEST, *(draft / file.name for file in manifest.files)]
    total, done = sum(path.stat().st_size for path in files), 0

    def report(step: int) -> None:
        nonlocal done
        done += step
        progress("packing", done, total)

    write_archive(archive, files, mtime_s=manifest.created_ms // 1000, progress=report)


def _sync_file(path: Path) -> None:
    with path.open("rb") as handle:
        os.fsync(handle.fileno())
