"""What histories are made of, built once per process: keys, networks, receipts, signatures.

Signatures are real, but a triple of key, message and signature is verified once per process: the
simulated nodes all verify the same bytes, and whatever was never seen is verified in earnest.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import pytest
from blake3 import blake3
from nacl.signing import VerifyKey

import ledger.keys
import ledger.store.reading
import ledger.transaction
import ledger.vote
import node.p2p.frames
from consensus.messages import parse_message
from ledger.authorities import Authority, AuthoritySet
from ledger.block import Genesis, Limits
from ledger.keys import KeyPair
from ledger.transaction import Transaction, build_transaction
from tests.builders import (
    CREATED_MS,
    build_audit_payload,
    build_payload,
    sign_audit,
    sign_receipt,
)

MAX_KEYS = 16
MAX_BLOCK_TRANSACTIONS = 2
"""Few, so that a history has many heights."""
MAX_RECEIPTS = 64
"""More than any history can seal."""
MAX_REMEMBERED = 1 << 14

KEYS = [KeyPair.from_seed(blake3(f"simulated {i}".encode()).digest()) for i in range(MAX_KEYS)]
KEY_OF = {key.account: key for key in KEYS}
COORDINATOR = KeyPair.from_seed(blake3(b"simulated coordinator").digest())
"""Issues receipts whoever the authorities are."""


def name_authority(key: KeyPair) -> Authority:
    return Authority(account=key.account, name=f"node {KEYS.index(key)}", url="")


def build_set(keys: list[KeyPair], *, epoch: int = 0) -> AuthoritySet:
    return AuthoritySet(
        epoch=epoch,
        members=tuple(name_authority(key) for key in keys),
        coordinators=(COORDINATOR.account,),
    )


@lru_cache
def build_network_genesis(count: int, network: str = "simulated") -> Genesis:
    """Networks that differ in name alone have the same members, and nothing else in common."""
    return Genesis(
        network=network,
        created_ms=CREATED_MS,
        authority_set=build_set(KEYS[:count]),
        limits=Limits(max_block_transactions=MAX_BLOCK_TRANSACTIONS),
        settlement="off_chain",
    )


@lru_cache(maxsize=1024)
def build_simulated_receipt(genesis: Genesis, number: int) -> Transaction:
    payload = build_payload(genesis, number, coordinator=COORDINATOR.account)
    return build_transaction(payload, sign_receipt(payload, coordinator=COORDINATOR))


@lru_cache(maxsize=1024)
def build_simulated_audit(genesis: Genesis, number: int) -> Transaction:
    """Return the audit of a receipt, which no block may hold before the receipt."""
    payload = build_audit_payload(
        genesis,
        number,
        coordinator=COORDINATOR.account,
        receipt_id=build_simulated_receipt(genesis, number).payload.receipt_id,
    )
    return build_transaction(payload, sign_audit(payload, coordinator=COORDINATOR))


@lru_cache
def list_simulated(genesis: Genesis) -> frozenset[bytes]:
    """Return the envelopes of all receipts and audits that are signed for histories."""
    return frozenset(
        build(genesis, number).envelope
        for build in (build_simulated_receipt, build_simulated_audit)
        for number in range(MAX_RECEIPTS)
    )


# Parsing is a pure function, and all nodes parse the same bytes.
parse_message_once = lru_cache(maxsize=MAX_REMEMBERED)(parse_message)
parse_frame_once = lru_cache(maxsize=MAX_REMEMBERED)(node.p2p.frames.parse_frame)
parse_genesis_once = lru_cache(maxsize=MAX_REMEMBERED)(ledger.block.parse_genesis)
decode_base64url_once = lru_cache(maxsize=MAX_REMEMBERED)(ledger.encoding.decode_base64url)
parse_transaction_once = lru_cache(maxsize=MAX_REMEMBERED)(ledger.transaction.parse_transaction)


class RememberingKey:
    """A public key that does not verify the same signature twice."""

    def __init__(self, key: VerifyKey) -> None:
        self._key = key
        self._good: set[tuple[bytes, bytes]] = set()

    def verify(self, message: bytes, signature: bytes) -> None:
        if (message, signature) not in self._good:
            self._key.verify(message, signature)
            if len(self._good) >= MAX_REMEMBERED:
                self._good.clear()
            self._good.add((message, signature))


@lru_cache
def remembering_key(account: str) -> RememberingKey:
    return RememberingKey(VerifyKey(ledger.keys.decode_account(account)))


@contextmanager
def cheap_repetition() -> Iterator[None]:
    """Let the process verify each signature and parse each document only once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ledger.keys, "_verify_key", remembering_key)
        for module in (ledger.vote, ledger.store.reading, node.p2p.frames):
            patch.setattr(module, "parse_transaction", parse_transaction_once)
        patch.setattr(ledger.store.reading, "parse_genesis", parse_genesis_once)
        patch.setattr(ledger.keys, "decode_base64url", decode_base64url_once)
        yield
