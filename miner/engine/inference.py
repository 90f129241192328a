"""The thread that takes the turns of all models: they share the cores instead of fighting."""

from __future__ import annotations

import logging
import threading
from types import TracebackType

from miner.engine.batch import Batch

log = logging.getLogger(__name__)


class InferenceThread:
    """Takes turns of every batch that has something to do, one after another, until it ends."""

    def __init__(self) -> None:
        self._batches: list[Batch] = []
        self._changed = threading.Condition()
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="inference")

    def __enter__(self) -> InferenceThread:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End within the piece that runs now; what is not done by then is cancelled."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join()

    def add(self, batch: Batch) -> None:
        """Take this batch's turns from now on."""
        with self._changed:
            self._batches = [*self._batches, batch]
            self._changed.notify()

    def wake(self) -> None:
        """Look again: something was added to a batch."""
        with self._changed:
            self._changed.notify()

    def _run(self) -> None:
        while self._wait_for_work():
            for batch in self._batches:
                self._take_turn(batch)
        for batch in self._batches:
            batch.close()

    def _wait_for_work(self) -> bool:
        """False when it is to end."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._is_closing or any(batch.is_busy for batch in self._batches)
            )
            return not self._is_closing

    def _take_turn(self, batch: Batch) -> None:
        try:
            batch.turn()
        except Exception as error:
            # Our own bug. Nobody shall wait for ever, and the next answers may be luckier.
            log.error("a turn failed: %s", type(error).__name__)  # noqa: TRY400 - may quote a prompt
            batch.end(error)
