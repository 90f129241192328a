"""Keys and values of a model's slots, in the two ways that graphs keep them.

- Shared: one slab a layer, of shape (slots, kv_heads, context, head_size). Past and present are
  bound to the same memory, so a step writes its keys in place. A slot is one contiguous part of
  each slab, so neighbouring slots run as the rows of one batch, each with its own length.
- Joined: the graph returns past and new keys in one piece, as long as the text. Each slot keeps
  what the graph returned last and hands it in again. Rows run one by one: a batch would need all
  pasts copied into one piece at every step, and rows of one length.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import onnxruntime as ort

from miner.errors import ModelError
from miner.runtime.binding import Binding
from miner.runtime.device import Device, Float, open_identity

MAX_BINDINGS: Final = 64
MASK_STEP: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheShape:
    """How much a cache holds, and where."""

    past_names: tuple[str, ...]
    present_names: tuple[str, ...]
    slots: int
    kv_heads: int
    context: int
    head_size: int
    dtype: type[Float]
    device: Device


class Cache(Protocol):
    """What a runtime needs of a cache. Slots and lengths are checked before."""

    @property
    def max_rows(self) -> int:
        """Neighbouring slots that may run together."""

    def mask_width(self, added: int, longest: int) -> int:
        """Tokens of an attention mask, for a run of so many tokens a row.

        Args:
            added: tokens that the run adds to each row.
            longest: tokens of the longest row after it.
        """

    def open(self, first_slot: int, rows: int, start: int, *, with_logits: bool) -> Binding:
        """A binding whose past and present are these slots.

        Args:
            first_slot: of the first row.
            rows: at most `max_rows`.
            start: tokens in the cache before this run; of a single row only.
            with_logits: whether the caller binds the logits too; else they stay unbound.
        """

    def close(self, binding: Binding, slot: int, length: int) -> None:
        """Take what a run made of a slot, if it is not in place already."""

    def copy(self, source: int, target: int, length: int) -> None:
        """Give a slot the first tokens of another."""


class SharedCache:
    """See the module."""

    def __init__(self, session: Any, shape: CacheShape) -> None:
        self._session = session
        self._shape = shape
        self._slab_shape = (shape.slots, shape.kv_heads, shape.context, shape.head_size)
        self._slabs = [_zeros(self._slab_shape, shape) for _ in shape.past_names]
        self._bindings: dict[tuple[int, int, bool], Binding] = {}

    @property
    def max_rows(self) -> int:
        """See `Cache`."""
        return self._shape.slots

    def mask_width(self, added: int, longest: int) -> int:
        """See `Cache`. The widths of steps are few, as if a longer row ran beside.

        So masks stay bound, and the plan of working memory that the runtime makes for each
        combination of shapes, and never forgets, is found again.
        """
        if added > 1 or self._shape.device.name != "cpu":
            return longest
        return min(-(-longest // MASK_STEP) * MASK_STEP, self._shape.context)

    def open(self, first_slot: int, rows: int, start: int, *, with_logits: bool) -> Binding:
        """See `Cache`. Bindings are kept: making one takes longer than a small model's step."""
        key = (first_slot, rows, with_logits)
        binding = self._bindings.pop(key, None)
        if binding is None:
            binding = Binding(self._session, self._shape.device)
            self.bind(binding.io, first_slot, rows)
        self._bindings[key] = binding  # the last one now: the first is used least
        if len(self._bindings) > MAX_BINDINGS:
            self._bindings.pop(next(iter(self._bindings)))
        return binding

    def close(self, binding: Binding, slot: int, length: int) -> None:
        """See `Cache`."""

    def copy(self, source: int, target: int, length: int) -> None:
        """See `Cache`."""
        for slab in self._slabs:
            if self._shape.device.name == "cpu":
                memory = slab.numpy()  # a view
                memory[target, :, :length] = memory[source, :, :length]
            else:
                self._copier.copy(self._place(slab, source), self._place(slab, target))

    def bind(self, io: Any, first_slot: int, rows: int) -> None:
        """Let past and present of a binding be these slots."""
        shape = self._shape
        sizes = (rows, *self._slab_shape[1:])
        for past, present, slab in zip(
            shape.past_names, shape.present_names, self._slabs, strict=True
        ):
            address = self._place(slab, first_slot)
            place = (shape.device.name, shape.device.index, shape.dtype, sizes, address)
            io.bind_input(past, *place)
            io.bind_output(present, *place)

    def _place(self, slab: Any, slot: int) -> int:
        """The address of a slot's part of a slab."""
        slot_bytes = math.prod(self._slab_shape[1:]) * np.dtype(self._shape.dtype).itemsize
        return int(slab.data_ptr()) + slot * slot_bytes

    @functools.cached_property
    def _copier(self) -> DeviceCopier:
        values = math.prod(self._slab_shape[1:])
        return DeviceCopier(self._shape.device, dtype=self._shape.dtype, values=values)


