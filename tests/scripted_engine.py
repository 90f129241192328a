"""An engine for the miner's tests that does what a test says."""

from __future__ import annotations

import threading
from collections.abc import Callable

from miner.engine import Completion, Generation, GenerationRequest
from miner.runtime import CPU

ANSWER = Completion(text="Because.", token_ids=(5, 6, 2), prompt_tokens=4, finish_reason="stop")
CANCELLED = Completion(text="Be", token_ids=(5,), prompt_tokens=4, finish_reason="cancelled")

Script = Callable[[Callable[[], bool]], Completion]


class ScriptedEngine:
    """Runs its script for each job, in a thread; the script is told how to ask whether to stop."""

    model_digest = "cd" * 32
    provider = CPU

    def __init__(self, script: Script = lambda should_stop: ANSWER, *, slots: int = 1) -> None:
        self.script = script
        self.slots = slots
        self.say: Callable[[str], None] = lambda _piece: None
        """For the script of the last job: tells a piece of text."""
        self.requests: list[GenerationRequest] = []
        self.running = 0
        self.most_running = 0

    def submit(self, request, *, on_text) -> Generation:
        self.requests.append(request)
        self.say = on_text
        self.running += 1
        self.most_running = max(self.running, self.most_running)
        generation = Generation()
        threading.Thread(target=self._run, args=(generation,), daemon=True).start()
        return generation

    def _run(self, generation: Generation) -> None:
        try:
            completion = self.script(lambda: generation.is_cancelled)
        except Exception as error:
            self.running -= 1
            generation.future.set_exception(error)
        else:
            self.running -= 1
            generation.future.set_result(completion)


def until_stopped(should_stop: Callable[[], bool]) -> Completion:
    while not should_stop():
        threading.Event().wait(0.001)
    return CANCELLED


def raising(error: Exception) -> Script:
    def script(should_stop: Callable[[], bool]) -> Completion:
        raise error

    return script
