"""A coordinator on real stores without sockets or threads of its own: tests move its clock, seal
when they want, and reopen its files as a restart would.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest
from msgspec import structs

from ledger.block import hash_genesis
from ledger.errors import MarketError
from ledger.jobs import (
    Caller,
    Claim,
    Job,
    JobOrder,
    Prices,
    Registration,
    Report,
    build_registration_message,
)
from ledger.keys import KeyPair
from ledger.metering import build_receipt
from ledger.store.chain import ChainStore
from ledger.store.fsck import verify_chain
from ledger.store.market import open_market
from ledger.store.marketstore import MarketStore
from ledger.store.mempool import list_mempool
from ledger.store.votes import VoteStore
from ledger.transaction import Signature, sign_payload
from ledger.views import LedgerViews
from node.coordinator import Coordinator, MarketSettings
from node.mempool import Mempool
from node.sealer import Sealer
from tests.builders import CREATED_MS, build_genesis, build_members

T = TypeVar("T")

CLIENT = Caller(key="ckey", client="client-1", role="client")
MINER = Caller(key="mkey", client="miner-key", role="miner")
ADMIN = Caller(key="akey", client="admin-key", role="admin")
SETTINGS = MarketSettings(prices=Prices(tokens=2, gpu_seconds=500), max_pending_per_key=5)
ORDER = JobOrder(
    prompt="Why is the sky blue?",
    model="llama3.2",
    max_tokens=100,
    temperature_micros=700_000,
    top_p_micros=900_000,
)


class NoPeers:
    """A network of one has nobody to talk to."""

    def broadcast(self, message):
        del message

    def fetch(self, height):
        raise AssertionError(f"nobody could have decided height {height}")

    def list_silent(self, tip):
        raise AssertionError("nobody is asked who is silent")


class MarketNode:
    """The stores, coordinator and sealer of one authority in a directory, also one with files."""

    def __init__(
        self,
        root: Path,
        *,
        settings: MarketSettings = SETTINGS,
        open_store: Callable[[Path, bytes], MarketStore] = open_market,
        **limits: Any,
    ) -> None:
        self.now_ms = CREATED_MS + 1_000
        self.genesis = build_genesis(1, **limits)
        (self.key,) = build_members(1)
        self.failures: list[BaseException] = []
        self.kicks = 0
        self.moves: list[tuple[str, str]] = []
        self._settings = settings
        self._root = root
        self._open_store = open_store
        self._owner = {
            "instance": "4f1c7d20a95b4e7c8f0d3a6b1e2c9d85",
            "account": self.key.account,
            "genesis_hash": hash_genesis(self.genesis),
        }
        self._runner = asyncio.Runner()
        if not (root / "votes.db").exists():
            VoteStore.create(root / "votes.db", **self._owner).close()
        self._open()

    def _open(self) -> None:
        self.chain = ChainStore(self._root / "ledger.db", self.genesis)
        self.store = self._open_store(self._root / "node.db", self._owner["genesis_hash"])
        self.votes = VoteStore.open(self._root / "votes.db", **self._owner)
        self.views = LedgerViews(self.chain, self.store)
        self.coordinator = Coordinator(
            chain=self.chain,
            store=self.store,
            key=self.key,
            settings=self._settings,
            moved=lambda event, reason: self.moves.append((event, reason)),
            clock_ms=lambda: self.now_ms,
            receipt_waiting=self._note_receipt,
        )
        self.mempool = Mempool(chain=self.chain, market=self.store)
        self.sealer = Sealer(
            chain=self.chain,
            mempool=self.mempool,
            peers=NoPeers(),
            votes=self.votes,
            key=self.key,
            clock_ms=lambda: self.now_ms,
            batch_delay_ms=0,
            final=lambda _height: None,
            failed=self.failures.append,
        )
        self._is_sealing = False

    def _note_receipt(self) -> None:
        self.kicks += 1

    def _close(self) -> None:
        self.votes.close()
        self.store.close()
        self.chain.close()

    def close(self) -> None:
        self._close()
        self._runner.close()

    def restart(self) -> None:
        """Close every file and start over from what is in them."""
        self._close()
        self._open()

    def do(self, call: Coroutine[Any, Any, T]) -> T:
        """Run one call of the coordinator to its end."""
        return self._runner.run(call)

    def seal(self) -> int:
        """Let the sealer do in this thread all that it can do now; returns the height."""
        if not self._is_sealing:
            self._is_sealing = True
            self.sealer._open_height()
        self.sealer._carry_on()
        self.sealer._note_waiting()
        self.sealer._carry_on()
        return self.chain.tip().height

    def verify(self) -> int:
        """fsck the ledger; returns the number of its transactions."""
        return verify_chain(
            self._root / "ledger.db", self.genesis, lambda _height, _last: None
        ).tree_size

    @property
    def pending_receipts(self) -> list[str]:
        return [receipt_id for _, _, receipt_id, _ in list_mempool(self.store.reader, limit=1000)]

    # What tests ask of a market

    def submit(self, caller: Caller = CLIENT, **order: Any) -> Job:
        return self.do(self.coordinator.submit(caller, msgspec.structs.replace(ORDER, **order)))

    def register(
        self,
        miner_id: str = "m1",
        capabilities: tuple[str, ...] = ("*",),
        *,
        key: KeyPair | None = None,
        caller: Caller = MINER,
        audits: bool = False,
    ) -> None:
        signed = {}
        if key is not None:
            message = build_registration_message(
                genesis_hash=self._owner["genesis_hash"], miner_id=miner_id, account=key.account
            )
            signed = {"account": key.account, "proof": key.sign(message)}
        registration = Registration(
            miner_id=miner_id, capabilities=capabilities, audits=audits, **signed
        )
        self.do(self.coordinator.register_miner(caller, registration))

    def claim(self, job: Job, miner_id: str = "m1", *, heartbeat: bool = True) -> Claim:
        return self.do(self.coordinator.claim(MINER, job.job_id, miner_id, heartbeat=heartbeat))

    def complete(self, job: Job, miner_id: str = "m1", result: str = "Rayleigh.", **report: Any):
        return self.do(
            self.coordinator.complete(
                MINER, job.job_id, Report(miner_id=miner_id, result=result, **report)
            )
        )

    def finish(self, **order: Any) -> str:
        """Run one job from submission to its receipt; returns the receipt id."""
        self.register()
        job = self.submit(**order)
        self.claim(job)
        self.now_ms += 500
        return self.complete(job).payload.receipt_id

    def read(self, job: Job) -> Job:
        return self.coordinator.job(job.job_id)


def sign_report(claim: Claim, key: KeyPair, *, now_ms: int, **report: Any) -> Report:
    """The signed report of a miner that was given this claim."""
    draft = Report(
        miner_id=claim.job.miner_id or "",
        completed_at_ms=now_ms,
        # That there is a signature decides what the receipt says; which one does not.
        signature=Signature(key_id=key.account, role="provider", sig=""),
        **report,
    )
    payload = build_receipt(
        claim.job, draft, terms=claim.terms, now_ms=now_ms, max_run_ms=SETTINGS.execution_timeout_ms
    )
    return structs.replace(draft, signature=sign_payload(payload, key, "provider"))


@contextlib.contextmanager
def two_miners(root, open_store) -> Iterator[MarketNode]:
    """A node with miners m1 and m2."""
    node = MarketNode(root, open_store=open_store)
    node.register()
    node.register("m2")
    try:
        yield node
    finally:
        node.close()


def refused(code: str):
    """Expect the market to refuse with this code."""
    return pytest.raises(MarketError, check=lambda error: error.code == code)
