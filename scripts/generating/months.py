"""Months of a market: days and nights, growth, an outage, models come and go, prices fall.

Everything follows from the recipe, in integers, so it is the same on every machine: receipt
`number` is in the block that the sizes of blocks put it into, and that block stands at the time
at which the market had done so many jobs.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ledger.block import hash_genesis
from ledger.hashing import build_receipt_id
from ledger.jobs import build_job_id, format_job_id
from ledger.keys import KeyPair
from ledger.payloads import MICROS, AuditPayload, ReceiptPayload
from ledger.replay import GAP_LIMIT_MICROS, MEAN_GAP_LIMIT_MICROS, METHOD
from ledger.transaction import Role
from node.datadir import DataDirectory, load_key
from scripts.generating.draws import Choices, draw, is_among, scale
from scripts.generating.people import (
    CHEAT,
    MODELS,
    SHARES,
    Miner,
    Model,
    choose_clients,
    draw_bytes,
    list_miners,
)
from scripts.generating.story import Draft, PlannedBlock
from scripts.generating.times import Calendar, list_block_ends

DAY_MS = 86_400_000
BATCH_BLOCKS = 400
"""The more receipts in a transaction, the fewer of them share a page of an index with no other."""

_AUDIT_LAG = 3
"""An audit stands so many blocks above its receipt."""
_AUDITED = 30
"""Of a thousand receipts."""
_CHEATED, _WRONGED = 420, 1
"""Of a thousand audits of the cheat and of others, how many fail."""
_RETRIED, _RETRIED_TWICE = 960, 992
"""Of a thousand jobs, which need a second or a third attempt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Months:
    """A market of so many receipts over so many days."""

    root: Path
    """The data directory."""
    seed: int
    receipts: int
    days: int
    batch_blocks: int = BATCH_BLOCKS

    @property
    def blocks(self) -> int:
        """How many there are."""
        return len(list_block_ends(self.seed, self.receipts))

    def build(self) -> MarketStory:
        """Return the story."""
        return MarketStory(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Deal:
    """One job that was done, in words of the market; its receipt says the same."""

    number: int
    model: Model
    miner: Miner
    client: str
    share: int
    """Of the whole time, how much had passed."""
    created_ms: int
    started_ms: int
    completed_ms: int
    job_id: bytes
    attempt: int
    max_tokens: int
    prompt_tokens: int
    completion_tokens: int
    token_price_micros: int
    seed: int
    more: tuple[int, ...]
    """Numbers for what else is decided by chance."""

    @property
    def is_audited(self) -> bool:
        """Whether somebody replays its answer."""
        can = self.miner.key is not None and self.model.price_micros > 0
        return can and is_among(self.more[0], _AUDITED)


class MarketStory:
    """What happens in these months."""

    def __init__(self, recipe: Months) -> None:
        data = DataDirectory(recipe.root)
        genesis = data.load_genesis()
        self._recipe = recipe
        self._genesis = hash_genesis(genesis).hex()
        self._coordinator, _ = load_key(data.authority_key)
        self._calendar = Calendar(
            seed=recipe.seed,
            receipts=recipe.receipts,
            days=recipe.days,
            created_ms=genesis.created_ms,
        )
        self._clients = choose_clients()
        self.end_ms = genesis.created_ms + recipe.days * DAY_MS
        self.miners = list_miners(recipe.seed)

    @cached_property
    def _miners_of(self) -> dict[tuple[Model, int], Choices[Miner]]:
        return {
            (model, share): Choices(those, [miner.weight for miner in those])
            for model in MODELS
            for share in range(0, SHARES + 1, 50)
            if (those := [m for m in self.miners if model in m.models and _is_there(m, share)])
        }

    @cached_property
    def _models_at(self) -> list[Choices[Model]]:
        there = [[m for m in MODELS if _is_there(m, share)] for share in range(SHARES + 1)]
        return [Choices(models, [m.weight for m in models]) for models in there]

    def tell(self, number: int) -> PlannedBlock:
        """Return what is in a block."""
        receipts = tuple(self._draft_receipt(deal) for deal in self.list_deals(number))
        audits = tuple(self._draft_audits(number))
        return PlannedBlock(time_ms=self._calendar.find_time(number), drafts=receipts + audits)

    @property
    def seed(self) -> int:
        """Of the recipe."""
        return self._recipe.seed

    @property
    def days(self) -> int:
        """How long it lasts."""
        return self._recipe.days

    def list_receipts(self, number: int) -> range:
        """Return the numbers of the receipts in a block."""
        return self._calendar.list_receipts(number)

    def list_deals(self, number: int) -> list[Deal]:
        """Return the jobs whose receipts are in a block, as they were submitted."""
        time_ms = self._calendar.find_time(number)
        return [self._make_deal(n, time_ms) for n in self._calendar.list_receipts(number)]

    def _make_deal(self, number: int, block_ms: int) -> Deal:
        n = draw(f"deal {self._recipe.seed} {number}", 16)
        share = number * SHARES // self._recipe.receipts
        model = self._models_at[share].choose(n[0])
        miner = self._miners_of[model, share - share % 50].choose(n[1])
        max_tokens = (64, 128, 256, 256, 512, 512, 1024, 2048)[n[2] % 8]
        completion_tokens = 1 + scale(n[3], 0, 1100) * scale(n[4], 0, max_tokens - 1) // 1024
        completion_tokens = min(completion_tokens, max_tokens)
        prompt_tokens = 8 + scale(n[5], 0, 1023) * scale(n[6], 0, 2400) // 1024
        work_ms = (completion_tokens * 1000 + prompt_tokens * 20) // (model.tokens_s * miner.speed)
        completed_ms = block_ms - scale(n[7], 200, 2_500)
        started_ms = completed_ms - 40 - work_ms
        created_ms = started_ms - scale(n[8], 3, 60) * scale(n[9], 1, 60)
        return Deal(
            number=number,
            model=model,
            miner=miner,
            client=self._clients.choose(n[10]),
            share=share,
            created_ms=created_ms,
            started_ms=started_ms,
            completed_ms=completed_ms,
            job_id=build_job_id(
                now_ms=created_ms, entropy=draw_bytes(f"job {self.seed} {number}", 10)
            ),
            attempt=1 + bisect_right((_RETRIED, _RETRIED_TWICE), scale(n[11], 0, 999)),
            max_tokens=max_tokens,
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            token_price_micros=_find_price(model, share),
            seed=n[12] << 20 | n[13] >> 12,
            more=n[14:],
        )

    def _draft_receipt(self, deal: Deal) -> Draft:
        payload, key = self.build_receipt(deal), deal.miner.key
        signers: list[tuple[Role, KeyPair]] = [("coordinator", self._coordinator)]
        if key is not None:
            signers.append(("provider", key))
        return Draft(payload=payload, signers=tuple(signers))

    def build_receipt(self, deal: Deal) -> ReceiptPayload:
        """Return the receipt of a job that was done."""
        job_id, by_second = format_job_id(deal.job_id), deal.model.price_micros == 0
        digests = draw_bytes(f"digests {self._recipe.seed} {deal.number}", 96).hex()
        has_key = deal.miner.key is not None
        tokens = 0 if by_second else deal.prompt_tokens + deal.completion_tokens
        elapsed_micros = (deal.completed_ms - deal.started_ms) * 1000
        return ReceiptPayload(
            genesis=self._genesis,
            receipt_id=build_receipt_id(
                genesis=self._genesis, coordinator=self._coordinator.account, job_id=job_id
            ),
            job_id=job_id,
            attempt=deal.attempt,
            client=deal.client,
            provider=deal.miner.provider,
            coordinator=self._coordinator.account,
            model=deal.model.name,
            model_digest=deal.model.digest if has_key else "",
            prompt_digest=digests[:64],
            result_digest=digests[64:128],
            tokens_digest=digests[128:] if has_key and not by_second else "",
            max_tokens=deal.max_tokens,
            temperature_micros=(0, 200_000, 700_000, 1_000_000)[deal.more[1] % 4],
            top_p_micros=(MICROS, 950_000, 900_000)[deal.more[1] % 3],
            seed=deal.seed,
            sampler="aitbc-gumbel-v1" if has_key and not by_second else "",
            prompt_tokens=0 if by_second else deal.prompt_tokens,
            completion_tokens=0 if by_second else deal.completion_tokens,
            unit_type="gpu_seconds" if by_second else "tokens",
            units_micros=elapsed_micros if by_second else tokens * MICROS,
            price_micros=elapsed_micros * 800 // MICROS
            if by_second
            else tokens * deal.token_price_micros,
            started_at_ms=deal.started_ms,
            completed_at_ms=deal.completed_ms,
            metered_by="coordinator" if by_second else "provider",
        )

    def _draft_audits(self, number: int) -> Iterator[Draft]:
        if number < _AUDIT_LAG:
            return
        time_ms = self._calendar.find_time(number)
        for deal in self.list_deals(number - _AUDIT_LAG):
            if deal.is_audited and (auditor := self._find_auditor(deal)) is not None:
                assert auditor.key is not None, "auditors sign"
                yield Draft(
                    payload=self._build_audit(deal, auditor, time_ms - 100),
                    signers=(("auditor", auditor.key), ("coordinator", self._coordinator)),
                )

    def _find_auditor(self, deal: Deal) -> Miner | None:
        share = deal.share - deal.share % 50
        auditor = self._miners_of[deal.model, share].choose(deal.more[1])
        return None if auditor.key is None or auditor is deal.miner else auditor

    def _build_audit(self, deal: Deal, auditor: Miner, now_ms: int) -> AuditPayload:
        n = draw(f"audit {self._recipe.seed} {deal.number}", 4)
        fails = is_among(n[0], _CHEATED if deal.miner.number == CHEAT else _WRONGED)
        most = (GAP_LIMIT_MICROS * 20) if fails else GAP_LIMIT_MICROS // 3
        least = GAP_LIMIT_MICROS + 1 if fails else 0
        mean = scale(n[2], MEAN_GAP_LIMIT_MICROS + 1, 90_000) if fails else scale(n[2], 0, 700)
        tokens = deal.completion_tokens
        return AuditPayload(
            genesis=self._genesis,
            receipt_id=self.build_receipt(deal).receipt_id,
            auditor=auditor.provider,
            coordinator=self._coordinator.account,
            model_digest=deal.model.digest,
            method=METHOD,
            prompt_tokens=deal.prompt_tokens,
            tokens=tokens,
            exact_tokens=tokens * scale(n[3], 55, 90) // 100
            if fails
            else tokens - tokens * scale(n[3], 0, 15) // 1000,
            outside_tokens=0,
            max_gap_micros=scale(n[1], least, most),
            mean_gap_micros=mean,
            ending="max_tokens" if tokens == deal.max_tokens else "end_token",
            text_matches=True,
            verdict="fail" if fails else "pass",
            audited_at_ms=now_ms,
        )


def _is_there(who: Model | Miner, share: int) -> bool:
    return who.from_share <= share <= who.to_share


def _find_price(model: Model, share: int) -> int:
    """Return what a token costs: a third less at the end, with ups and downs in between."""
    trend = 1000 - share * 330 // SHARES
    (wave,) = draw(f"price {model.name} {share // 4}", 1)
    return max(1, model.price_micros * trend * scale(wave, 950, 1050) // 1_000_000)
