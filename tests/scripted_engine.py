"""An engine for the miner's tests that does what a test says."""

from __future__ import annotations

import threading
from collections.abc import Callable

from miner.engine import Completion, GenerationRequest
from miner.runtime import CPU

ANSWER = Completion(text="Because.", token_ids=(5, 6, 2), prompt_tokens=4, finish_reason="stop")
CANCELLED = Completion(text="Be", token_ids=(5,), prompt_tokens=4, finish_reason="cancelled")

Script = Callable[[Callable[[], bool]], Completion]


class ScriptedEngine:
    """Runs its script for each job; the script is told how to ask whether to stop."""

    model_digest = "cd" * 32
    provider = CPU

    def __init__(self, script: Script = lambda should_stop: ANSWER) -> None:
        self.script = script
        self.say: Callable[[str], None] = lambda _piece: None
        """For the script of a running job: tells a piece of text."""
        self.requests: list[GenerationRequest] = []

    def generate(self, request, *, on_text, should_stop) -> Completion:
        self.requests.append(request)
        self.say = on_text
        return self.script(should_stop)


def until_stopped(should_stop: Callable[[], bool]) -> Completion:
    while not should_stop():
        threading.Event().wait(0.001)
    return CANCELLED


def raising(error: Exception) -> Script:
    def script(should_stop: Callable[[], bool]) -> Completion:
        raise error

    return script
