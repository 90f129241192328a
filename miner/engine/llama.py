"""One model, put together: runtime, tokenizer, batch, and the thread that takes its turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from concurrent.futures import Future

import numpy as np

from miner.engine.answer import Generation, GenerationRequest
from miner.engine.batch import Batch
from miner.engine.figures import Figures
from miner.engine.inference import InferenceThread
from miner.engine.sequence import Sequence
from miner.engine.work import Errand, T, Work
from miner.errors import ModelError, PromptTooLongError, RoomError
from miner.runtime import LlamaRuntime
from miner.tokenizer import ChatTokenizer


class LlamaEngine:
    """An `Engine` on `LlamaRuntime`."""

    def __init__(
        self,
        runtime: LlamaRuntime,
        tokenizer: ChatTokenizer,
        *,
        model_digest: str,
        inference: InferenceThread,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """From now on only the thread touches the runtime.

        Args:
            runtime: one slot more than answers shall run at once; the last is for other work.
            tokenizer: of the same model.
            model_digest: its name in receipts.
            inference: takes the turns.
            clock: seconds, monotonic.
        """
        self._context = runtime.context
        self._model_context = runtime.config.context
        self._end_tokens = runtime.config.eos_token_ids
        self._provider = runtime.provider
        self._promised_bytes = runtime.promised_bytes
        self._tokenizer = tokenizer
        self._model_digest = model_digest
        self._inference = inference
        self._clock = clock
        self._batch = Batch(runtime, clock=clock)
        inference.add(self._batch)

    @property
    def model_digest(self) -> str:
        """The model's digest, 64 hex digits."""
        return self._model_digest

    @property
    def tokenizer(self) -> ChatTokenizer:
        """The model's tokenizer."""
        return self._tokenizer

    @property
    def provider(self) -> str:
        """What the model runs on, by ONNX Runtime's name."""
        return self._provider

    @property
    def promised_bytes(self) -> int:
        """What its cache may still take of main memory."""
        return self._promised_bytes

    @property
    def slots(self) -> int:
        """How many answers it works on at once."""
        return self._batch.size

    @property
    def figures(self) -> Figures:
        """What it has done so far."""
        return self._batch.figures

    @property
    def running(self) -> int:
        """Answers that have a slot."""
        return self._batch.running

    @property
    def waiting(self) -> int:
        """Answers that wait for one."""
        return self._batch.waiting

    def warm_up(self) -> None:
        """Run a little, so that what is broken or slow at first shows at start and not in a job.

        Raises:
            ModelError: it failed.
        """
        self.run(_warm_up).result()

    def submit(self, request: GenerationRequest, *, on_text: Callable[[str], None]) -> Generation:
        """See `Engine`.

        Raises:
            BusyError: too many wait already.
            RoomError: a slot holds fewer tokens than the model's answer may need.
        """
        began_s, left_s = self._clock(), request.time_left_s
        prompt = self._tokenizer.encode_chat(request.messages)
        if not 1 <= len(prompt) < self._model_context:
            raise PromptTooLongError(
                f"prompt: {len(prompt)} tokens, the model's context of "
                f"{self._model_context} must hold at least 1 and leave 1 for the answer"
            )
        needed = min(len(prompt) + request.params.max_tokens, self._model_context)
        if needed > self._context:
            # The model's context may end an answer; this miner's room would cut it short.
            raise RoomError(f"{needed} tokens of prompt and answer, room for {self._context}")
        sequence = Sequence(
            request,
            prompt,
            tokenizer=self._tokenizer,
            model_digest=self._model_digest,
            context=self._context,
            end_tokens=self._end_tokens,
            on_text=on_text,
            deadline_s=None if left_s is None else began_s + left_s,
        )
        self._batch.add(sequence)
        self._inference.wake()
        return sequence.generation

    def run(self, work: Work[T]) -> Future[T]:
        """Do other work on the runtime between turns; see miner/engine/work.py.

        Raises:
            BusyError: too much waits already.
        """
        errand = Errand(work)
        self._batch.add_work(errand)
        self._inference.wake()
        return errand.future


def _warm_up(runtime: LlamaRuntime, slot: int) -> Generator[None, None, None]:
    """One token and, on a GPU, a chunk and steps of all sizes in the slots before this one.

    A GPU loads what it runs when it is first needed, which takes up to half a second, and records
    steps for the thread that takes them.
    """
    if not np.isfinite(runtime.step([0], [1], first_slot=slot)).all():
        raise ModelError("the model computed logits that are not finite numbers")
    if runtime.is_faster_with_few_rows:
        return
    runtime.prefill([0] * min(runtime.chunk, runtime.context), slot=0, start=0)
    for power in range(slot.bit_length() + 1):
        yield
        wide = runtime.widen(range(min(2**power, slot)), slot)
        runtime.step([0] * len(wide), [1] * len(wide))
