"""Tables of what was measured, as docs/audits.md has them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import numpy as np

from ledger.payloads import MICROS
from ledger.replay import Measures, is_suspect, judge_measures
from scripts.calibration.auditing import Audited, Costs

CONFIDENCE: Final = 0.95
AUDITS: Final = (10, 30)
"""Audits of one account that are looked at together."""
DRAWS: Final = 2_000
"""Accounts that are put together of a provider's answers."""


def fails(measures: Measures, prompt_tokens: int) -> bool:
    """Whether an answer fails whose receipt bills what was counted."""
    claims = judge_measures(
        measures, prompt_tokens=prompt_tokens, completion_tokens=measures.tokens
    )
    return any(claim.status == "failed" for claim in claims)


def upper_bound(count: int, trials: int) -> float:
    """One-sided Clopper-Pearson bound of a chance that showed itself `count` times."""
    if count >= trials:
        return 1.0

    def chance_of_at_most(p: float) -> float:
        return math.fsum(
            math.comb(trials, k) * p**k * (1 - p) ** (trials - k) for k in range(count + 1)
        )

    low, high = count / trials, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if chance_of_at_most(middle) > 1 - CONFIDENCE else (low, middle)
    return high


def describe(audited: Sequence[Audited]) -> Mapping[str, float]:
    """Figures of one row."""
    failed = np.array([fails(one.measures, one.measures.prompt_tokens) for one in audited])
    means = np.array([one.measures.mean_gap_micros for one in audited])
    gaps = np.array([one.measures.max_gap_micros for one in audited])
    random = np.random.default_rng(1)
    few, many = AUDITS
    found = suspected = suspected_later = 0
    for _ in range(DRAWS):
        picked = random.choice(len(audited), many)
        early = is_suspect(means[picked[:few]].tolist())
        suspected += early
        found += early or bool(failed[picked[:few]].any())
        suspected_later += early or is_suspect(means[picked].tolist())
    return {
        "answers": len(audited),
        "tokens": sum(one.measures.tokens for one in audited),
        "exact": sum(one.measures.exact_tokens for one in audited),
        "failed": int(failed.sum()),
        "bound": upper_bound(int(failed.sum()), len(audited)),
        "largest gap": gaps.max() / MICROS,
        "largest mean": means.max() / MICROS,
        "mean": means.mean() / MICROS,
        "suspected": suspected / DRAWS,
        "suspected later": suspected_later / DRAWS,
        "found": found / DRAWS,
    }


def print_honest(rows: Iterable[tuple[str, Sequence[Audited]]], *, sums_up: bool) -> None:
    """False alarms; `sums_up` adds a row of all together."""
    print(
        "| provider, auditor | answers | tokens | exact | failed | bound | largest gap | "
        "largest mean | mean | suspect after 30 |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    everything: list[Audited] = []
    for name, audited in rows:
        everything += audited
        _print_honest_row(name, audited)
    if sums_up and everything:
        _print_honest_row("all", everything)


def _print_honest_row(name: str, audited: Sequence[Audited]) -> None:
    row = describe(audited)
    print(
        f"| {name} | {row['answers']} | {row['tokens']} | {row['exact'] / row['tokens']:.2%} | "
        f"{row['failed']} | {row['bound']:.2%} | {row['largest gap']:.4f} | "
        f"{row['largest mean']:.5f} | {row['mean']:.6f} | {row['suspected later']:.1%} |"
    )


def print_cheats(rows: Iterable[tuple[str, Sequence[Audited]]]) -> None:
    """What is found."""
    print(
        "| cheat | answers | exact | largest gap | mean gap | fail | fail or suspect after 10 | "
        "suspect after 10 | suspect after 30 |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name, audited in rows:
        row = describe(audited)
        print(
            f"| {name} | {row['answers']} | {row['exact'] / row['tokens']:.1%} | "
            f"{row['largest gap']:.2f} | {row['mean']:.4f} | "
            f"{row['failed'] / row['answers']:.0%} | {row['found']:.0%} | "
            f"{row['suspected']:.0%} | {row['suspected later']:.0%} |"
        )


def print_costs(costs: Costs) -> None:
    """What an audit costs beside the answer."""
    print(
        f"An audit takes {costs.audited:.0f} ms of one core; the answer took "
        f"{costs.drawn_alone:.0f} ms alone ({costs.audited / costs.drawn_alone:.0%}) and "
        f"{costs.drawn_by_eight:.0f} ms in a batch of 8 "
        f"({costs.audited / costs.drawn_by_eight:.0%})."
    )
