"""What a generated chain tells: blocks of payloads with those who sign them, always the same ones.

A `Recipe` is small and travels to the processes that sign; each tells its blocks from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

from blake3 import blake3

from ledger.block import hash_genesis
from ledger.hashing import build_receipt_id, hash_text, hash_tokens
from ledger.jobs import build_job_id, format_job_id
from ledger.keys import KeyPair
from ledger.payloads import MICROS, Payload, ReceiptPayload
from ledger.transaction import Role, Transaction, build_transaction, sign_payload
from node.datadir import DataDirectory, load_key

INTERVAL_MS = 250
"""Between two receipts of an even chain."""

_CLIENTS = 1000
_MINERS = 16
_MODELS = ("smollm2:135m", "llama3.2", "mistral:7b")
_TOKEN_PRICE_MICROS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A transaction to be signed."""

    payload: Payload
    signers: tuple[tuple[Role, KeyPair], ...]

    def sign(self) -> Transaction:
        """Return it as it goes into a block."""
        signatures = [sign_payload(self.payload, key, role) for role, key in self.signers]
        return build_transaction(self.payload, signatures)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedBlock:
    """A block to be sealed."""

    time_ms: int
    drafts: tuple[Draft, ...]


class Story(Protocol):
    """What happens on a chain."""

    def tell(self, number: int) -> PlannedBlock:
        """Return what is in a block; the first has number 0."""
        ...


class Recipe(Protocol):
    """All that a story is made of. Hashable, and equal where the stories are."""

    @property
    def blocks(self) -> int:
        """How many there are."""
        ...

    @property
    def batch_blocks(self) -> int:
        """How many of them are signed and stored at a time."""
        ...

    def build(self) -> Story:
        """Return the story."""
        ...

    def __hash__(self) -> int: ...


@cache
def _build(recipe: Recipe) -> Story:
    return recipe.build()


def recall(recipe: Recipe) -> Story:
    """Return the story of a recipe, built once in a process."""
    return _build(recipe)


@dataclass(frozen=True, slots=True, kw_only=True)
class Even:
    """Receipts at even intervals, in blocks of one size: for figures of receipts and blocks."""

    root: Path
    """The data directory."""
    first: int
    """Number of the first receipt: how many the chain has."""
    receipts: int
    block_receipts: int
    batch_blocks: int = 1

    @property
    def blocks(self) -> int:
        """How many there are; the last may have fewer receipts."""
        return -(-self.receipts // self.block_receipts)

    def build(self) -> Story:
        """Return the story."""
        return _EvenStory(self)


class _EvenStory:
    def __init__(self, recipe: Even) -> None:
        data = DataDirectory(recipe.root)
        genesis = data.load_genesis()
        self._recipe = recipe
        self._genesis = hash_genesis(genesis).hex()
        self._created_ms = genesis.created_ms
        self._coordinator, _ = load_key(data.authority_key)
        self._miners = [
            KeyPair.from_seed(blake3(f"generated miner {i}".encode()).digest())
            for i in range(_MINERS)
        ]

    def tell(self, number: int) -> PlannedBlock:
        recipe = self._recipe
        start = recipe.first + number * recipe.block_receipts
        end = min(start + recipe.block_receipts, recipe.first + recipe.receipts)
        return PlannedBlock(
            time_ms=self._created_ms + end * INTERVAL_MS - 1,
            drafts=tuple(self._draft(receipt) for receipt in range(start, end)),
        )

    def _draft(self, number: int) -> Draft:
        miner = self._miners[number % _MINERS]
        return Draft(
            payload=self._build_payload(number, miner.account),
            signers=(("coordinator", self._coordinator), ("provider", miner)),
        )

    def _build_payload(self, number: int, provider: str) -> ReceiptPayload:
        started_ms = self._created_ms + number * INTERVAL_MS
        job_id = format_job_id(build_job_id(now_ms=started_ms, entropy=number.to_bytes(10, "big")))
        salt = blake3(f"generated salt {number}".encode()).digest()
        prompt_tokens, completion_tokens = 20 + number % 180, 1 + number % 120
        tokens = prompt_tokens + completion_tokens
        return ReceiptPayload(
            genesis=self._genesis,
            receipt_id=build_receipt_id(
                genesis=self._genesis, coordinator=self._coordinator.account, job_id=job_id
            ),
            job_id=job_id,
            attempt=1,
            client=f"client-{number % _CLIENTS}",
            provider=provider,
            coordinator=self._coordinator.account,
            model=_MODELS[number % len(_MODELS)],
            model_digest=blake3(b"generated model").hexdigest(),
            prompt_digest=hash_text(salt, f"prompt {number}").hex(),
            result_digest=hash_text(salt, f"result {number}").hex(),
            tokens_digest=hash_tokens(salt, (number % 2**32,)).hex(),
            max_tokens=128,
            temperature_micros=700_000,
            top_p_micros=900_000,
            seed=number,
            sampler="aitbc-gumbel-v1",
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            unit_type="tokens",
            units_micros=tokens * MICROS,
            price_micros=tokens * _TOKEN_PRICE_MICROS,
            started_at_ms=started_ms,
            completed_at_ms=started_ms + INTERVAL_MS - 1,
            metered_by="provider",
        )
