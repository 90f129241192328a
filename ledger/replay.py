"""Method `aitbc-replay-v1`: what a replay measures, when it fails, and what many replays say.

An auditor runs a model once over prompt and answer and measures how far the answer is from the
one its own logits choose (docs/audits.md). The measures are integers and stand on the chain, the
verdict follows from them by the thresholds below, so anybody can judge again. A threshold is part
of the method: another one is another method with another name.

One audit decides about one answer. A provider that deviates a little passes single audits; the
mean gaps of all audits of its account tell. They are weighed by a bet that an honest provider
loses: `weigh_gaps`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Final

import msgspec

from ledger.encoding import Count
from ledger.payloads import MICROS, Ending
from ledger.proof import Claim

METHOD: Final = "aitbc-replay-v1"

NUCLEUS_MARGIN_MICROS: Final = 30_000
"""How much narrower and wider than the receipt's top-p an auditor's two nuclei are."""
EDGE_TIE_MICROS: Final = 50_000
"""How far apart two logits are, at most, whose order at the edge of a nucleus is left open."""
GAP_LIMIT_MICROS: Final = 250_000
"""Largest gap of one token that passes, in logits."""
MEAN_GAP_LIMIT_MICROS: Final = 5_000
"""Largest mean of clipped gaps of one answer that passes, in logits."""
GAP_CLIP_MICROS: Final = 1 * MICROS
"""A gap counts in the mean at most so much."""
LARGEST_GAP_MICROS: Final = 100 * MICROS
"""Larger gaps are stated as this."""

HONEST_MEAN_MICROS: Final = 500
"""The mean clipped gap of an honest provider is expected to be at most this."""
STAKES: Final = (1 / 2, 1 / 8, 1 / 32)
"""Shares of the largest possible stake, bet side by side: large ones see great deviations in few
audits, small ones see small deviations in many."""
FALSE_ALARM: Final = 1e-4
"""Chance at most that an honest account is ever suspected for the audits of one window."""
WINDOW: Final = 1_000
"""Audits of an account that are weighed together: the first so many, the next, and so on. In a bet
without an end, what an honest time has lost would hide what comes after it."""


NOT_SHOWN: Final = (
    "That the answer is good, or true.",
    "That the provider ran these files: another model or program that chooses the same tokens "
    "passes too.",
    "How the answer was made: only that it is, within the margins of the method, the one that the "
    "model, the prompt and the receipt's seed give.",
)


class Measures(msgspec.Struct, frozen=True, kw_only=True):
    """What one replay measured."""

    prompt_tokens: Count
    """Of the prompt, counted again."""
    tokens: Count
    """Of the answer."""
    exact_tokens: Count
    """Tokens that the auditor's logits choose too."""
    outside_tokens: Count
    """Tokens that could not be drawn: outside the wider nucleus, or behind the answer's end."""
    max_gap_micros: Annotated[int, msgspec.Meta(ge=0, le=LARGEST_GAP_MICROS)]
    """Largest finite gap."""
    mean_gap_micros: Annotated[int, msgspec.Meta(ge=0, le=GAP_CLIP_MICROS)]
    """Mean of clipped gaps; a token outside counts as the clip."""
    ending: Ending
    text_matches: bool
    """Whether the result is the text of the token ids."""


def judge_measures(
    measures: Measures, *, prompt_tokens: int, completion_tokens: int
) -> tuple[Claim, ...]:
    """Return what passes and what fails, claim by claim; the answer passes if nothing fails.

    `prompt_tokens` and `completion_tokens` are those of the receipt.
    """
    most_gap, most_mean = _decimal(GAP_LIMIT_MICROS), _decimal(MEAN_GAP_LIMIT_MICROS)
    gap, mean = _decimal(measures.max_gap_micros), _decimal(measures.mean_gap_micros)
    return (
        _claim(
            "prompt_tokens",
            f"counted {measures.prompt_tokens}, billed {prompt_tokens}",
            holds=measures.prompt_tokens == prompt_tokens,
        ),
        _claim(
            "completion_tokens",
            f"counted {measures.tokens}, billed {completion_tokens}",
            holds=measures.tokens == completion_tokens,
        ),
        _claim(
            "drawable",
            f"{measures.outside_tokens} of {measures.tokens} tokens could not have been drawn",
            holds=not measures.outside_tokens,
        ),
        _claim(
            "largest_gap",
            f"{gap}, at most {most_gap} passes; {measures.exact_tokens} of {measures.tokens} "
            "tokens are exactly those of the auditor",
            holds=measures.max_gap_micros <= GAP_LIMIT_MICROS,
        ),
        _claim(
            "mean_gap",
            f"{mean}, at most {most_mean} passes",
            holds=measures.mean_gap_micros <= MEAN_GAP_LIMIT_MICROS,
        ),
        _claim("ending", _ENDINGS[measures.ending], holds=measures.ending != "early"),
        _claim(
            "text",
            f"the result {'is' if measures.text_matches else 'is not'} the text of the token ids",
            holds=measures.text_matches,
        ),
    )


_ENDINGS: Final[Mapping[Ending, str]] = {
    "context": "the model's context ended the answer",
    "early": "nothing ended the answer where it ends",
    "end_token": "an end token ended the answer",
    "max_tokens": "max_tokens ended the answer",
    "stop_sequence": "a stop sequence given with the job ended the answer; no digest covers those",
}


def _claim(name: str, detail: str, *, holds: bool) -> Claim:
    return Claim(name=name, status="verified" if holds else "failed", detail=detail)


def _decimal(micros: int) -> str:
    return f"{micros / MICROS:.6f}".rstrip("0").rstrip(".")


def weigh_gaps(mean_gaps_micros: Iterable[int]) -> Iterator[float]:
    """Yield after each audit of an account how strongly all so far speak against it.

    Whoever bets on each audit that the mean gap exceeds `HONEST_MEAN_MICROS` multiplies a stake by
    1 + s (gap - honest) / honest, where s is the share that is staked. If the expected gap is at
    most the honest one, given all audits before, that stake is expected not to grow. So it reaches
    1/a with chance a at most, at any time (Ville's inequality), and one may look after each audit.
    What is yielded is the base-10 logarithm of the mean over `STAKES`.
    """
    logs = [0.0] * len(STAKES)
    for gap in mean_gaps_micros:
        for at, share in enumerate(STAKES):
            logs[at] += math.log1p(share * (gap - HONEST_MEAN_MICROS) / HONEST_MEAN_MICROS)
        largest = max(logs)
        mean = math.fsum(math.exp(log - largest) for log in logs) / len(logs)
        yield (largest + math.log(mean)) / math.log(10)


def is_suspect(mean_gaps_micros: Sequence[int]) -> bool:
    """Tell whether the audits of one window, in their order, speak against their account.

    What the weight has reached once counts, whatever came later.
    """
    return any(weight >= -math.log10(FALSE_ALARM) for weight in weigh_gaps(mean_gaps_micros))
