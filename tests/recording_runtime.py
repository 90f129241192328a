"""A runtime without a model: a cache that remembers tokens, and logits that depend on all of them.

If a token of the cache is wrong, moved, or somebody else's, the logits are others.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from blake3 import blake3

from miner.rows import WholeRow
from miner.runtime import CPU, PREFILL_CHUNK
from tests.tiny_model import CONTEXT, EOS, TOKENS


class RecordingRuntime:
    provider = CPU
    chunk = PREFILL_CHUNK
    chunk_beside = PREFILL_CHUNK // 2
    copied_tokens = 8
    is_faster_with_few_rows = True
    vocabulary = len(TOKENS)
    promised_bytes = 0
    context = CONTEXT
    config = SimpleNamespace(context=CONTEXT, eos_token_ids=frozenset({EOS}))

    def __init__(self, slots: int, *, max_rows: int = 64) -> None:
        self.slots = slots
        self.max_rows = max_rows
        self.cache = [[-1] * self.context for _ in range(slots)]
        self.calls: list[tuple] = []
        # As the real one's: overwritten by the next step.
        self._logits = np.empty((slots, self.vocabulary), np.float32)

    def prefill(self, token_ids, *, slot, start) -> None:
        assert 1 <= len(token_ids) <= self.chunk
        self.calls.append(("prefill", slot, start, len(token_ids)))
        self._write(slot, start, token_ids)

    def step(self, token_ids, lengths, *, first_slot=0):
        assert len(token_ids) <= self.max_rows
        self.calls.append(("step", first_slot, len(token_ids)))
        slots = range(first_slot, first_slot + len(token_ids))
        for slot, token, length in zip(slots, token_ids, lengths, strict=True):
            self._write(slot, length - 1, [token])
        rows = zip(slots, lengths, strict=True)
        logits = self._logits[: len(token_ids)]
        for row, (slot, length) in zip(logits, rows, strict=True):
            row[:] = self.logits(self.cache[slot][:length])
        return logits

    def look(self, token_ids, lengths, temperatures, *, first_slot=0):
        assert len(temperatures) == len(token_ids)
        return [WholeRow(row) for row in self.step(token_ids, lengths, first_slot=first_slot)]

    def widen(self, span, slots):
        return span

    def copy_slot(self, source, target, length) -> None:
        self.calls.append(("copy", source, target, length))
        self.cache[target][:length] = self.cache[source][:length]

    def logits(self, tokens):
        assert -1 not in tokens, "a place that was never written"
        digest = blake3(np.array(tokens, np.int32).tobytes()).digest(length=self.vocabulary)
        row = np.frombuffer(digest, np.uint8).astype(np.float32) / 32
        row[EOS] -= 2
        return row

    def _write(self, slot, start, token_ids) -> None:
        assert 0 <= slot < self.slots
        assert 0 <= start <= start + len(token_ids) <= self.context
        self.cache[slot][start : start + len(token_ids)] = token_ids


class ByHand:
    """Stands in for the inference thread: turns are taken when a test says so."""

    def __init__(self) -> None:
        self.batches: list = []

    def add(self, batch) -> None:
        self.batches.append(batch)

    def wake(self) -> None:
        pass

    def turn(self) -> None:
        for batch in self.batches:
            if batch.is_busy:
                batch.turn()

    def finish(self, most_turns: int = 10_000) -> None:
        for _ in range(most_turns):
            if not any(batch.is_busy for batch in self.batches):
                return
            self.turn()
        raise AssertionError(f"still busy after {most_turns} turns")
