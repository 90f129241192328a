"""What clients were told, and whether it is so, in the end, on every node.

submitted   a job was accepted: it must reach an end
completed   a receipt was acknowledged: it must be in the chain, once
final       a receipt was shown as final at a height and a leaf: it stands there on every node,
            for ever
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from ledger.block import parse_genesis
from ledger.errors import LedgerError
from ledger.store.database import open_reader
from ledger.store.fsck import verify_chain
from scripts.chaos.nodes import Node

ENDED = frozenset({"completed", "failed", "cancelled"})


class Place(NamedTuple):
    """Where a receipt is final."""

    height: int
    leaf: int


class Completion(NamedTuple):
    """A receipt that a coordinator acknowledged."""

    job_id: str
    node: str
    at: float
    """Monotonic seconds."""


@dataclass
class History:
    """What was told, and by whom."""

    submitted: dict[str, str] = field(default_factory=dict)
    """Node by job."""
    ended: dict[str, str] = field(default_factory=dict)
    """State by job."""
    completed: dict[str, Completion] = field(default_factory=dict)
    """By receipt."""
    order: list[str] = field(default_factory=list)
    """The receipts, as they were acknowledged."""
    finals: dict[str, Place] = field(default_factory=dict)
    """By receipt, as whoever saw it first said."""
    looks: int = 0
    """How often a receipt was seen final, by anybody anywhere."""
    final_at: dict[int, float] = field(default_factory=dict)
    """When each height was seen first."""
    refused: Counter[str] = field(default_factory=Counter)
    """Requests without a good answer, by what came instead."""
    broken: list[str] = field(default_factory=list)
    """Promises that were broken, as seen on the way."""

    def note_completed(self, node: str, job_id: str, receipt_id: str) -> None:
        """A coordinator acknowledged a receipt."""
        known = self.completed.get(receipt_id)
        if known is None:
            self.completed[receipt_id] = Completion(job_id, node, time.monotonic())
            self.order.append(receipt_id)
        elif known.job_id != job_id:
            self.broken.append(f"{receipt_id} is of {known.job_id} and of {job_id}")
        if self.ended.setdefault(job_id, "completed") != "completed":
            self.broken.append(f"{job_id} was {self.ended[job_id]} and then completed")

    def note_final(self, node: str, receipt_id: str, place: Place) -> None:
        """A node showed a receipt as final."""
        self.looks += 1
        if (known := self.finals.setdefault(receipt_id, place)) != place:
            self.broken.append(f"{receipt_id} was final at {known}, and on {node} at {place}")

    def note_height(self, height: int) -> None:
        """A height is final."""
        self.final_at.setdefault(height, time.monotonic())


@dataclass(kw_only=True)
class Verdict:
    """What came of it, counted."""

    lost_writes: list[str] = field(default_factory=list)
    """Acknowledged and not there."""
    lost_finals: list[str] = field(default_factory=list)
    """Shown as final and not there, or elsewhere."""
    forks: list[str] = field(default_factory=list)
    double_receipts: list[str] = field(default_factory=list)
    stuck_jobs: list[str] = field(default_factory=list)
    """Accepted and without an end."""
    other: list[str] = field(default_factory=list)
    height: int = 0
    receipts: int = 0
    commit_ms: list[float] = field(default_factory=list)
    """From the acknowledgement of a receipt until it was seen final."""

    @property
    def faults(self) -> list[str]:
        """Everything that must not be."""
        groups = (self.lost_writes, self.lost_finals, self.forks, self.double_receipts)
        return [fault for group in (*groups, self.stuck_jobs, self.other) for fault in group]


class _JobOf(msgspec.Struct):
    job_id: str = ""


class _Envelope(msgspec.Struct):
    payload: _JobOf


def judge(history: History, nodes: Sequence[Node]) -> Verdict:
    """Verify all ledgers of the stopped network from genesis, and hold the history against them."""
    verdict = Verdict(other=list(history.broken))
    chains: dict[str, list[bytes]] = {}
    for node in nodes:
        try:
            genesis = parse_genesis(node.data.genesis.read_bytes())
            verify_chain(node.data.ledger, genesis, lambda _height, _last: None)
        except LedgerError as error:
            verdict.other.append(f"{node.name}: {error}")
            continue
        places, jobs, chains[node.name] = _read_ledger(node)
        _judge_receipts(history, node.name, places, verdict)
        doubled = [job for job, count in jobs.items() if count > 1]
        verdict.double_receipts += [f"{job} has {jobs[job]} on {node.name}" for job in doubled]
    verdict.stuck_jobs = [job for job in history.submitted if job not in history.ended]
    if len(chains) == len({node.name for node in nodes}):
        _judge_chains(chains, verdict)
        _measure(history, nodes[0], verdict)
    return verdict


def _judge_receipts(
    history: History, name: str, places: Mapping[str, Place], verdict: Verdict
) -> None:
    verdict.lost_writes += [f"{r} on {name}" for r in history.completed if r not in places]
    verdict.lost_finals += [
        f"{r} on {name}: told {place}, found {places.get(r)}"
        for r, place in history.finals.items()
        if places.get(r) != place
    ]


def _judge_chains(chains: Mapping[str, Sequence[bytes]], verdict: Verdict) -> None:
    first, *others = chains
    for name in others:
        pairs = zip(chains[first], chains[name], strict=False)
        for height, (one, other) in enumerate(pairs, start=1):
            if one != other:
                verdict.forks.append(f"height {height} of {first} and {name}")
                break
        if len(chains[name]) != len(chains[first]):
            verdict.other.append(
                f"{name} ends at {len(chains[name])}, {first} at {len(chains[first])}"
            )
    verdict.height = len(chains[first])


def _read_ledger(node: Node) -> tuple[dict[str, Place], Counter[str], list[bytes]]:
    """Return where each receipt is, how many each job has, and the hashes of all blocks."""
    with contextlib.closing(open_reader(node.data.ledger)) as reader:
        places, jobs = {}, Counter[str]()
        for receipt_id, height, leaf, envelope in reader.execute(
            "SELECT receipt_id, height, leaf, envelope FROM receipts JOIN transactions USING (leaf)"
        ):
            places[str(receipt_id)] = Place(height, leaf)
            jobs[msgspec.json.decode(envelope, type=_Envelope).payload.job_id] += 1
        rows = reader.execute("SELECT hash FROM blocks ORDER BY height")
        return places, jobs, [bytes(row[0]) for row in rows]


def _measure(history: History, node: Node, verdict: Verdict) -> None:
    places, _, _ = _read_ledger(node)
    verdict.receipts = len(places)
    for receipt_id, completion in history.completed.items():
        if receipt_id in places and places[receipt_id].height in history.final_at:
            took_s = history.final_at[places[receipt_id].height] - completion.at
            verdict.commit_ms.append(max(took_s, 0) * 1000)
