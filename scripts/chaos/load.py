"""Clients and miners of the authorities, and those who look at what is final.

A party submits a job, claims it as its miner, and completes it with a real receipt; some jobs are
cancelled, some completions are sent twice. What a node had no time to answer is unknown, and is
asked for again: the same completion, once the node is back.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import httpx2
import msgspec

from ledger.keys import KeyPair
from miner.receipt import build_receipt, build_registration, build_result, check_order
from miner.wire import ClaimedJob, Health
from node.datadir import load_key
from scripts.bench_figures.connection import Answer, Connection
from scripts.bench_figures.load import COMPLETION, ELAPSED_MS, MODEL, MODEL_DIGEST, PROMPT
from scripts.chaos.history import ENDED, History, Place
from scripts.chaos.nodes import Node

REQUEST_TIMEOUT_S = 6.0
RETRY_S = 0.2
CANCELLED = 0.03
"""Share of the jobs that their client cancels."""
TWICE = 0.05
"""Share of the completions that are sent twice."""
RECENT = 50
GOOD = frozenset({200, 201})
CONFLICT, NOT_FOUND, UNABLE = 409, 404, 503
ALLOWED = frozenset({CONFLICT, UNABLE})
"""What a node may answer that gave the job away meanwhile, is ending or has no room."""


class UnavailableError(Exception):
    """The node gave no good answer; try again later."""


class JobState(msgspec.Struct):
    """What a client looks at."""

    job_id: str = ""
    status: str = ""
    receipt_id: str = ""


class Shown(msgspec.Struct):
    """A receipt or transaction, as shown."""

    status: str = ""
    transaction_id: str = ""
    block_height: int = 0
    leaf: int = 0


@dataclass(kw_only=True)
class Pending:
    """A completion without an answer."""

    job_id: str
    body: bytes


class Client:
    """One connection to one node, made anew when it breaks: to the next, where there are others."""

    def __init__(
        self,
        node: Node,
        history: History,
        *,
        allowed: AbstractSet[int] = ALLOWED,
        others: Sequence[Node] = (),
    ) -> None:
        self.node = node
        self._turns = itertools.cycle([*others, node])
        self._history = history
        self._allowed = allowed
        self._connection: Connection | None = None

    async def call(self, method: str, path: str, body: object = None) -> Answer:
        """Send one request.

        Raises:
            UnavailableError: nobody answers, or not well.
        """
        data = body if isinstance(body, bytes) else msgspec.json.encode(body) if body else b""
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                if self._connection is None:
                    headers = {"X-Api-Key": self.node.admin_key} if self.node.admin_key else {}
                    self._connection = await Connection.open(self.node.port, headers)
                answer = await self._connection.request(method, path, data)
        except (OSError, EOFError, ValueError, TimeoutError) as error:
            await self.close()
            self._history.refused[type(error).__name__] += 1
            self.node = next(self._turns)
            raise UnavailableError from error
        if answer.status not in GOOD:
            self._note_refusal(answer, f"{method} {path}")
            if answer.status == UNABLE:
                await self.close()
                self.node = next(self._turns)
            raise UnavailableError(answer.status)
        return answer

    def _note_refusal(self, answer: Answer, what: str) -> None:
        self._history.refused[str(answer.status)] += 1
        if answer.status not in self._allowed and not self.node.may_end:
            self._history.broken.append(
                f"{self.node.name}: {what}: {answer.status} {answer.body[:200]!r}"
            )

    async def close(self) -> None:
        """Close the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(OSError):
                await connection.close()


