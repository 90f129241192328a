"""One answer while it grows: the prompt's way into the cache, then token after token."""

from __future__ import annotations

from collections.abc import Callable

from miner.engine.answer import Completion, FinishReason, Generation, GenerationRequest
from miner.errors import ModelError
from miner.sampling import MICROS, Draw, build_key
from miner.tokenizer import ChatTokenizer, TextStream


class Sequence:
    """An answer in work; all of it happens in the inference thread."""

    def __init__(
        self,
        request: GenerationRequest,
        prompt: list[int],
        *,
        tokenizer: ChatTokenizer,
        model_digest: str,
        context: int,
        end_tokens: frozenset[int],
        on_text: Callable[[str], None],
        deadline_s: float | None,
    ) -> None:
        """`prompt` is shorter than `context`, and not empty; the deadline is on its clock."""
        self.request = request
        self.prompt = prompt
        self.generation = Generation()
        self.deadline_s = deadline_s
        self.slot = -1
        """Set while it holds one."""
        self.shares = False
        """Whether part of its prompt was copied instead of computed."""
        self.finish: FinishReason | None = None
        """Why it ended, once it has."""
        self._drawn: list[int] = []
        self._limit = min(request.params.max_tokens, context - len(prompt))
        self._end_tokens = end_tokens
        self._on_text = on_text
        self._stream = TextStream(tokenizer, request.stop)
        self._key = build_key(
            job_id=request.job_id,
            model_digest=model_digest,
            prompt_token_ids=prompt,
            params=request.params,
        )

    @property
    def next_input(self) -> int:
        """The token whose successor is drawn next."""
        return self._drawn[-1] if self._drawn else self.prompt[-1]

    @property
    def temperature(self) -> float:
        """Of its draws; 1 where the likeliest token is taken."""
        return self.request.params.temperature_micros / MICROS or 1.0

    @property
    def draw(self) -> Draw:
        """What decides its next token."""
        return Draw(params=self.request.params, key=self._key, step=len(self._drawn))

    def take(self, token: int | None) -> None:
        """Go on with the next token; None: there is none, the logits being no numbers.

        Raises:
            ModelError: there is none.
        """
        if token is None:
            raise ModelError("the model computed logits that are not finite numbers")
        self._drawn.append(token)
        if token in self._end_tokens:
            self.finish = "stop"
            return
        self._say(self._stream.push(token))
        if self._stream.stopped:
            self.finish = "stop"
        elif len(self._drawn) >= self._limit:
            self.finish = "length"

    def complete(self, finish: FinishReason) -> None:
        """Hand over the answer."""
        self._say(self._stream.finish())
        self.generation.future.set_result(
            Completion(
                text=self._stream.text,
                token_ids=tuple(self._drawn),
                prompt_tokens=len(self.prompt),
                finish_reason=finish,
            )
        )

    def fail(self, error: Exception) -> None:
        """Hand over why there is no answer."""
        if not self.generation.future.done():
            self.generation.future.set_exception(error)

    def _say(self, piece: str) -> None:
        if piece:
            self._on_text(piece)
