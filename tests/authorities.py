"""Authorities of one network in this process, each with its own files, sockets and threads.

A test runs as many of them as it likes and plays the others itself: it has their keys.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx2
import uvicorn

from ledger.block import Block, Tip, hash_genesis
from ledger.jobs import KeyRole
from ledger.keys import KeyPair
from ledger.rules import build_block
from ledger.transaction import Transaction
from node.apikeys import issue_key
from node.assembly import Node, open_node
from node.config import NodeSettings
from node.datadir import DataDirectory, Founder, create_network, load_key
from node.directhttp import DirectProtocol
from node.local.ports import HOST, choose_ports
from node.p2p.stamp import build_stamp
from tests.builders import CREATED_MS

STOP_TIMEOUT_S = 30


class Authorities:
    """The directories and keys of a network, and addresses that stay over restarts."""

    def __init__(self, root: Path, count: int, *, stated: Mapping[int, str] | None = None) -> None:
        """`stated`: addresses that genesis states instead of the true ones, by index."""
        self.urls = [f"http://{HOST}:{port}" for port in choose_ports(0, count)]
        founders = [
            Founder(
                root=root / f"authority-{i}", name=f"authority {i}", url=(stated or {}).get(i, url)
            )
            for i, url in enumerate(self.urls)
        ]
        self.directories = create_network(founders, network="test-net", now_ms=CREATED_MS)
        self.genesis = self.directories[0].load_genesis()
        self.genesis_hash = hash_genesis(self.genesis)
        self.keys: list[KeyPair] = [load_key(d.authority_key)[0] for d in self.directories]

    def create_key(self, index: int, role: KeyRole) -> str:
        """Make an API key of a node that does not run."""
        return issue_key(self.directories[index], role, now_ms=CREATED_MS)

    def stamp_and_post(
        self, index: int, path: str, body: bytes, key: KeyPair, /, **changes: Any
    ) -> httpx2.Response:
        """Post a body to one authority under the stamp of `key`."""
        stamped: dict[str, Any] = {
            "genesis_hash": self.genesis_hash,
            "recipient": self.keys[index].account,
            "path": path,
            "body": body,
        }
        headers = build_stamp(key, **stamped | changes)
        return httpx2.post(
            self.urls[index] + path,
            content=body,
            headers=headers,
            timeout=30,
            trust_env=False,
            verify=False,  # to read the system's certificates takes longer than the request
        )

    @contextlib.contextmanager
    def run(self, index: int, **settings: Any) -> Iterator[Node]:
        """Run one authority at its address."""
        with serve_node(self.directories[index], self.urls[index], **settings) as node:
            yield node

    def propose(
        self, node: Node, tip: Tip, *transactions: Transaction, proposer: KeyPair, time_ms: int
    ) -> Block:
        """Build a block on the chain of a running node."""
        return build_block(
            tip,
            transactions,
            time_ms=time_ms,
            proposer=proposer.account,
            read=node.chain.read_node,
        )


@contextlib.contextmanager
def serve_node(data: DataDirectory, url: str, **settings: Any) -> Iterator[Node]:
    """Run a node of this directory with its real lifespan, in a thread."""
    host, port = url.removeprefix("http://").split(":")
    defaults: dict[str, Any] = {
        "data": data.root,
        "host": host,
        "port": int(port),
        "mode": "dev",
        "default_model": "llama3.2",
        "price_token_micros": 2,
        "price_gpu_second_micros": 500,
        "batch_delay_ms": 0,
        "max_pending_per_key": 10_000,
    }
    servers: list[uvicorn.Server] = []

    def stop() -> None:
        for server in servers:
            server.should_exit = True

    with contextlib.ExitStack() as stack:
        node = stack.enter_context(open_node(NodeSettings(**defaults | settings), stop=stop))
        listening = stack.enter_context(socket.create_server((host, int(port))))
        config = uvicorn.Config(
            node.app,
            http=DirectProtocol,
            access_log=False,
            log_config=None,
            timeout_graceful_shutdown=1,
        )
        server = uvicorn.Server(config)
        servers.append(server)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield node
        finally:
            node.begin_shutdown()
            server.should_exit = True
            thread.join(STOP_TIMEOUT_S)
            assert not thread.is_alive()
            assert node.failure is None, node.failure
