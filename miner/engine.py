"""From a conversation to an answer, one job at a time, on one loaded model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from miner.errors import ModelError, PromptTooLongError
from miner.runtime import PREFILL_CHUNK, LlamaRuntime
from miner.sampling import SamplingParams, build_key, choose_token
from miner.tokenizer import ChatTokenizer, Message, TextStream

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """What to answer, and everything the answer depends on."""

    job_id: str
    messages: tuple[Message, ...]
    params: SamplingParams
    stop: tuple[str, ...] = ()
    """The text ends before the first of these."""


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


class Engine(Protocol):
    """What the worker needs of a model."""

    @property
    def model_digest(self) -> str:
        """The model's digest, 64 hex digits."""

    def generate(
        self,
        request: GenerationRequest,
        *,
        on_text: Callable[[str], None],
        should_stop: Callable[[], bool],
    ) -> Completion:
        """Answer; blocks. Called from one thread at a time.

        Args:
            request: what to answer.
            on_text: gets each piece of text as soon as it is certain.
            should_stop: asked between tokens; True ends the answer as cancelled.

        Raises:
            JobError: nobody could answer this with this model.
            ModelError: the model failed.
        """


class LlamaEngine:
    """An `Engine` on `LlamaRuntime`."""

    def __init__(
        self, runtime: LlamaRuntime, tokenizer: ChatTokenizer, *, model_digest: str
    ) -> None:
        self._runtime = runtime
        self._tokenizer = tokenizer
        self._model_digest = model_digest

    @property
    def model_digest(self) -> str:
        """The model's digest, 64 hex digits."""
        return self._model_digest

    @property
    def provider(self) -> str:
        """What the model runs on, by ONNX Runtime's name."""
        return self._runtime.provider

    def warm_up(self) -> None:
        """Run one token, so that a broken model shows at start and not in a job.

        Raises:
            ModelError: it failed.
        """
        self._check(self._runtime.step([0], [1]))

    def generate(
        self,
        request: GenerationRequest,
        *,
        on_text: Callable[[str], None],
        should_stop: Callable[[], bool],
    ) -> Completion:
        """See `Engine`."""
        prompt = self._tokenizer.encode(self._tokenizer.render(request.messages))
        room = self._runtime.context - len(prompt)
        if room < 1 or not prompt:
            raise PromptTooLongError(
                f"prompt: {len(prompt)} tokens, the model's context of "
                f"{self._runtime.context} must hold at least 1 and leave 1 for the answer"
            )
        key = build_key(
            job_id=request.job_id,
            model_digest=self._model_digest,
            prompt_token_ids=prompt,
            params=request.params,
        )
        stream = TextStream(self._tokenizer, request.stop)
        drawn: list[int] = []
        finish: FinishReason = "length"
        if not self._prefill(prompt, should_stop):
            finish = "cancelled"
        while finish == "length" and len(drawn) < min(request.params.max_tokens, room):
            if should_stop():
                finish = "cancelled"
                break
            last = drawn[-1] if drawn else prompt[-1]
            logits = self._check(self._runtime.step([last], [len(prompt) + len(drawn)]))
            drawn.append(choose_token(logits[0], params=request.params, key=key, step=len(drawn)))
            if drawn[-1] in self._runtime.config.eos_token_ids:
                finish = "stop"
                break
            _say(on_text, stream.push(drawn[-1]))
            if stream.stopped:
                finish = "stop"
        _say(on_text, stream.finish())
        return Completion(
            text=stream.text,
            token_ids=tuple(drawn),
            prompt_tokens=len(prompt),
            finish_reason=finish,
        )

    def _prefill(self, prompt: list[int], should_stop: Callable[[], bool]) -> bool:
        """Cache all of the prompt but its last token; False if asked to stop."""
        for start in range(0, len(prompt) - 1, PREFILL_CHUNK):
            if should_stop():
                return False
            chunk = prompt[start : min(start + PREFILL_CHUNK, len(prompt) - 1)]
            self._runtime.prefill(chunk, slot=0, start=start)
        return True

    def _check(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        if not np.isfinite(logits).all():
            raise ModelError("the model computed logits that are not finite numbers")
        return logits


def _say(on_text: Callable[[str], None], piece: str) -> None:
    if piece:
        on_text(piece)
