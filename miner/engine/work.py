"""Other work on a runtime between the turns of its answers, such as an audit's replay.

Such work is a generator function: it gets the runtime and a slot that is its own until it ends, and
yields between pieces. One piece runs each turn, so a piece must be as short as a chunk of prefill,
at most PREFILL_CHUNK tokens, or the answers stall. What it returns is the future's result.

    def replay(runtime: LlamaRuntime, slot: int) -> Generator[None, None, float]:
        for start in range(0, len(ids), PREFILL_CHUNK):
            logits = runtime.score(ids[start : start + PREFILL_CHUNK], slot=slot, start=start)
            yield  # here answers get their turn
        return gap

    gap = engine.run(replay).result()
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from concurrent.futures import Future
from typing import Any, TypeAlias, TypeVar

from miner.runtime import LlamaRuntime

T = TypeVar("T")
Work: TypeAlias = Callable[[LlamaRuntime, int], Generator[None, None, T]]


class Errand:
    """One piece of work under way."""

    def __init__(self, work: Work[Any]) -> None:
        self.future: Future[Any] = Future()
        """Whoever no longer wants the result cancels it; looked at between pieces."""
        self._work = work
        self._pieces: Generator[None, None, Any] | None = None

    def advance(self, runtime: LlamaRuntime, slot: int) -> bool:
        """Do the next piece; False once there is none. Never raises."""
        try:
            if self.future.cancelled():
                self.end()
                return False
            if self._pieces is None:
                self._pieces = self._work(runtime, slot)
            next(self._pieces)
        except StopIteration as ended:
            if self.future.set_running_or_notify_cancel():
                self.future.set_result(ended.value)
        except Exception as error:
            if self.future.set_running_or_notify_cancel():
                self.future.set_exception(error)
        else:
            return True
        return False

    def end(self) -> None:
        """Leave it undone."""
        self.future.cancel()
        if self._pieces is not None:
            self._pieces.close()
