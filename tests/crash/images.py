"""What a disk may hold after a power cut.

A file is what was in it when it was synced last, and of what was written since, each write is
there, is not, or is there in some of its sectors of 512 bytes; sizes likewise, and names of files
that came or went since their directory was synced. SQLite syncs the directory with the first sync
of a journal or WAL that it has made, and after some deletions.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tests.crash.recording import Create, Delete, Note, Sync, Truncate, Write

SECTOR_BYTES = 512


@dataclass
class _File:
    synced: bytearray
    pending: list[Write | Truncate] = field(default_factory=list)
    is_new: bool = False
    """Its first sync makes its name durable."""

    def sync(self) -> None:
        for note in self.pending:
            _apply(self.synced, note)
        self.pending = []

    def draw(self, rng: random.Random | None) -> bytes:
        """What is found after a power cut; `None` keeps nothing that was not synced."""
        data = bytearray(self.synced)
        for note in self.pending if rng else ():
            _apply_some(data, note, rng)
        return bytes(data)


def _apply(data: bytearray, note: Write | Truncate) -> None:
    if isinstance(note, Truncate):
        del data[note.size_bytes :]
        return
    end = note.offset + len(note.data)
    if len(data) < end:
        data.extend(bytes(end - len(data)))
    data[note.offset : end] = note.data


def _apply_some(data: bytearray, note: Write | Truncate, rng: random.Random) -> None:
    fate = rng.choice(("lost", "kept", "torn"))
    if fate == "kept" or (fate == "torn" and isinstance(note, Truncate)):
        _apply(data, note)
    elif fate == "torn":
        for piece in _split(note):
            if rng.random() < 0.5:
                _apply(data, piece)


def _split(note: Write) -> Iterable[Write]:
    """The parts of a write in each sector."""
    start, end = note.offset, note.offset + len(note.data)
    while start < end:
        stop = min(end, start - start % SECTOR_BYTES + SECTOR_BYTES)
        yield Write(note.name, start, note.data[start - note.offset : stop - note.offset])
        start = stop


class Disk:
    """The files of one directory, as notes change them."""

    def __init__(self, folder: Path) -> None:
        """Start from what is there, all of it synced."""
        self._now = {
            path.name: _File(bytearray(path.read_bytes()))
            for path in folder.iterdir()
            if path.is_file() and not path.name.endswith("-shm")
        }
        self._durable = dict(self._now)
        """The directory as it was synced last."""

    def follow(self, note: Note) -> None:
        """Do what a note says."""
        match note:
            case Create(name):
                self._now[name] = _File(bytearray(), is_new=True)
            case Delete(name, is_synced):
                del self._now[name]
                if is_synced:
                    self._durable = dict(self._now)
            case Sync(name):
                file = self._now[name]
                file.sync()
                if file.is_new:
                    file.is_new = False
                    self._durable = dict(self._now)
            case Write(name) | Truncate(name):
                self._now[name].pending.append(note)

    def list_unsynced(self) -> set[str]:
        """Name the databases that a power cut would take something from."""
        changed = {
            name
            for name in self._now.keys() | self._durable.keys()
            if self._now.get(name) is not self._durable.get(name)
        }
        changed |= {name for name, file in self._now.items() if file.pending}
        return {name_database(name) for name in changed}

    def cut(self, folder: Path, rng: random.Random | None) -> None:
        """Write into an empty directory what a power cut leaves; `None`: only what was synced."""
        for name in sorted(self._now.keys() | self._durable.keys()):
            now, durable = self._now.get(name), self._durable.get(name)
            file = durable if rng is None or (now is not durable and rng.random() < 0.5) else now
            if file is not None:
                (folder / name).write_bytes(file.draw(rng))


def name_database(name: str) -> str:
    """Return which database a file belongs to: itself, its WAL or its journal."""
    return name.partition(".db")[0] + ".db"
