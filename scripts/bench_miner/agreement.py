"""How far the miner is from the reference: logits, greedy answers, tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scripts.bench_miner.table import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Deviation:
    """Of one conversation."""

    same_prompt: bool
    """The template made the same text, and the tokenizer the same tokens."""
    prompt_tokens: int
    max_logit: float
    mean_logit: float
    max_kl: float
    """Of the reference's distribution from the miner's, at temperature 1, in nats."""
    mean_kl: float
    same_best: float
    """Share of positions whose likeliest token is the same."""
    answer_tokens: int
    same_tokens: int
    """Of the greedy answer, before the first that differs."""
    margin: float | None
    """If one differs: by how much the reference preferred its own token to the next."""


def compare_answers(
    reference: Mapping[str, NDArray[Any]],
    *,
    same_prompt: bool,
    logits: NDArray[np.float32],
    greedy: Sequence[int],
) -> Deviation:
    """Compare one conversation.

    Args:
        reference: what `reference_peer.answer` stored.
        same_prompt: whether text and tokens of the prompt agree.
        logits: the miner's at the reference's positions, after the reference's tokens.
        greedy: the miner's own answer.
    """
    theirs = reference["logits"].astype(np.float64)
    difference = np.abs(logits - theirs)
    kl = _divergence(theirs, logits.astype(np.float64))
    expected = reference["greedy"].tolist()
    pairs = zip(expected, greedy, strict=False)
    same = next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(expected), len(greedy)))
    return Deviation(
        same_prompt=same_prompt,
        prompt_tokens=len(reference["ids"]),
        max_logit=float(difference.max()),
        mean_logit=float(difference.mean()),
        max_kl=float(kl.max()),
        mean_kl=float(kl.mean()),
        same_best=float((theirs.argmax(-1) == logits.argmax(-1)).mean()),
        answer_tokens=len(expected),
        same_tokens=same,
        margin=None if same == len(expected) else _margin(theirs[same - len(expected)]),
    )


def _divergence(theirs: NDArray[np.float64], ours: NDArray[np.float64]) -> NDArray[np.float64]:
    """Kullback-Leibler, row by row."""
    theirs = theirs - np.logaddexp.reduce(theirs, axis=-1, keepdims=True)
    ours = ours - np.logaddexp.reduce(ours, axis=-1, keepdims=True)
    divergence: NDArray[np.float64] = (np.exp(theirs) * (theirs - ours)).sum(-1)
    return divergence


def _margin(row: NDArray[np.float64]) -> float:
    second, best = np.partition(row, -2)[-2:]
    return float(best - second)


def build_agreement_table(deviations: Mapping[str, Deviation], *, title: str) -> Table:
    """A line for each conversation, and one for all."""
    lines = [[name, *_show(deviation)] for name, deviation in deviations.items()]
    lines.append(["all", *_show(_summarize(list(deviations.values())))])
    headings = ["", "prompt", "tokens", "max Δ", "mean Δ", "max KL", "mean KL"]
    return Table(title=title, headings=[*headings, "best", "answer", "margin"], lines=lines)


def _show(deviation: Deviation) -> list[str]:
    return [
        "same" if deviation.same_prompt else "differs",
        f"{deviation.prompt_tokens:,}",
        f"{deviation.max_logit:.1e}",
        f"{deviation.mean_logit:.1e}",
        f"{deviation.max_kl:.1e}",
        f"{deviation.mean_kl:.1e}",
        f"{deviation.same_best:.1%}",
        f"{deviation.same_tokens:,} of {deviation.answer_tokens:,}",
        "" if deviation.margin is None else f"{deviation.margin:.1e}",
    ]


def _summarize(deviations: Sequence[Deviation]) -> Deviation:
    """Maxima of maxima, means of means, sums of counts."""
    margins = [found.margin for found in deviations if found.margin is not None]
    return Deviation(
        same_prompt=all(found.same_prompt for found in deviations),
        prompt_tokens=sum(found.prompt_tokens for found in deviations),
        max_logit=max(found.max_logit for found in deviations),
        mean_logit=fmean(found.mean_logit for found in deviations),
        max_kl=max(found.max_kl for found in deviations),
        mean_kl=fmean(found.mean_kl for found in deviations),
        same_best=fmean(found.same_best for found in deviations),
        answer_tokens=sum(found.answer_tokens for found in deviations),
        same_tokens=sum(found.same_tokens for found in deviations),
        margin=max(margins, default=None),
    )


def build_tokens_table(
    strings: Sequence[str],
    theirs: Mapping[str, Sequence[Any]],
    ours: Mapping[str, Sequence[Any]],
) -> Table:
    """How many strings become the same tokens, and the same text again."""
    count = f"{len(strings):,}"
    lines = [
        [name, count, f"{sum(a == b for a, b in zip(theirs[key], ours[key], strict=True)):,}"]
        for key, name in (("ids", "tokens of a text"), ("texts", "text of tokens"))
    ]
    return Table(title="tokenizer", headings=["", "strings", "same"], lines=lines)
