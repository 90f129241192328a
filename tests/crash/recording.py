"""SQLite's file layer, with a note of everything that would reach a disk.

The standard library's SQLite lets nobody in between, so while `recorded()` lasts, `sqlite3.connect`
opens files with APSW, which brings an SQLite of its own and a file layer in Python. The index of a
WAL (`-shm`) is memory, dies with the power and is not noted.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import apsw

from tests.crash.connection import Connection

LAYER = "recording"
AUTOCHECKPOINT_PAGES = 24
"""Instead of 1000, so that short histories have many checkpoints and start their WAL anew often."""
SYNCHRONOUS = "PRAGMA synchronous"


class Write(NamedTuple):
    name: str
    offset: int
    data: bytes


class Truncate(NamedTuple):
    name: str
    size_bytes: int


class Sync(NamedTuple):
    name: str


class Create(NamedTuple):
    name: str


class Delete(NamedTuple):
    name: str
    is_synced: bool


Note = Write | Truncate | Sync | Create | Delete


class _File(apsw.VFSFile):
    def __init__(self, name: str, path, flags: list[int], notes: list[Note]) -> None:
        super().__init__("", path, flags)
        self._name = name
        self._notes = notes

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802 - SQLite's name
        self._notes.append(Write(self._name, offset, bytes(data)))
        super().xWrite(data, offset)

    def xTruncate(self, size: int) -> None:  # noqa: N802
        self._notes.append(Truncate(self._name, size))
        super().xTruncate(size)

    def xSync(self, flags: int) -> None:  # noqa: N802
        super().xSync(flags)
        self._notes.append(Sync(self._name))


class _Layer(apsw.VFS):
    def __init__(self, notes: list[Note]) -> None:
        super().__init__(LAYER, "")
        self._notes = notes

    def xOpen(self, name, flags: list[int]) -> _File:  # noqa: N802
        path = Path(name.filename() if isinstance(name, apsw.URIFilename) else name)
        is_new = not path.exists()
        file = _File(path.name, name, flags, self._notes)
        if is_new:
            self._notes.append(Create(path.name))
        return file

    def xDelete(self, name: str, sync: bool) -> None:  # noqa: N802, FBT001
        super().xDelete(name, sync)
        self._notes.append(Delete(Path(name).name, sync))


class _Careless(Connection):
    """Is told FULL, says FULL, and does NORMAL: the mistake that the harness must see."""

    def execute(self, sql: str, *parameters):
        if sql == f"{SYNCHRONOUS} = FULL":
            return super().execute(f"{SYNCHRONOUS} = NORMAL")
        if sql == SYNCHRONOUS:
            return super().execute("SELECT 2")
        return super().execute(sql, *parameters)


@contextlib.contextmanager
def recorded(*, careless: bool = False) -> Iterator[list[Note]]:
    """Note what all databases that are opened in the context do to their files."""
    notes: list[Note] = []
    layer = _Layer(notes)
    kind = _Careless if careless else Connection
    standard = sqlite3.connect

    def connect(target, *, uri: bool = False, **options):
        if str(target) in {"", ":memory:"}:
            return standard(target, uri=uri, **options)
        connection = kind(str(target), uri=uri, layer=LAYER)
        if not uri:
            connection.execute(f"PRAGMA wal_autocheckpoint = {AUTOCHECKPOINT_PAGES}")
        return connection

    with mock.patch.object(sqlite3, "connect", connect):
        yield notes
    layer.unregister()
