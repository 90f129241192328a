"""Turns: who is admitted, a piece of prefill, and one token for every answer that grows.

Rules. Whoever came first gets the next free slot. A turn computes a bounded number of prompt
tokens, so no prompt, however long, keeps running answers waiting; the oldest prompt and the one
with the least left take turns, so neither waits for the other. If more answers wait for their
prompts than grow, a burst, a turn goes on with the prompts that it can read to their ends within a
bounded time: steps of all rows at once are cheaper than as many of few rows. What fails takes down
who took part in it: one prompt's prefill its answer alone, one row's logits its answer alone, a
step all rows.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from miner.ahead import MAX_THREADS, NoiseAhead
from miner.drawing import NOTHING_AHEAD, choose_tokens
from miner.engine.answer import FinishReason
from miner.engine.figures import Figures
from miner.engine.sequence import Sequence
from miner.engine.slots import Lot, Slots
from miner.engine.work import Errand
from miner.errors import BusyError, OverdueError
from miner.runtime import LlamaRuntime

MAX_WAITING: Final = 1_024
"""Answers without a slot, and pieces of other work."""
PREFILL_LEAST: Final = 16
"""Every run costs a processor as much as a dozen tokens before the first. So no fewer than these
are begun with what is left of a turn's tokens, and no fewer are left of a prompt for a next run."""
BURST_S: Final = 3.0
"""The longest that the prompts of a burst are read before the first answer of it begins."""
BURST_BESIDE_S: Final = 1.0
"""The same while answers grow: longer than this and a run nobody waits for his next token."""


