"""Whether a model computes the same logits for a text however it is cut into runs.

A provider computes an answer token by token, an auditor in pieces. Some exports round the inputs of
their products in a way that depends on how many tokens run at once (accuracy level 4 of
MatMulNBits): gaps then measure the model and not the provider. Such a model does not audit.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Final

import numpy as np

from miner.audit.replay import Scorer

TEXT_TOKENS: Final = 24
STRIDE: Final = 7
"""Ids of the text are multiples of this: any will do, the same for everybody."""
MOST_UNSTEADY: Final = 0.05
"""In logits. Half precision stays below 0.03 here, and its honest gaps are far below the limits;
products with rounded inputs reach 0.1, and fail honest answers."""


def find_unsteadiness(
    scorer: Scorer, slot: int, *, vocabulary: int
) -> Generator[None, None, float]:
    """Compare one run with single tokens; yields between pieces.

    Returns the standard deviation of a logit's difference, of the token where it is largest: what
    all logits have in common decides nothing.
    """
    size = min(TEXT_TOKENS, scorer.context)
    ids = [(STRIDE * at) % vocabulary for at in range(1, size + 1)]
    together = scorer.score(ids, slot=slot, start=0).astype(np.float64)
    yield
    largest = 0.0
    for at, token in enumerate(ids):
        alone = scorer.score([token], slot=slot, start=at)[0].astype(np.float64)
        largest = max(largest, float((alone - together[at]).std()))
        yield
    return largest


def describe_unsteadiness(unsteadiness: float) -> str:
    """Why a model does not audit."""
    return (
        f"its logits depend on how a text is cut into runs, by {unsteadiness:.2f}; at most "
        f"{MOST_UNSTEADY:g} is fit for audits (exports with accuracy level 4 are not)"
    )
