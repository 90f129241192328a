"""Replay: prompt and answer through the model once, in pieces, keeping only what they measure.

Piece by piece, so that memory stays bounded (logits take 4 bytes times the vocabulary for each
token) and so that a miner answers others between two pieces.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from ledger.payloads import Ending
from ledger.replay import GAP_CLIP_MICROS, LARGEST_GAP_MICROS, Measures
from miner.audit.gaps import TokenGaps, measure_gaps
from miner.errors import ModelError, PromptTooLongError
from miner.runtime import LlamaRuntime
from miner.sampling import MICROS, SamplingParams, build_key
from miner.tokenizer import ChatTokenizer, TextStream

PREFILL_TOKENS: Final = 64
"""Tokens of a piece of prompt: as many as a miner reads of a new prompt beside its answers."""
SCORED_TOKENS: Final = 32
"""Tokens of a piece of answer: 6 MB of logits at 50,000 ids."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLimits:
    """What of a model bounds its answers."""

    end_tokens: frozenset[int]
    context: int
    vocabulary: int


def read_limits(runtime: LlamaRuntime) -> ModelLimits:
    """The limits of a loaded model: its own context, not the room that it was given here."""
    config = runtime.config
    return ModelLimits(
        end_tokens=config.eos_token_ids, context=config.context, vocabulary=runtime.vocabulary
    )


class Scorer(Protocol):
    """What a replay needs of a loaded model."""

    @property
    def context(self) -> int:
        """Tokens that fit into a slot."""

    def prefill(self, token_ids: Sequence[int], *, slot: int, start: int) -> None:
        """Put tokens into a slot's cache from a position on, for no logits."""

    def score(
        self, token_ids: Sequence[int], *, slot: int = 0, start: int = 0
    ) -> NDArray[np.float32]:
        """As `prefill`, for the logits after every token; shape (tokens, vocabulary)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer, and everything that it depends on but the model."""

    job_id: str
    model_digest: str
    """The receipt's: it is part of the key of the noise, whatever model the auditor has."""
    prompt_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    result: str
    params: SamplingParams
    stop: tuple[str, ...]


def replay(answer: Answer, end: End, scorer: Scorer, slot: int) -> Generator[None, None, Measures]:
    """Run the model over prompt and answer; yields between pieces, returns what it measured.

    Args:
        answer: what is judged.
        end: where it ends, see `find_end`.
        scorer: a loaded model.
        slot: is overwritten.

    Raises:
        PromptTooLongError: the auditor's model has less room than prompt and answer need.
        ModelError: the model failed.
    """
    prompt, last = answer.prompt_token_ids, len(answer.prompt_token_ids) - 1
    if last < 0 or len(prompt) + end.tokens > scorer.context:
        raise PromptTooLongError(
            f"audit: {len(prompt)} and {end.tokens} tokens, room for {scorer.context}"
        )
    key = build_key(
        job_id=answer.job_id,
        model_digest=answer.model_digest,
        prompt_token_ids=prompt,
        params=answer.params,
    )
    for start in range(0, last, PREFILL_TOKENS):
        scorer.prefill(prompt[start : min(start + PREFILL_TOKENS, last)], slot=slot, start=start)
        yield
    chosen = answer.token_ids[: end.tokens]
    seen = (prompt[last], *chosen[:-1])
    parts = []
    for step in range(0, end.tokens, SCORED_TOKENS):
        piece = slice(step, step + SCORED_TOKENS)
        logits = scorer.score(seen[piece], slot=slot, start=last + step)
        if not np.isfinite(logits).all():
            raise ModelError("the model computed logits that are not finite numbers")
        ids = np.array(chosen[piece], np.int64)
        parts.append(measure_gaps(logits, ids, params=answer.params, key=key, first_step=step))
        yield
    return summarise(answer, end, parts)


def summarise(answer: Answer, end: End, parts: Sequence[TokenGaps]) -> Measures:
    """The measures of a whole answer. What stands behind its end could not be drawn."""
    behind = np.full(len(answer.token_ids) - end.tokens, np.inf)
    gaps = np.concatenate([*(part.gaps for part in parts), behind])
    finite = gaps[np.isfinite(gaps)]
    clipped = np.minimum(gaps * MICROS, GAP_CLIP_MICROS)
    return Measures(
        prompt_tokens=len(answer.prompt_token_ids),
        tokens=gaps.size,
        exact_tokens=sum(int(part.exact.sum()) for part in parts),
        outside_tokens=gaps.size - finite.size,
        max_gap_micros=round(min(float(finite.max(initial=0.0)) * MICROS, LARGEST_GAP_MICROS)),
        mean_gap_micros=round(float(clipped.mean())) if gaps.size else 0,
        ending=end.ending,
        text_matches=end.text == answer.result,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """Where and why an answer ends."""

    tokens: int
    """Tokens up to the end; those behind it could not be drawn."""
    ending: Ending
    text: str
    """Text of the ids up to the end."""


def find_end(answer: Answer, tokenizer: ChatTokenizer, model: ModelLimits) -> End:
    """Find where docs/sampling.md lets these ids end, at the latest at their last one.

    An id that the model does not know ends it too: nothing can be replayed from there on.
    """
    stream = TextStream(tokenizer, answer.stop)
    ending: Ending | None = None
    tokens = 0
    room = min(answer.params.max_tokens, model.context - len(answer.prompt_token_ids))
    for token in answer.token_ids[: max(room, 0)]:
        if token >= model.vocabulary:
            break
        tokens += 1
        if token in model.end_tokens:
            ending = "end_token"
            break
        stream.push(token)
        if stream.stopped:
            ending = "stop_sequence"
            break
    stream.finish()
    if ending is None:
        ending = _name_limit(tokens, answer, model)
    return End(tokens=tokens, ending=ending, text=stream.text)


def _name_limit(tokens: int, answer: Answer, model: ModelLimits) -> Ending:
    if tokens == answer.params.max_tokens:
        return "max_tokens"
    is_full = len(answer.prompt_token_ids) + tokens == model.context
    return "context" if is_full else "early"
