"""One authority of four runs; the others' keys are in the test's hands."""

from __future__ import annotations

import contextlib
import time

import httpx2

from consensus.messages import Message, build_message
from ledger.block import Tip
from ledger.encoding import encode
from ledger.keys import KeyPair
from ledger.store.database import open_reader
from ledger.transaction import Transaction, build_transaction
from ledger.vote import QuorumCertificate, Vote, build_block_document, cast_vote
from node.p2p.address import MESSAGES_PATH
from tests.authorities import Authorities
from tests.builders import build_payload, sign_receipt


class Bench:
    """A running authority, and the other members' keys in the test's hands."""

    def __init__(self, network: Authorities, node, client) -> None:
        self.network, self.node, self.client = network, node, client
        self.keys = network.keys
        self.tip: Tip = node.chain.tip()
        self.height = self.tip.height + 1
        self.proposer = self.height % 4
        assert self.proposer == 1, "the node is member 0"

    def post(self, path: str, body: bytes, key: KeyPair | None = None, /, **changes):
        return self.network.stamp_and_post(0, path, body, key or self.keys[1], **changes)

    def say(self, message: Message, key: KeyPair | None = None) -> httpx2.Response:
        return self.post(MESSAGES_PATH, encode(message), key)

    def receipt(self, number: int = 1, **changes) -> Transaction:
        payload = build_payload(
            self.network.genesis, number, **{"coordinator": self.keys[1].account, **changes}
        )
        return build_transaction(payload, sign_receipt(payload, coordinator=self.keys[1]))

    def block(self, *transactions: Transaction, proposer: KeyPair | None = None):
        return self.network.propose(
            self.node,
            self.tip,
            *(transactions or [self.receipt()]),
            proposer=proposer or self.keys[1],
            time_ms=time.time_ns() // 1_000_000,
        )

    def vote(self, member: int, kind: str, block, *, key: KeyPair | None = None, view=0) -> Vote:
        return cast_vote(
            key or self.keys[member],
            member=member,
            tip=self.tip,
            kind=kind,
            view=view,
            block_hash="" if block is None else block.hash.hex(),
        )

    def certificate(self, kind: str, block, members) -> QuorumCertificate:
        votes = [(m, self.vote(m, kind, block).sig) for m in members]
        named = "" if block is None else block.hash.hex()
        return QuorumCertificate(kind=kind, view=0, block_hash=named, votes=tuple(votes))

    def proposal(self, block) -> Message:
        return build_message(
            self.tip,
            block=build_block_document(block),
            votes=[self.vote(self.proposer, "notarize", block)],
        )

    def said(self) -> list[tuple[str, int]]:
        """What the node has voted, from its votes.db."""
        return self._read_votes("kind, view")

    def said_of_blocks(self) -> list[tuple[str, str | None]]:
        """What the node has voted about which block, from its votes.db."""
        return self._read_votes("kind, lower(hex(block_hash))")

    def _read_votes(self, columns: str) -> list[tuple]:
        reader = open_reader(self.network.directories[0].votes)
        try:
            return [tuple(row) for row in reader.execute(f"SELECT {columns} FROM vote")]
        finally:
            reader.close()


@contextlib.contextmanager
def run_bench(root):
    network = Authorities(root, 4)
    with (
        network.run(0) as node,
        httpx2.Client(base_url=network.urls[0], timeout=30, trust_env=False) as client,
    ):
        yield Bench(network, node, client)
