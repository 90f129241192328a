"""Restoring a backup into a data directory: all of it is checked there before anything is replaced.

The files are copied into a hidden directory inside the data directory and hashed on the way, so
what is checked is what is put in place. Then node.db is put in place, and ledger.db after it: a
crash between the two leaves a ledger that is ahead of node.db, which a node can go on from
(`node.backup` says why), and never one that is behind.

What was there keeps its bytes under another name. keys/, votes.db and witness.db are never touched.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from ledger.block import Genesis, Tip, hash_genesis, parse_genesis
from ledger.errors import LedgerError, StoreError
from ledger.store.chain import ChainStore
from ledger.store.database import open_reader, sync_directory
from ledger.store.fsck import verify_chain
from ledger.store.market import open_market
from ledger.store.mempool import list_mempool
from ledger.store.votes import check_owner, read_forgotten_below
from node.backup import check_database, list_databases
from node.datadir import DataDirectory, load_key
from node.files import read_bounded, write_public
from node.manifest import MANIFEST, Backup, BackupFile, Manifest, Progress, iterate_bytes

_PAGE = 1024
_PRIVATE_DIRECTORY = 0o700
_PRIVATE_FILE = 0o600
_SIDE_FILES = ("-wal", "-shm", "-journal")
_STAGING_PREFIX = ".restore."


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What a restore has done."""

    manifest: Manifest
    tip: Tip
    waiting: int
    """Receipts and other transactions that wait for a block."""
    moved: tuple[Path, ...]
    """Where the files are now that were replaced."""
    kept: tuple[Path, ...]
    """Files that were there, differ from the backup's, and stay."""


def restore_backup(
    backup: Backup,
    data: DataDirectory,
    *,
    replace: bool,
    now_ms: int,
    progress: Progress,
    fsck: Callable[[int, int], None] | None = None,
) -> Restored:
    """Put a backup into a data directory, which is made if it is missing.

    With `fsck`, which is told of every block, the ledger is verified from genesis before.

    Raises:
        OSError: the disk refuses.
        StoreError: the backup is damaged or of another network, a node runs on the directory, or
            there is something to be replaced and `replace` is not set. Then nothing has changed.
    """
    is_new = True
    try:
        data.root.mkdir(mode=_PRIVATE_DIRECTORY, parents=True)
    except FileExistsError:
        is_new = False
    try:
        with data.lock():
            return _restore(
                backup, data, replace=replace, now_ms=now_ms, progress=progress, fsck=fsck
            )
    except BaseException:
        if is_new:
            shutil.rmtree(data.root, ignore_errors=True)
        raise


def _copy_file(
    path: Path, file: BackupFile, source: BinaryIO, target: Path, progress: Progress
) -> None:
    """Copy the bytes that the manifest promises, durably, or refuse them."""
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _PRIVATE_FILE)
    with os.fdopen(descriptor, "wb") as handle:
        for chunk in iterate_bytes(path, file, source):
            handle.write(chunk)
            progress(f"copying {file.name}", handle.tell(), file.size_bytes)
        handle.flush()
        os.fsync(handle.fileno())


# --- checking -----------------------------------------------------------------------------------


def _restore(
    backup: Backup,
    data: DataDirectory,
    *,
    replace: bool,
    now_ms: int,
    progress: Progress,
    fsck: Callable[[int, int], None] | None,
) -> Restored:
    _check_target(data, backup.manifest, replace=replace)
    for left in data.root.glob(_STAGING_PREFIX + "*"):  # of a restore that was killed
        shutil.rmtree(left, ignore_errors=True)
    staged = DataDirectory(Path(tempfile.mkdtemp(prefix=_STAGING_PREFIX, dir=data.root)))
    try:
        for file, source in backup.files:
            _copy_file(backup.path, file, source, staged.root / file.name, progress)
        tip, waiting = _check_staged(staged, backup, progress, fsck)
        moved, kept = _put_in_place(staged, data, now_ms)
    finally:
        shutil.rmtree(staged.root, ignore_errors=True)
    return Restored(
        manifest=backup.manifest, tip=tip, waiting=waiting, moved=tuple(moved), kept=tuple(kept)
    )


def _check_target(data: DataDirectory, manifest: Manifest, *, replace: bool) -> None:
    """Refuse a directory of another network, or one with files that may not be replaced."""
    if data.genesis.exists():
        own = hash_genesis(data.load_genesis()).hex()
        if own != manifest.genesis:
            raise StoreError(
                f"{data.root}: belongs to network {own[:16]}…, the backup is of "
                f"{manifest.genesis[:16]}…; choose another --data"
            )
    if data.authority_key.exists() and data.votes.exists():
        key, instance = load_key(data.authority_key)
        with _open_votes(data) as connection:
            check_owner(
                data.votes,
                connection,
                instance=instance,
                account=key.account,
                genesis_hash=bytes.fromhex(manifest.genesis),
            )
    for path in (data.market, data.ledger):
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise StoreError(f"{path}: is no regular file, and is not replaced")
        if path.exists() and not replace:
            raise StoreError(
                f"{path}: exists already; with --replace it is moved aside, and nothing is deleted"
            )