class JoinedCache:
    """See the module. Values are never changed once returned, so slots may share them."""

    def __init__(self, session: Any, shape: CacheShape) -> None:
        self._session = session
        self._shape = shape
        empty = _zeros((1, shape.kv_heads, 0, shape.head_size), shape)
        self._values: list[list[Any]] = [[empty] * len(shape.past_names)] * shape.slots

    @property
    def max_rows(self) -> int:
        """See `Cache`."""
        return 1

    def mask_width(self, added: int, longest: int) -> int:
        """See `Cache`."""
        return longest

    def open(self, first_slot: int, rows: int, start: int, *, with_logits: bool) -> Binding:
        """See `Cache`."""
        shape, binding = self._shape, Binding(self._session, self._shape.device)
        past = self._first(first_slot, start)
        for past_name, present_name, value in zip(
            shape.past_names, shape.present_names, past, strict=True
        ):
            binding.io.bind_ortvalue_input(past_name, value)
            binding.io.bind_output(present_name, shape.device.name, shape.device.index)
        return binding

    def close(self, binding: Binding, slot: int, length: int) -> None:
        """See `Cache`.

        Raises:
            ModelError: the graph returned another number of tokens.
        """
        values = binding.io.get_outputs()[: len(self._shape.present_names)]
        lengths = {value.shape()[2] for value in values}
        if lengths != {length}:
            raise ModelError(f"the model returned {lengths} cached tokens, {length} were expected")
        self._values[slot] = values

    def copy(self, source: int, target: int, length: int) -> None:
        """See `Cache`."""
        self._values[target] = self._first(source, length)

    def _first(self, slot: int, length: int) -> list[Any]:
        values = self._values[slot]
        held = values[0].shape()[2]
        if held < length:
            raise AssertionError(f"slot {slot} holds {held} tokens, not {length}")
        if held == length:
            return values
        device = (self._shape.device.name, self._shape.device.index)
        parts = [np.ascontiguousarray(value.numpy()[:, :, :length]) for value in values]
        return [ort.OrtValue.ortvalue_from_numpy(part, *device) for part in parts]


class DeviceCopier:
    """Copies memory of a device within it, which the runtime's interface has no call for.

    A graph of one Identity does it: all of a slot, since what is copied must lie in one piece.
    """

    def __init__(self, device: Device, *, dtype: type[Float], values: int) -> None:
        self._session = open_identity(device, dtype, values)
        self._place = (device.name, device.index, dtype, (values,))

    def copy(self, source: int, target: int) -> None:
        """Copy from one address to another."""
        binding = self._session.io_binding()
        binding.bind_input("s", *self._place, source)
        binding.bind_output("t", *self._place, target)
        self._session.run_with_iobinding(binding)


def _zeros(sizes: Sequence[int], shape: CacheShape) -> Any:
    """Memory of a device, all zero: what stands behind a row's end is multiplied by zero."""
    # calloc: on the CPU, pages cost memory only once tokens reach them.
    zeros = np.zeros(sizes, shape.dtype)
    return ort.OrtValue.ortvalue_from_numpy(zeros, shape.device.name, shape.device.index)
