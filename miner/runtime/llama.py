"""One loaded model over slots of key-value cache: prefill, step, score, copy."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from miner.errors import UnsupportedModelError
from miner.models.layout import find_model
from miner.rows import Rows, WholeRow
from miner.runtime.binding import Binding
from miner.runtime.cache import Cache, CacheShape, JoinedCache, SharedCache
from miner.runtime.config import read_config
from miner.runtime.device import CUDA, ProviderChoice, choose_device
from miner.runtime.faces import FLOATS, INTEGERS, KEPT_ROWS, check_faces, fixed_size
from miner.runtime.graph import FIRST_ROW, SHARPNESS, add_peaks
from miner.runtime.memory import plan_memory, read_free_memory
from miner.runtime.pages import gather_pages, join_blocks
from miner.runtime.selftest import find_deviation
from miner.runtime.session import ModelSource, open_session, read_source
from miner.runtime.steps import DeviceSteps, looks_on, widen

log = logging.getLogger(__name__)

PREFILL_CHUNK: Final = 128
"""Tokens per prefill run: bounds its working memory and the time until a cancel is seen."""
COPIED_TOKENS: Final = 8
"""So many are read anew in the time that copying a slot takes."""
DEVICE_CHUNK: Final = 512
DEVICE_COPIED_TOKENS: Final = 256
"""The same on a GPU, where 512 tokens of a small model take no longer than 16."""


class LlamaRuntime:
    """One loaded model. Not thread-safe: one thread runs it."""

    def __init__(
        self,
        model: Path,
        *,
        threads: int,
        context: int,
        slots: int = 1,
        least_slots: int | None = None,
        provider: ProviderChoice = "auto",
        gpu: int = 0,
        promised_bytes: int = 0,
    ) -> None:
        """Load a model, allocate its cache and see that it computes the same in every way.

        Args:
            model: its directory, or one of several ONNX files in it.
            threads: of the CPU.
            context: tokens that a slot holds, if the model allows as many.
            slots: how many texts are held at once.
            least_slots: so few will do if there is no memory for `slots`; None: only `slots`.
            provider: see `choose_device`.
            gpu: see `choose_device`.
            promised_bytes: of main memory that is free now, what other models' caches may take.

        Raises:
            ModelError: the model cannot be loaded, or is none that this runtime runs.
            SettingsError: what was asked for is not there, or does not fit into memory.
        """
        self.config = read_config(find_model(model))
        self.context = min(context, self.config.context)
        source = read_source(self.config)
        self.device = choose_device(provider, gpu, unfit=source.unfit_for_cuda)
        self._token_bytes = source.facts.token_bytes
        self.slots = self._plan_slots(source, slots, least_slots or slots, promised_bytes)
        if self.provider != CUDA:
            join_blocks()
        self._load(source, threads)
        deviation = find_deviation(self)
        if deviation and self._steps is not None and self._steps.records:
            log.warning("%s: steps are not recorded: %s", model, deviation)
            self._load(read_source(self.config), threads, records=False)
            deviation = find_deviation(self)
        if deviation and source.cuts_head:
            log.warning("%s: prefill computes the head: without it %s", model, deviation)
            self._load(read_source(self.config, cut_head=False), threads, records=False)
            deviation = find_deviation(self)
        if deviation:
            raise UnsupportedModelError(f"{model}: computes nonsense here: {deviation}")
        if self.provider != CUDA:
            gather_pages()

    @property
    def provider(self) -> str:
        """What runs the model, by ONNX Runtime's name."""
        return self.device.provider

    @property
    def promised_bytes(self) -> int:
        """What its cache may still take of main memory: pages are taken as tokens reach them."""
        if self.provider == CUDA:
            return 0
        return self.slots * self.context * self._token_bytes

    def _plan_slots(self, source: ModelSource, wanted: int, least: int, promised_bytes: int) -> int:
        free = read_free_memory(self.device)
        if free is None:
            log.warning("how much memory is free cannot be read here, so nothing is planned")
            return wanted
        if self.provider != CUDA:
            free = max(free - promised_bytes, 0)
        plan = plan_memory(
            free_bytes=free,
            weights_bytes=source.weights_bytes,
            token_bytes=source.facts.token_bytes,
            context=self.context,
            slots=wanted,
            is_cuda=self.device.provider == CUDA,
        ).reduced_to_fit(least)
        plan.check(str(self.device))
        log.info("memory of %s: %s", self.device, plan)
        return plan.slots

    def _load(self, source: ModelSource, threads: int, *, records: bool = True) -> None:
        self._source = source
        looks_first = looks_on(self.device) and source.facts.shares_cache
        if looks_first:
            add_peaks(source.content.model, self.config.logits, self.config.vocabulary)
        self._session = open_session(
            source, self.device, threads=threads, records=records and looks_first
        )
        self._faces = {face.name: face for face in self._session.get_inputs()}
        outputs = {face.name: face for face in self._session.get_outputs()}
        check_faces(self.config, self._faces, outputs)
        logits = outputs[self.config.logits]
        self.vocabulary = fixed_size(logits.shape[-1], self.config.vocabulary)
        self._logits_dtype = FLOATS[logits.type]
        self._cache = self._make_cache()
        scores = np.empty((self.slots, self.vocabulary), self._logits_dtype)
        self._logits = {self.slots: (scores[:, None], scores)}
        self._steps: DeviceSteps | None = None
        if looks_first and isinstance(self._cache, SharedCache):
            self._steps = DeviceSteps(
                self._session,
                self.config,
                self.device,
                self._cache,
                vocabulary=self.vocabulary,
                context=self.context,
            )

    @property
    def rounds_inputs(self) -> bool:
        """Whether logits depend a little on how a text is cut into runs."""
        return self._source.facts.rounds_inputs

    @property
    def is_half(self) -> bool:
        """Whether keys, values or logits are in half precision."""
        past = self._faces[self.config.past_names[0]]
        return np.float16 in {FLOATS[past.type], self._logits_dtype}

    @property
    def max_rows(self) -> int:
        """Neighbouring slots that run as one batch; the rows of a larger step run one by one."""
        return self._cache.max_rows

    @property
    def chunk(self) -> int:
        """The most tokens of a prefill: they bound its memory, and the time until it is over."""
        return PREFILL_CHUNK if self._steps is None else DEVICE_CHUNK

    @property
    def chunk_beside(self) -> int:
        """The same where answers wait meanwhile for their next token."""
        return self.chunk // 2

    @property
    def copied_tokens(self) -> int:
        """Tokens that are not worth a copy from another slot, since reading them is as fast."""
        return COPIED_TOKENS if self._steps is None else DEVICE_COPIED_TOKENS

    @property
    def is_faster_with_few_rows(self) -> bool:
        """Whether a step's time depends much on its rows, and not only on their text."""
        return self._steps is None

    def widen(self, span: range, slots: int) -> range:
        """Which slots to step instead of some, so that steps have few shapes.

        Args:
            span: slots whose next tokens are wanted.
            slots: of them, from the first on, others may be stepped beside.
        """
        return span if self._steps is None else widen(span, slots)

    def prefill(self, token_ids: Sequence[int], *, slot: int, start: int) -> None:
        """Put tokens into a slot's cache from position `start` on, for no logits.

        At most `chunk` tokens a call.
        """
        self._run(np.array([token_ids]), slot, [start + len(token_ids)], logits=None)

    def step(
        self, token_ids: Sequence[int], lengths: Sequence[int], *, first_slot: int = 0
    ) -> NDArray[np.float32]:
        """One token for each of the neighbouring slots from `first_slot` on.

        Args:
            token_ids: one per slot.
            lengths: tokens in each slot after this step.
            first_slot: the slot of the first row.

        Returns:
            Logits, shape (rows, vocabulary); the next step may overwrite them.
        """
        if self._steps is not None:
            self._check_places(first_slot, len(token_ids), 1, lengths)
            rows = self._steps.run(token_ids, lengths, [1.0] * len(lengths), first_slot)
            return self._as_scores(rows.logits)
        logits, scores = self._step_logits(len(token_ids))
        self._run(np.array(token_ids)[:, None], first_slot, lengths, logits=logits)
        return self._as_scores(scores)

    def look(
        self,
        token_ids: Sequence[int],
        lengths: Sequence[int],
        temperatures: Sequence[float],
        *,
        first_slot: int = 0,
    ) -> Rows:
        """A step as `step`, for tokens to be drawn from its rows with these temperatures.

        The next step may overwrite the rows.
        """
        if self._steps is None:
            return [WholeRow(row) for row in self.step(token_ids, lengths, first_slot=first_slot)]
        self._check_places(first_slot, len(token_ids), 1, lengths)
        return self._steps.run(token_ids, lengths, temperatures, first_slot)

    def score(
        self, token_ids: Sequence[int], *, slot: int = 0, start: int = 0
    ) -> NDArray[np.float32]:
        """Logits after every token of a chunk, in one run.

        Args:
            token_ids: the chunk; scoring a long text chunk by chunk bounds the logits' memory.
            slot: holds the `start` tokens before the chunk already, and takes the chunk.
            start: position of the chunk's first token.

        Returns:
            Shape (tokens, vocabulary); overwritten by no later call.
        """
        logits = np.empty((1, len(token_ids), self.vocabulary), self._logits_dtype)
        self._run(np.array([token_ids]), slot, [start + len(token_ids)], logits=logits)
        return self._as_scores(logits[0])

    def copy_slot(self, source: int, target: int, length: int) -> None:
        """Give `target` the first `length` cached tokens of `source`, as if prefilled there.

        What `target` held before is lost, whatever its length.
        """
        if not (0 <= source < self.slots and 0 <= target < self.slots):
            raise AssertionError(f"slots {source} to {target}: outside the cache")
        if not 0 <= length <= self.context:
            raise AssertionError(f"{length} tokens: outside the cache")
        if source != target and length > 0:
            self._cache.copy(source, target, length)

    def _make_cache(self) -> Cache:
        config, past = self.config, self._faces[self.config.past_names[0]]
        shape = CacheShape(
            past_names=config.past_names,
            present_names=config.present_names,
            slots=self.slots,
            kv_heads=config.kv_heads,
            context=self.context,
            head_size=config.head_size,
            dtype=FLOATS[past.type],
            device=self.device,
        )
        kind = SharedCache if self._source.facts.shares_cache else JoinedCache
        return kind(self._session, shape)

    def _step_logits(self, rows: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Where steps of so many rows write, and the same without the axis of tokens.

        All write into the same memory, and as many rows into the same array, which stays bound.
        """
        if rows not in self._logits:
            scores = self._logits[self.slots][1][:rows]
            self._logits[rows] = scores[:, None], scores
        return self._logits[rows]

    def _as_scores(self, logits: NDArray[Any]) -> NDArray[np.float32]:
        return logits if self._logits_dtype is np.float32 else logits.astype(np.float32)

    def _run(
        self,
        ids: NDArray[np.int64],
        first_slot: int,
        lengths: Sequence[int],
        *,
        logits: NDArray[Any] | None,
    ) -> None:
        rows, added = ids.shape
        self._check_places(first_slot, rows, added, lengths)
        together = self._cache.max_rows
        if rows <= together:
            self._run_together(ids, first_slot, lengths, logits=logits)
            return
        for at in range(0, rows, together):
            part = slice(at, at + together)
            self._run_together(
                ids[part],
                first_slot + at,
                lengths[part],
                logits=None if logits is None else logits[part],
            )

    def _check_places(self, first_slot: int, rows: int, added: int, lengths: Sequence[int]) -> None:
        if max(lengths) > self.context or first_slot + rows > self.slots or min(lengths) < added:
            raise AssertionError(f"rows {first_slot}+{rows}, lengths {lengths}: outside the cache")

    def _run_together(
        self,
        ids: NDArray[np.int64],
        first_slot: int,
        lengths: Sequence[int],
        *,
        logits: NDArray[Any] | None,
    ) -> None:
        rows, added = ids.shape
        start = lengths[0] - added
        binding = self._cache.open(first_slot, rows, start, with_logits=logits is not None)
        self._feed_tokens(binding, ids, lengths)
        self._feed_rows(binding, added, all_rows=logits is not None)
        if logits is not None:
            binding.take(self.config.logits, logits)
        binding.run()
        self._cache.close(binding, first_slot, lengths[0])

    def _feed_tokens(
        self, binding: Binding, ids: NDArray[np.int64], lengths: Sequence[int]
    ) -> None:
        config, (_, added) = self.config, ids.shape
        self._feed(binding, config.input_ids, ids)
        width = self._cache.mask_width(added, max(lengths))
        self._feed(binding, config.attention_mask, _build_mask(lengths, width))
        if config.position_ids in self._faces:
            starts = np.array(lengths)[:, None] - added
            self._feed(binding, config.position_ids, starts + np.arange(added))

    def _feed_rows(self, binding: Binding, added: int, *, all_rows: bool) -> None:
        """Logits of all rows or, since no operator should see an empty tensor, of the last."""
        if self._source.cuts_head:
            self._feed(binding, FIRST_ROW, np.array([0 if all_rows else added - 1]))
        if SHARPNESS in self._faces:
            binding.feed(SHARPNESS, np.ones((1, 1, 1)), np.float32)
        if KEPT_ROWS in self._faces:
            self._feed(binding, KEPT_ROWS, np.array(0 if all_rows else 1))

    def _feed(self, binding: Binding, name: str, values: NDArray[Any]) -> None:
        binding.feed(name, values, INTEGERS[self._faces[name].type])


def _build_mask(lengths: Sequence[int], width: int) -> NDArray[np.int64]:
    """Ones for the tokens of each row, then zeros."""
    mask = np.zeros((len(lengths), width), np.int64)
    for row, length in zip(mask, lengths, strict=True):
        row[:length] = 1
    return mask
