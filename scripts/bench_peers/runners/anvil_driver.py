"""Hands signed transactions to anvil, whose own accounts sign them before.

A transaction counts when its request is answered; it is then in memory. The processor time counts
until all are in blocks.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec
import uvloop

from scripts.bench_figures.connection import Connection
from scripts.bench_peers.work import Order, Report, read_order, say_begin, say_report

DATA = "0x" + "5a" * 512
"""As many bytes as a receipt's fields have."""
GAS = hex(200_000)
GAS_PRICE = hex(10**10)
LOOK_S = 0.01
MINED_TIMEOUT_S = 60


class _Reply(msgspec.Struct):
    result: Any = None
    error: Any = None


class Chain:
    """One connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @classmethod
    async def open(cls, order: Order) -> Chain:
        """Connect."""
        return cls(await Connection.open(int(order.address), {}))

    async def call(self, method: str, *arguments: object) -> Any:
        """One request of JSON-RPC."""
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": arguments}
        answer = await self._connection.expect(200, "POST", "/", msgspec.json.encode(body))
        reply = msgspec.json.decode(answer.body, type=_Reply)
        if reply.error is not None:
            raise RuntimeError(f"{method}: {reply.error}")
        return reply.result


async def run(order: Order) -> Report:
    """Sign, then send everything, each account on its own connection."""
    chains = [await Chain.open(order) for _ in range(order.connections)]
    accounts = await chains[0].call("eth_accounts")
    pairs = list(zip(chains, accounts, strict=True))
    signed = await asyncio.gather(*(_sign(*pair, order) for pair in pairs))
    began_s, began_cpu_s = say_begin(), time.process_time()
    hashes = await asyncio.gather(*map(_send, chains, signed))
    seconds, cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
    for chain, last in zip(chains, hashes, strict=True):
        await _wait_until_mined(chain, last)
    return Report(count=sum(map(len, signed)), seconds=seconds, cpu_s=cpu_s)


async def _sign(chain: Chain, account: str, order: Order) -> list[str]:
    first = int(await chain.call("eth_getTransactionCount", account, "latest"), 16)
    signed = []
    for nonce in range(first, first + order.records // order.connections):
        transaction = {
            "from": account,
            "to": account,
            "nonce": hex(nonce),
            "gas": GAS,
            "gasPrice": GAS_PRICE,
            "value": "0x0",
            "data": DATA,
        }
        answer = await chain.call("eth_signTransaction", transaction)
        signed.append(answer if isinstance(answer, str) else answer["raw"])
    return signed


async def _send(chain: Chain, signed: list[str]) -> str:
    sent = [await chain.call("eth_sendRawTransaction", one) for one in signed]
    return str(sent[-1])


async def _wait_until_mined(chain: Chain, last: str) -> None:
    async with asyncio.timeout(MINED_TIMEOUT_S):
        while True:
            receipt = await chain.call("eth_getTransactionReceipt", last)
            if receipt is not None and receipt["status"] == "0x1":
                return
            await asyncio.sleep(LOOK_S)


if __name__ == "__main__":
    say_report(uvloop.run(run(read_order())))
