"""What is asked, what is answered, and what a worker needs of a model."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Literal, Protocol

from miner.sampling import SamplingParams
from miner.tokenizer import Message

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """What to answer, and everything the answer depends on."""

    job_id: str
    messages: tuple[Message, ...]
    params: SamplingParams
    stop: tuple[str, ...] = ()
    """The text ends before the first of these."""
    owner: str = ""
    """Whose request it is. Cached prefixes are shared within one owner's requests only: how soon an
    answer begins must tell nobody what others have asked."""
    time_left_s: float | None = None
    """From now: an answer that is not done by then is given up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """An answer."""

    text: str
    token_ids: tuple[int, ...]
    """Every token drawn, with the end token or the tokens of a stop sequence that ended it."""
    prompt_tokens: int
    finish_reason: FinishReason
    """stop: end token or stop sequence. length: max_tokens or the end of the context."""

    @property
    def completion_tokens(self) -> int:
        """Number of tokens drawn."""
        return len(self.token_ids)


class Generation:
    """An answer that is on its way."""

    def __init__(self) -> None:
        self.future: Future[Completion] = Future()
        """Raises JobError if nobody could answer this with this model, OverdueError after the
        deadline, and ModelError if the model failed."""
        self._is_cancelled = False

    @property
    def is_cancelled(self) -> bool:
        """Whether nobody waits for it any more; looked at between tokens."""
        return self._is_cancelled

    def cancel(self) -> None:
        """End it with what there is by now, as cancelled; from any thread."""
        self._is_cancelled = True


class Engine(Protocol):
    """What the worker needs of a model."""

    @property
    def model_digest(self) -> str:
        """The model's digest, 64 hex digits."""

    @property
    def slots(self) -> int:
        """How many answers it works on at once."""

    def submit(self, request: GenerationRequest, *, on_text: Callable[[str], None]) -> Generation:
        """Begin an answer; those that find no free slot wait in the order they came.

        Reads the prompt, which takes a while if it is long, so not for an event loop; safe to call
        from several threads.

        Args:
            request: what to answer.
            on_text: gets each piece of text as soon as it is certain, in the inference thread.

        Raises:
            JobError: nobody could answer this with this model.
        """
