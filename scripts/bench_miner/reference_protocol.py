"""What the reference and those who compare with it agree on."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

NEW_TOKENS: Final = 64
"""Of an answer, if the end token does not come before."""
PROMPT_POSITIONS: Final = 32
"""So many positions of a prompt, spread evenly, are compared besides every one of the answer."""


def choose_positions(prompt_tokens: int, all_tokens: int) -> NDArray[np.int64]:
    """Positions whose logits are compared, in order: those that say the answer, and some before."""
    spread = np.linspace(0, prompt_tokens - 1, PROMPT_POSITIONS).astype(np.int64)
    return np.union1d(spread, np.arange(prompt_tokens - 1, all_tokens - 1))