def _check_staged(
    staged: DataDirectory,
    backup: Backup,
    progress: Progress,
    fsck: Callable[[int, int], None] | None,
) -> tuple[Tip, int]:
    """Check the copies; returns the tip, and how many transactions wait for a block."""
    try:
        genesis = parse_genesis(read_bounded(staged.genesis))
        if hash_genesis(genesis).hex() != backup.manifest.genesis:
            raise StoreError(f"{staged.genesis}: is not of the network that {MANIFEST} names")
        for path, migrations in list_databases(staged):
            progress(f"checking {path.name}", 0, 1)
            check_database(path, migrations)
        found = _open_staged(staged, genesis, backup)
        if fsck is not None:
            verify_chain(staged.ledger, genesis, fsck)
    except LedgerError as error:
        # The copies go away: what is wrong is wrong with the backup.
        sentence = str(error).replace(str(staged.root), str(backup.path))
        raise StoreError(sentence) from error
    return found


def _open_staged(staged: DataDirectory, genesis: Genesis, backup: Backup) -> tuple[Tip, int]:
    """Open the copies as a node does, which brings them up to this release's schema."""
    with contextlib.ExitStack() as stack:
        chain = stack.enter_context(contextlib.closing(ChainStore(staged.ledger, genesis)))
        market = stack.enter_context(
            contextlib.closing(open_market(staged.market, hash_genesis(genesis)))
        )
        try:
            tip, seq, waiting = chain.tip(), 0, 0
            while page := list_mempool(market.reader, limit=_PAGE, after=seq):
                seq = page[-1][0]
                waiting += sum(not chain.contains(id_, receipt) for _, id_, receipt, _ in page)
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            raise StoreError(f"{staged.root}: is not readable: {error}") from error
    if (tip.height, tip.hash.hex()) != (backup.manifest.height, backup.manifest.hash):
        raise StoreError(
            f"{staged.ledger}: ends at block {tip.height}, {tip.hash.hex()}; {MANIFEST} says "
            f"{backup.manifest.height}, {backup.manifest.hash}"
        )
    return tip, waiting


@contextlib.contextmanager
def _open_votes(data: DataDirectory) -> Iterator[sqlite3.Connection]:
    try:
        with contextlib.closing(open_reader(data.votes)) as connection:
            yield connection
    except sqlite3.Error as error:
        raise StoreError(f"{data.votes}: cannot be read: {error}") from error


def read_forgotten(data: DataDirectory) -> int:
    """Return the lowest height whose votes the authority of a directory remembers.

    Raises:
        StoreError: its votes.db cannot be read.
    """
    with _open_votes(data) as connection:
        return read_forgotten_below(data.votes, connection)


# --- putting in place ---------------------------------------------------------------------------


def _put_in_place(
    staged: DataDirectory, data: DataDirectory, now_ms: int
) -> tuple[list[Path], list[Path]]:
    """Returns what was moved aside, and what stays though the backup has another one."""
    kept: list[Path] = []
    if not data.genesis.exists():
        write_public(data.genesis, staged.genesis.read_bytes())
    if staged.options.exists():
        if not data.options.exists():
            staged.options.rename(data.options)
        elif data.options.read_bytes() != staged.options.read_bytes():
            kept.append(data.options)
    moved: list[Path] = []
    for source, target in ((staged.market, data.market), (staged.ledger, data.ledger)):
        _sync_staged(source)
        moved += _set_aside(target, now_ms)
        source.replace(target)
        sync_directory(data.root)
    return moved, kept


def _sync_staged(path: Path) -> None:
    """The check may have written to it; nothing of that may stand in a file beside it."""
    for end in _SIDE_FILES:
        beside = path.with_name(path.name + end)
        if beside.exists() and beside.stat().st_size and end != "-shm":
            raise StoreError(f"{beside}: the checked copy could not be closed")
    with path.open("rb") as handle:
        os.fsync(handle.fileno())


def _set_aside(path: Path, now_ms: int) -> list[Path]:
    """Give what is at `path` a second name, and take away what stands beside it.

    A write-ahead log that stayed would be played into the file that takes this place.
    """
    now = datetime.fromtimestamp(now_ms / 1000, UTC)
    aside = path.with_name(f"{path.name}.replaced-{now:%Y%m%dT%H%M%S}.{now_ms % 1000:03}")
    moved = []
    if path.exists():
        _settle(path)
        os.link(path, aside)
        moved.append(aside)
    for end in _SIDE_FILES:
        beside = path.with_name(path.name + end)
        if beside.exists():
            beside.rename(aside.with_name(aside.name + end))
            moved.append(aside.with_name(aside.name + end))
    return moved


def _settle(path: Path) -> None:
    """Let the write-ahead log go into its file, if both are sound: then there is only one file."""
    with (
        contextlib.suppress(sqlite3.Error),
        contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection,
    ):
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
