"""What a batch has done, for metrics and for its own plans."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Figures:
    """What a batch has done since it began; written by its thread, read by others."""

    prompt_tokens: int = 0
    """Computed; those that were copied are not among them."""
    shared_tokens: int = 0
    """Of prompts, copied from another slot or found in their own."""
    shared_prompts: int = 0
    drawn_tokens: int = 0
    moved_tokens: int = 0
    """Copied to keep the slots in use together."""
    steps: int = 0
    rows: int = 0
    """Of all steps, those that are stepped for nothing included."""
    prefill_s: float = 0.0
    decode_s: float = 0.0
    """In the model."""
    draw_s: float = 0.0
    """Choosing tokens and making text of them."""

    @property
    def prefill_token_s(self) -> float:
        """What one token of a prompt took so far; 0 before the first."""
        return self.prefill_s / max(self.prompt_tokens, 1)

    @property
    def seconds(self) -> dict[str, float]:
        """Time by what it was for."""
        return {"prefill": self.prefill_s, "decode": self.decode_s, "draw": self.draw_s}