class Batch:
    """The answers of one model. Things are added from any thread; one thread takes the turns."""

    def __init__(self, runtime: LlamaRuntime, *, clock: Callable[[], float]) -> None:
        """The runtime's last slot is kept for other work, the rest is for answers.

        Args:
            runtime: touched in turns only.
            clock: seconds, monotonic.
        """
        if runtime.slots < 2:
            raise AssertionError("one slot for answers and one for other work, at least")
        self.size = runtime.slots - 1
        self.figures = Figures()
        self._runtime = runtime
        self._clock = clock
        self._slots = Slots(self.size, least_shared=runtime.copied_tokens)
        self._waiting: deque[Sequence] = deque()
        self._filling: list[Sequence] = []
        self._answering: list[Sequence] = []
        self._errands: deque[Errand] = deque()
        self._is_oldest_next = True
        self._noise: NoiseAhead | None = None
        if not runtime.is_faster_with_few_rows:  # so this thread waits while a device computes
            self._noise = NoiseAhead(min(os.cpu_count() or 1, MAX_THREADS))

    @property
    def is_busy(self) -> bool:
        """Whether another turn would do anything."""
        return bool(self._waiting or self._filling or self._answering or self._errands)

    @property
    def waiting(self) -> int:
        """Answers without a slot."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Answers with a slot."""
        return len(self._filling) + len(self._answering)

    def add(self, sequence: Sequence) -> None:
        """Let an answer wait for a slot.

        Raises:
            BusyError: too many wait already.
        """
        if len(self._waiting) >= MAX_WAITING:
            raise BusyError(f"{MAX_WAITING} answers wait for a slot already")
        self._waiting.append(sequence)

    def add_work(self, errand: Errand) -> None:
        """Let other work wait for its turn.

        Raises:
            BusyError: too much waits already.
        """
        if len(self._errands) >= MAX_WAITING:
            raise BusyError(f"{MAX_WAITING} pieces of other work wait already")
        self._errands.append(errand)

    def turn(self) -> None:
        """Move everything on by a bounded piece."""
        self._drop_unwanted()
        self._admit()
        self._prefill()
        self._step()
        if self._errands and not self._errands[0].advance(self._runtime, self.size):
            self._errands.popleft()

    def end(self, error: Exception | None = None) -> None:
        """Leave everything undone: answers are cancelled, or fail if there is an error."""
        for sequence in [*self._drain_waiting(), *self._filling, *self._answering]:
            if error is None:
                self._complete(sequence, "cancelled")
            else:
                self._fail(sequence, error)
        while self._errands:
            self._errands.popleft().end()

    def close(self) -> None:
        """No turn comes any more."""
        self.end()
        if self._noise is not None:
            self._noise.close()

    def _drain_waiting(self) -> Iterable[Sequence]:
        while self._waiting:
            yield self._waiting.popleft()

    def _drop_unwanted(self) -> None:
        """End what is cancelled or overdue, with or without a slot."""
        for _ in range(len(self._waiting)):
            sequence = self._waiting.popleft()
            if not self._is_dropped(sequence):
                self._waiting.append(sequence)
        for sequence in [*self._filling, *self._answering]:
            self._is_dropped(sequence)

    def _is_dropped(self, sequence: Sequence) -> bool:
        deadline_s = sequence.deadline_s
        if sequence.generation.is_cancelled:
            self._complete(sequence, "cancelled")
        elif deadline_s is not None and self._clock() >= deadline_s:
            self._fail(sequence, OverdueError("the answer was not done in its time"))
        else:
            return False
        return True

    def _admit(self) -> None:
        while self._waiting and self._slots.is_free():
            sequence = self._waiting.popleft()
            lot = self._slots.take(sequence.prompt, sequence.request.owner)
            sequence.slot = lot.slot
            self._filling.append(sequence)
            try:
                self._copy_shared(sequence, lot)
            except Exception as error:
                self._fail(sequence, error, is_cache_good=False)

    def _copy_shared(self, sequence: Sequence, lot: Lot) -> None:
        if lot.shared:
            self._runtime.copy_slot(lot.source, lot.slot, lot.shared)
        self.figures.shared_tokens += lot.gained
        self.figures.shared_prompts += lot.gained > 0 and not sequence.shares
        sequence.shares = sequence.shares or lot.gained > 0

    def _prefill(self) -> None:
        """Bring prompts, but for the last token of each, into the cache."""
        until_s = self._clock() + self._burst_s()
        left = self._runtime.chunk_beside if self._answering else self._runtime.chunk
        while self._filling and left >= PREFILL_LEAST:
            left -= self._read_piece(self._next_to_fill(), left)
        while self._filling and self._is_read_by(self._shortest(), until_s):
            self._read_piece(self._shortest(), self._runtime.chunk)

    def _burst_s(self) -> float:
        """How long prompts may be read in this turn."""
        if len(self._filling) <= len(self._answering):
            return 0.0
        return BURST_BESIDE_S if self._answering else BURST_S

    def _is_read_by(self, sequence: Sequence, until_s: float) -> bool:
        return self._clock() + self._unread(sequence) * self.figures.prefill_token_s < until_s

    def _unread(self, sequence: Sequence) -> int:
        """Tokens of its prompt that are to be computed; the last is left for the first step."""
        return len(sequence.prompt) - 1 - len(self._slots.tokens(sequence.slot))

    def _read_piece(self, sequence: Sequence, most: int) -> int:
        """Compute some of a prompt; returns how many tokens.

        Who has come or gone meanwhile is seen to afterwards: a burst does not come in one moment.
        """
        began_s = self._clock()
        try:
            size = self._compute_piece(sequence, most)
        except Exception as error:
            self._fail(sequence, error, is_cache_good=False)
            return 0
        self.figures.prompt_tokens += size
        self.figures.prefill_s += self._clock() - began_s
        if self._unread(sequence) == 0:
            self._filling.remove(sequence)
            self._answering.append(sequence)
        self._drop_unwanted()
        self._admit()
        return size

    def _compute_piece(self, sequence: Sequence, most: int) -> int:
        tokens = self._slots.tokens(sequence.slot)
        lot = self._slots.share_more(sequence.slot, sequence.prompt)
        if lot is not None:
            self._copy_shared(sequence, lot)
        unread = self._unread(sequence)
        size = most if unread > most + PREFILL_LEAST else min(unread, self._runtime.chunk)
        chunk = sequence.prompt[len(tokens) : len(tokens) + size]
        if chunk:
            self._runtime.prefill(chunk, slot=sequence.slot, start=len(tokens))
        tokens += chunk
        return size

    def _next_to_fill(self) -> Sequence:
        self._is_oldest_next = not self._is_oldest_next
        if not self._is_oldest_next:
            return self._filling[0]
        return self._shortest()

    def _shortest(self) -> Sequence:
        """The prompt with the least left."""
        return min(self._filling, key=self._unread)

    def _step(self) -> None:
        """One token for every answer that grows."""
        if self._runtime.max_rows == 1:
            for sequence in list(self._answering):
                self._step_together([sequence])
        elif self._answering:
            self._step_together(list(self._answering))

    def _step_together(self, sequences: list[Sequence]) -> None:
        began_s = self._clock()
        try:
            if self._runtime.is_faster_with_few_rows:
                self._fill_holes(sequences)
            rows = {sequence.slot: sequence for sequence in sequences}
            span = range(min(rows), max(rows) + 1)
            # A slot among them whose prompt is still being read gets a token that the next chunk
            # of its prompt overwrites; one that is not in use, a token behind those it keeps. There
            # is room for it: the last token of an answer was never put into the cache.
            wide = self._runtime.widen(span, self.size)
            draws = {slot - wide.start: sequence.draw for slot, sequence in rows.items()}
            ahead = NOTHING_AHEAD
            if self._noise is not None:
                ahead = self._noise.begin(draws, self._runtime.vocabulary)
            looked = self._runtime.look(
                [rows[slot].next_input if slot in rows else 0 for slot in wide],
                [len(self._slots.tokens(slot)) + 1 for slot in wide],
                [rows[slot].temperature if slot in rows else 1.0 for slot in wide],
                first_slot=wide.start,
            )
        except Exception as error:
            for sequence in sequences:
                self._fail(sequence, error, is_cache_good=False)
            return
        stepped_s = self._clock()
        for slot, sequence in rows.items():
            self._slots.tokens(slot).append(sequence.next_input)
        try:
            drawn = choose_tokens(looked, draws, ahead)
        except Exception as error:
            for sequence in sequences:
                self._fail(sequence, error)
            return
        for slot, sequence in rows.items():
            self._take(sequence, drawn[slot - wide.start])
        self.figures.steps += 1
        self.figures.rows += len(span)
        self.figures.drawn_tokens += len(rows)
        self.figures.decode_s += stepped_s - began_s
        self.figures.draw_s += self._clock() - stepped_s

    def _fill_holes(self, sequences: list[Sequence]) -> None:
        holders = {sequence.slot: sequence for sequence in sequences}
        moves = self._slots.fill_holes(list(holders))
        for source, target in moves:
            holders[target] = holders.pop(source)
            holders[target].slot = target
        for source, target in moves:
            length = len(self._slots.tokens(target))
            self._runtime.copy_slot(source, target, length)
            self.figures.moved_tokens += length

    def _take(self, sequence: Sequence, token: int | None) -> None:
        try:
            sequence.take(token)
        except Exception as error:
            self._fail(sequence, error)
            return
        if sequence.finish is not None:
            self._complete(sequence, sequence.finish)

    def _complete(self, sequence: Sequence, finish: FinishReason) -> None:
        self._leave(sequence, is_cache_good=True)
        try:
            sequence.complete(finish)
        except Exception as error:
            sequence.fail(error)

    def _fail(self, sequence: Sequence, error: Exception, *, is_cache_good: bool = True) -> None:
        self._leave(sequence, is_cache_good=is_cache_good)
        sequence.fail(error)

    def _leave(self, sequence: Sequence, *, is_cache_good: bool) -> None:
        """Give back what a sequence holds, wherever it is."""
        for place in (self._filling, self._answering):
            if sequence in place:
                place.remove(sequence)
        if sequence.slot >= 0:
            (self._slots.free if is_cache_good else self._slots.forget)(sequence.slot)
            sequence.slot = -1
