"""Whether our stores open what a power cut has left, and find in it all that was acknowledged."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

from ledger.errors import LedgerError
from ledger.store.database import open_reader
from tests.crash.workload import Fact, NotedNode

DATABASES = ("votes.db", "ledger.db", "node.db")


def judge(folder: Path, facts: Sequence[Fact], *, cut: int, now_ms: int) -> list[str]:
    """Open what a power cut after so many notes has left; return what is missing or damaged.

    Then the node goes on: receipts that waited become final.
    """
    try:
        node = NotedNode(folder)
    except (LedgerError, sqlite3.Error) as error:
        return [f"does not open: {error}"]
    node.now_ms = now_ms
    try:
        return list(_list_faults(node, folder, facts, cut))
    except (LedgerError, sqlite3.Error) as error:
        return [f"cannot be read: {error}"]
    finally:
        node.close()


def _list_faults(node: NotedNode, folder: Path, facts: Sequence[Fact], cut: int) -> Iterator[str]:
    known = [fact for fact in facts if fact.after <= cut]
    for name in DATABASES:
        with contextlib.closing(open_reader(folder / name)) as reader:
            (said,) = reader.execute("PRAGMA integrity_check").fetchone()
            if said != "ok":
                yield f"{name}: {said}"
    yield from _find_lost_votes(node, known)
    yield from _find_lost_blocks(node, known)
    receipts = set()
    for problem, receipt_id in _follow_jobs(node, facts, cut):
        if problem:
            yield problem
        receipts.add(receipt_id)
    node.seal()
    for receipt_id in filter(None, receipts):
        if node.chain.locate_receipt(receipt_id) is None:
            yield f"receipt {receipt_id} does not become final"
    if node.failures:
        yield f"the sealer stopped: {node.failures[0]}"
    node.verify()


def _find_lost_votes(node: NotedNode, known: Sequence[Fact]) -> Iterator[str]:
    for fact in known:
        if fact.votes is not None and fact.votes.height >= node.votes.forgotten_below:
            found = node.votes.load(fact.votes.height)
            for kind in ("votes", "blocks", "certificates"):
                if not set(getattr(fact.votes, kind)) <= set(getattr(found, kind)):
                    yield f"{kind} of height {fact.votes.height} are lost"


def _find_lost_blocks(node: NotedNode, known: Sequence[Fact]) -> Iterator[str]:
    for fact in known:
        if fact.height:
            row = node.chain.database.reader.execute(
                "SELECT hash FROM blocks WHERE height = ?", (fact.height,)
            ).fetchone()
            if row is None or row[0] != fact.block_hash:
                yield f"block {fact.height} is lost"


def _follow_jobs(
    node: NotedNode, facts: Sequence[Fact], cut: int
) -> Iterator[tuple[str | None, str | None]]:
    """Yield what is wrong with each acknowledged job, if anything, and its receipt's id, if any."""
    last, following = {}, {}
    for fact in facts:
        if fact.job is not None:
            if fact.after <= cut:
                last[fact.job.job_id] = fact.job
            else:
                following.setdefault(fact.job.job_id, fact.job)
    for job_id, job in last.items():
        try:
            found = node.read(job)
        except LedgerError as error:
            yield f"job {job_id}: {error}", None
            continue
        # The next answer may have been on its way: its write is there, or is not.
        if found not in (job, following.get(job_id)):
            yield f"job {job_id} was {job.state} and is {found.state}", None
        yield None, job.receipt_id
