"""Does a loaded model compute the same, however a text is cut into runs?

A cache that is bound in a way the graph does not expect gives fluent nonsense, not an error. So
every model is tried when it is loaded: a short text in one run, in pieces, and in rows of
different length side by side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from miner.errors import ModelError

TOKENS: Final = 8
EXACT_TOLERANCE: Final = 2e-3
"""Of arithmetic in float32, relative to how much logits vary."""
HALF_TOLERANCE: Final = 5e-2
ROUNDED_TOLERANCE: Final = 0.25
"""Of models that round their inputs by what else stands in a run."""


class Scorer(Protocol):
    """What is tried: see `LlamaRuntime`."""

    context: int
    slots: int
    vocabulary: int

    @property
    def rounds_inputs(self) -> bool: ...  # noqa: D102
    @property
    def is_half(self) -> bool: ...  # noqa: D102
    def prefill(self, token_ids: Sequence[int], *, slot: int, start: int) -> None: ...  # noqa: D102
    def step(  # noqa: D102
        self, token_ids: Sequence[int], lengths: Sequence[int], *, first_slot: int = 0
    ) -> NDArray[np.float32]: ...
    def score(  # noqa: D102
        self, token_ids: Sequence[int], *, slot: int = 0, start: int = 0
    ) -> NDArray[np.float32]: ...


def find_deviation(runtime: Scorer) -> str | None:
    """What differs by more than arithmetic explains; None if nothing does."""
    try:
        return _compare(runtime)
    except ModelError as error:
        return str(error)


def _compare(runtime: Scorer) -> str | None:
    size = min(TOKENS, runtime.context)
    ids = [at * 7 % runtime.vocabulary for at in range(1, size + 1)]
    whole = runtime.score(ids)
    if not np.isfinite(whole).all():
        return "logits are no finite numbers"
    spread = float(whole.std(axis=-1).mean())
    if spread == 0:
        return "all logits are equal"
    tolerance = _tolerance(runtime) * spread
    for name, rows, expected in _ways(runtime, ids, whole):
        error = float(np.sqrt(np.square(rows - expected).mean(axis=-1)).max())
        if not error <= tolerance:
            return f"{name}, logits are off by {error:.3g}, of which {tolerance:.3g} is rounding"
    return None


def _ways(
    runtime: Scorer, ids: list[int], whole: NDArray[np.float32]
) -> Iterator[tuple[str, NDArray[np.float32], NDArray[np.float32]]]:
    """Other ways to the same logits: what was done, what came out, what should have."""
    last = len(ids) - 1
    if last < 4:
        return
    runtime.prefill(ids[: last - 3], slot=0, start=0)
    yield "in pieces", runtime.score(ids[last - 3 : last], start=last - 3), whole[last - 3 : last]
    # Several of a kind: on a GPU the first one is recorded, and the others are replayed.
    for at in range(last - 2, last + 1):
        yield "token by token", runtime.step([ids[at]], [at + 1]), whole[[at]]
    if runtime.slots > 1:
        runtime.prefill(ids[:2], slot=1, start=0)
        for at in range(2, 5):
            rows = runtime.step([ids[last], ids[at]], [last + 1, at + 1])
            yield "side by side", rows, whole[[last, at]]


def _tolerance(runtime: Scorer) -> float:
    if runtime.rounds_inputs:
        return ROUNDED_TOLERANCE
    return HALF_TOLERANCE if runtime.is_half else EXACT_TOLERANCE