class Party:
    """A client of one coordinator, and its miner."""

    def __init__(
        self,
        node: Node,
        history: History,
        number: int,
        *,
        pause_s: float,
        others: Sequence[Node] = (),
    ) -> None:
        self._client = Client(node, history, others=others)
        self._node = node
        self._history = history
        self._miner_id = f"miner-{number}"
        self._key: KeyPair = load_key(node.data.miner_key)[0]
        self._random = random.Random(number)  # noqa: S311 - no secret
        self._pause_s = pause_s
        self._genesis = ""
        self._pending: Pending | None = None

    async def run(self, stop: asyncio.Event) -> None:
        """One job after another until told to stop."""
        while not stop.is_set():
            try:
                if not self._genesis:
                    await self._register()
                if self._pending is not None:
                    await self._complete(self._pending)
                await self._run_job()
                await asyncio.sleep(self._pause_s)
            except UnavailableError:
                await asyncio.sleep(RETRY_S)
        await self._client.close()

    async def drain(self) -> None:
        """See to it that every job which this node accepted ends."""
        mine = [j for j, name in self._history.submitted.items() if name == self._node.name]
        for job_id in mine:
            while job_id not in self._history.ended:
                try:
                    if not self._genesis:
                        await self._register()
                    await self._end(job_id)
                except UnavailableError as error:
                    if error.args == (NOT_FOUND,):
                        break  # lost, and told of already
                    await asyncio.sleep(RETRY_S)
        await self._client.close()

    async def _end(self, job_id: str) -> None:
        answer = await self._client.call("GET", f"/v1/jobs/{job_id}")
        job = msgspec.json.decode(answer.body, type=JobState)
        if job.status == "completed":
            self._history.note_completed(self._node.name, job_id, job.receipt_id)
        elif job.status in ENDED:
            self._history.ended[job_id] = job.status
        elif job.status == "pending":
            await self._claim_and_complete(job_id)
        else:  # until its lease has run out
            await asyncio.sleep(RETRY_S)

    async def _register(self) -> None:
        health = await self._client.call("GET", "/health")
        genesis = msgspec.json.decode(health.body, type=Health).genesis
        body = build_registration(
            genesis=genesis, miner_id=self._miner_id, key=self._key, models=[MODEL], gpu_info=None
        )
        await self._client.call("POST", "/v1/miners/register", body)
        self._genesis = genesis

    async def _run_job(self) -> None:
        order = {"prompt": PROMPT, "model": MODEL, "params": {"max_tokens": 64}}
        answer = await self._client.call("POST", "/v1/jobs", order)
        job = msgspec.json.decode(answer.body, type=JobState)
        self._history.submitted[job.job_id] = self._node.name
        if self._random.random() < CANCELLED:
            await self._client.call("POST", f"/v1/jobs/{job.job_id}/cancel")
            self._history.ended[job.job_id] = "cancelled"
        else:
            await self._claim_and_complete(job.job_id)

    async def _claim_and_complete(self, job_id: str) -> None:
        claim = {"miner_id": self._miner_id, "heartbeat": True}
        answer = await self._client.call("POST", f"/v1/jobs/{job_id}/claim", claim)
        claimed = msgspec.json.decode(answer.body, type=ClaimedJob)
        receipt = build_receipt(
            check_order(claimed, genesis=self._genesis, account=self._key.account),
            COMPLETION,
            model_digest=MODEL_DIGEST,
            elapsed_ms=ELAPSED_MS,
        )
        result = build_result(receipt, COMPLETION, miner_id=self._miner_id, key=self._key)
        self._pending = Pending(job_id=job_id, body=msgspec.json.encode(result))
        await self._complete(self._pending)

    async def _complete(self, pending: Pending) -> None:
        for _ in range(2 if self._random.random() < TWICE else 1):
            path = f"/v1/jobs/{pending.job_id}/complete"
            try:
                answer = await self._client.call("POST", path, pending.body)
            except UnavailableError as error:
                if error.args:  # refused: its lease was lost meanwhile
                    self._pending = None
                raise
            done = msgspec.json.decode(answer.body, type=JobState)
            self._history.note_completed(self._node.name, pending.job_id, done.receipt_id)
        self._pending = None


class Onlooker:
    """Looks at receipts on one node, new ones and old ones."""

    def __init__(self, node: Node, history: History, seed: int, *, pause_s: float) -> None:
        self._client = Client(node, history, allowed=ALLOWED | {NOT_FOUND})
        self._node = node
        self._history = history
        self._random = random.Random(seed)  # noqa: S311 - no secret
        self._pause_s = pause_s

    async def run(self, stop: asyncio.Event) -> None:
        """Look again and again."""
        while not stop.is_set():
            order = self._history.order
            if order:
                receipts = order[-RECENT:] if self._random.random() < 0.5 else order
                with contextlib.suppress(UnavailableError):
                    await self._look(self._random.choice(receipts))
            await asyncio.sleep(self._pause_s if self._node.is_serving else RETRY_S)
        await self._client.close()

    async def _look(self, receipt_id: str) -> None:
        answer = await self._client.call("GET", f"/v1/receipts/{receipt_id}")
        receipt = msgspec.json.decode(answer.body, type=Shown)
        if receipt.status == "final":
            path = f"/v1/transactions/{receipt.transaction_id}"
            answer = await self._client.call("GET", path)
            shown = msgspec.json.decode(answer.body, type=Shown)
            place = Place(receipt.block_height, shown.leaf)
            self._history.note_final(self._node.name, receipt_id, place)


async def watch_heights(node: Node, history: History, stop: asyncio.Event) -> None:
    """Note when one block after another is final on a node."""
    async with httpx2.AsyncClient(timeout=REQUEST_TIMEOUT_S, trust_env=False) as client:
        while not stop.is_set():
            height = max(history.final_at, default=0) + 1
            query = {"from": str(height), "wait_ms": "3000", "limit": "1"}
            url = f"http://127.0.0.1:{node.port}/p2p/blocks"
            try:
                answer = await client.get(url, params=query)
            except httpx2.HTTPError:
                await asyncio.sleep(RETRY_S)
                continue
            if answer.is_success and answer.content:
                history.note_height(height)
