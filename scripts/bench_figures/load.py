"""The load: clients and miners that drive jobs through a node, in a process of their own.

    python -m scripts.bench_figures.load < order.json > report.json

A life cycle is three requests: submit, claim, complete with the provider's signature over the
receipt that the work order asks for. Each connection does one after another, as client and as
miner. The node's answers are parsed and the receipts built by the real miner's code.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import uvloop

from ledger.keys import KeyPair
from miner.engine import Completion
from miner.receipt import build_receipt, build_registration, build_result, check_order
from miner.wire import ClaimedJob, Health, Job
from node.datadir import DataDirectory, load_key
from scripts.bench_figures.connection import Connection
from scripts.bench_figures.node_process import ROOT

MODEL = "bench-model"
PROMPT = "Why is the sky blue? Answer in two sentences."
COMPLETION = Completion(
    text="Air scatters blue light more than red light. So blue reaches us from everywhere. " * 2,
    token_ids=tuple(range(48)),
    prompt_tokens=17,
    finish_reason="stop",
)
MODEL_DIGEST = "00" * 32
ELAPSED_MS = 0
"""A signed completion may not lie in the future, and these jobs take no time."""
LOAD_TIMEOUT_S = 120


class LoadOrder(msgspec.Struct, frozen=True, kw_only=True):
    """What a load process shall do."""

    port: int
    key: str
    """API key of an admin, who may do both sides' work."""
    data: str
    """The node's data directory, which holds a miner's signing key."""
    connections: int
    seconds: float
    """No life cycle begins later."""


class LoadReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a load process saw."""

    seconds: float
    """From the first request to the last answer."""
    cycle_ms: list[float]
    """For each life cycle, how long it took."""
    complete_ms: list[float]
    """For each, how long its last request took."""


class Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """A job whose answer and receipt wait to be sent."""

    receipt_id: str
    path: str
    data: bytes


class Party:
    """A client and its miner on one connection."""

    def __init__(self, connection: Connection, *, miner_id: str, key: KeyPair) -> None:
        self._connection = connection
        self._miner_id = miner_id
        self._key = key
        self._genesis = ""

    async def register(self) -> None:
        """Make the miner known."""
        health = await self._connection.expect(200, "GET", "/health")
        self._genesis = msgspec.json.decode(health.body, type=Health).genesis
        body = build_registration(
            genesis=self._genesis,
            miner_id=self._miner_id,
            key=self._key,
            models=[MODEL],
            gpu_info=None,
        )
        await self._post(201, "/v1/miners/register", body)

    async def run_job(self) -> tuple[str, float]:
        """One life cycle; returns the receipt's id and how long completing took, in ms."""
        prepared = await self.prepare()
        return prepared.receipt_id, await self.complete(prepared)

    async def prepare(self) -> Prepared:
        """Submit a job, claim it, and sign its receipt."""
        order = {"prompt": PROMPT, "model": MODEL, "params": {"max_tokens": 64}}
        job = msgspec.json.decode(await self._post(201, "/v1/jobs", order), type=Job)
        path = f"/v1/jobs/{job.job_id}"
        claim = {"miner_id": self._miner_id, "heartbeat": True}
        claimed = msgspec.json.decode(
            await self._post(200, f"{path}/claim", claim), type=ClaimedJob
        )
        receipt = build_receipt(
            check_order(claimed, genesis=self._genesis, account=self._key.account),
            COMPLETION,
            model_digest=MODEL_DIGEST,
            elapsed_ms=ELAPSED_MS,
        )
        result = build_result(receipt, COMPLETION, miner_id=self._miner_id, key=self._key)
        return Prepared(
            receipt_id=receipt.receipt_id,
            path=f"{path}/complete",
            data=msgspec.json.encode(result),
        )

    async def complete(self, prepared: Prepared) -> float:
        """Complete a job; returns how long that took, in ms."""
        began = time.perf_counter()
        await self._connection.expect(200, "POST", prepared.path, prepared.data)
        return (time.perf_counter() - began) * 1000

    async def is_final(self, receipt_id: str) -> bool:
        """Ask whether a receipt's block is certified."""
        answer = await self._connection.expect(200, "GET", f"/v1/receipts/{receipt_id}")
        return b'"status":"final"' in answer.body

    async def close(self) -> None:
        """Close the connection."""
        await self._connection.close()

    async def _post(self, status: int, path: str, body: object) -> bytes:
        data = msgspec.json.encode(body)
        return (await self._connection.expect(status, "POST", path, data)).body


def run_load(order: LoadOrder) -> LoadReport:
    """Load a node from another process."""
    result = subprocess.run(
        [sys.executable, "-m", __name__],
        cwd=ROOT,
        input=msgspec.json.encode(order),
        stdout=subprocess.PIPE,
        timeout=LOAD_TIMEOUT_S,
        check=True,
    )
    return msgspec.json.decode(result.stdout, type=LoadReport)


async def open_party(port: int, api_key: str, data: DataDirectory, number: int) -> Party:
    """Connect a client and its registered miner to a node."""
    key, _ = load_key(data.miner_key)
    connection = await Connection.open(port, {"X-Api-Key": api_key})
    party = Party(connection, miner_id=f"miner-{number}", key=key)
    await party.register()
    return party


async def _run(order: LoadOrder) -> LoadReport:
    data = DataDirectory(Path(order.data))
    parties = [await open_party(order.port, order.key, data, i) for i in range(order.connections)]
    cycle_ms: list[float] = []
    complete_ms: list[float] = []
    began = time.perf_counter()

    async def work(party: Party) -> None:
        while (start := time.perf_counter()) - began < order.seconds:
            _, took_ms = await party.run_job()
            complete_ms.append(took_ms)
            cycle_ms.append((time.perf_counter() - start) * 1000)

    async with asyncio.TaskGroup() as tasks:
        for party in parties:
            tasks.create_task(work(party))
    seconds = time.perf_counter() - began
    for party in parties:
        await party.close()
    return LoadReport(seconds=seconds, cycle_ms=cycle_ms, complete_ms=complete_ms)


def main() -> None:
    """Read an order, carry it out, write the report."""
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=LoadOrder)
    sys.stdout.buffer.write(msgspec.json.encode(uvloop.run(_run(order))))


if __name__ == "__main__":
    main()
