"""`aitbc backup` and `aitbc restore`: a node's databases, copied while it runs and put back."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from ledger.block import Tip
from node.application import RELEASE
from node.backup import list_drafts, make_backup
from node.cli.options import data_option
from node.clock import read_clock_ms
from node.datadir import DataDirectory
from node.manifest import open_backup
from node.restore import read_forgotten, restore_backup

_WORTH_SHOWING = 64
"""Percents are shown of what has as many steps of pages or bytes, or more."""


class _Progress:
    """One line on a terminal, written over at each new percent, and gone at the end."""

    def __init__(self) -> None:
        self._shown = ""
        self._is_terminal = sys.stderr.isatty()

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown:
            click.echo(f"\r{'':<{len(self._shown)}}\r", nl=False, err=True)

    def __call__(self, what: str, done: int, total: int) -> None:
        text = f"{what}: {100 * done // total} %" if total > _WORTH_SHOWING else f"{what} …"
        if self._is_terminal and text != self._shown:
            click.echo(f"\r{text:<{len(self._shown)}}", nl=False, err=True)
            self._shown = text


@click.command()
@data_option
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    help="Where the backup goes, which must not exist: a .tar file, or else a directory.",
)
def backup(data: Path, output: Path) -> None:
    """Copy ledger.db and node.db consistently, whether the node runs or not, and check the copy.

    The backup is private: it holds prompts, results, digests of API keys and webhooks' secrets. It
    holds no keys/, of which a sealed copy belongs elsewhere, and no votes.db or witness.db, which
    are never copied.
    """
    for left in list_drafts(output):
        click.echo(
            f"{left}: left by a backup that was cut off, or under way; it is private: remove it "
            "unless one runs",
            err=True,
        )
    with _Progress() as progress:
        manifest = make_backup(
            DataDirectory(data), output, release=RELEASE, now_ms=read_clock_ms(), progress=progress
        )
    size_bytes = sum(file.size_bytes for file in manifest.files)
    click.echo(
        f"Backed up {data} to {output}: network {manifest.network}, {manifest.height} blocks, head "
        f"{manifest.hash}, {size_bytes} bytes, checked"
    )
    click.echo(
        "It holds prompts, results, digests of API keys and webhooks' secrets: keep it private."
    )
    click.echo(
        "Not in it: keys/ (keep a sealed copy elsewhere), votes.db and witness.db (never copied)."
    )


@click.command()
@data_option
@click.option(
    "--input",
    "source",
    type=click.Path(path_type=Path),
    required=True,
    help="The backup: a directory or a .tar file that ./aitbc backup made.",
)
@click.option(
    "--replace",
    is_flag=True,
    help="Move ledger.db and node.db aside if they are there; nothing is deleted.",
)
@click.option("--fsck", is_flag=True, help="Verify the whole ledger from genesis first.")
def restore(data: Path, source: Path, *, replace: bool, fsck: bool) -> None:
    """Put a backup into a data directory that no node runs on, and say what to do next.

    Everything is checked before anything is replaced. keys/, votes.db and witness.db stay as they
    are: never put an old votes.db beside a key.
    """
    directory = DataDirectory(data)
    with open_backup(source) as opened, _Progress() as progress:
        done = restore_backup(
            opened,
            directory,
            replace=replace,
            now_ms=read_clock_ms(),
            progress=progress,
            fsck=(lambda height, last: progress("verifying blocks", height, last))
            if fsck
            else None,
        )
    click.echo(
        f"Restored {source} to {data}: network {done.manifest.network}, {done.tip.height} blocks, "
        f"head {done.tip.hash.hex()}; {done.waiting} transactions wait for a block"
    )
    for path in done.moved:
        click.echo(f"What was there is now {path}")
    for path in done.kept:
        click.echo(f"{path} stays as it is; the backup has another one")
    click.echo(
        "API keys made after the backup are gone, and those revoked after it are good again: "
        f"./aitbc keys list --data {data}"
    )
    for sentence in _list_advice(directory, done.tip):
        click.echo(sentence)


def _list_advice(data: DataDirectory, tip: Tip) -> list[str]:
    """Return what the operator of a restored directory has to know and do, in sentences."""
    root, ends = data.root, f"block {tip.height}"
    if not data.authority_key.exists():
        advice = [
            f"No authority's key is here. A follower: ./aitbc run --data {root} --follow URL. "
            "An authority: put the sealed copy of keys/ back, and read docs/backup.md first: "
            "without the votes.db of its own disk that key must not vote again."
        ]
        if data.witness_key.exists() and not data.witness.exists():
            advice.append(
                "The witness' key is here without its witness.db: it cannot know what it has "
                "co-signed, and signs no more. Make a new witness."
            )
        return advice
    if not data.votes.exists():
        return [
            "keys/authority.json is here and its votes.db is not: the node refuses to vote, since "
            "it cannot know what this key has signed. Never put an old votes.db back. "
            f"Make a directory with a new key (./aitbc init --data NEW --genesis {data.genesis}), "
            "restore into that one, and have the other authorities replace the old key by the new "
            "one (./aitbc authority propose). A network of one authority has to be started anew."
        ]
    forgotten_below = read_forgotten(data)
    if tip.height + 1 >= forgotten_below:
        return [
            f"votes.db is this authority's own and stays. ./aitbc run --data {root} goes on: what "
            f"it has voted for after {ends} comes out of votes.db, or from the other authorities."
        ]
    return [
        f"votes.db is newer than this ledger, which ends at {ends}: the authority votes again only "
        f"once it has fetched the blocks up to {forgotten_below - 1}. A network of several: "
        f"./aitbc run --data {root} fetches them. A network of one: "
        f"./aitbc run --data {root} --peer URL, with the address of a follower that has them; if "
        "there is none, restore a newer backup. Never replace votes.db."
    ]
