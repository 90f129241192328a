"""What a step does besides computing: bind what changed, and keep weights in large pages."""

import logging
import mmap
from pathlib import Path

import numpy as np
import pytest

from miner.runtime import CPU, CUDA, LlamaRuntime, cache, pages
from miner.runtime.binding import Binding
from miner.runtime.device import Device
from tests.tiny_model import CONTEXT

TEXT = [1, 60, 70, 5, 99, 1, 200, 258, 30, 4, 8, 77]
MIB = 1 << 20


class RecordingIo:
    """Stands for ONNX Runtime's binding: what is bound to a name, and how often anything was."""

    def __init__(self) -> None:
        self.bound: dict[str, object] = {}
        self.times = 0

    def bind_cpu_input(self, name, values) -> None:
        self.times += 1
        self.bound[name] = values

    def bind_output(self, name, device, index, dtype, shape, address) -> None:
        self.times += 1
        self.bound[name] = (dtype, tuple(shape), address)


class RecordingSession:
    def io_binding(self):
        return RecordingIo()


def open_runtime(directory, **options) -> LlamaRuntime:
    return LlamaRuntime(directory, **{"threads": 1, "context": CONTEXT, "slots": 3} | options)


# Bindings


def test_an_input_of_the_same_shape_is_written_where_the_last_one_was():
    binding = Binding(RecordingSession(), Device(provider=CPU))
    binding.feed("ids", np.array([[5]]), np.int32)
    first = binding.io.bound["ids"]
    binding.feed("ids", np.array([[6]]), np.int32)
    assert binding.io.bound["ids"] is first
    assert (first.dtype, first.tolist(), binding.io.times) == (np.int32, [[6]], 1)
    binding.feed("ids", np.array([[7], [8]]), np.int32)
    assert binding.io.bound["ids"].tolist() == [[7], [8]]
    assert first.tolist() == [[6]]


def test_an_input_is_a_copy_that_its_giver_cannot_change():
    binding = Binding(RecordingSession(), Device(provider=CPU))
    given = np.array([[5]])
    binding.feed("ids", given, np.int64)
    binding.feed("others", given, np.int64)
    binding.feed("ids", np.array([[6]]), np.int64)
    assert binding.io.bound["others"].tolist() == given.tolist() == [[5]]


def test_on_a_gpu_everything_is_bound_every_time():
    binding = Binding(RecordingSession(), Device(provider=CUDA))
    logits = np.zeros((1, 1, 4), np.float32)
    for times in (1, 2):
        binding.feed("ids", np.array([[times]]), np.int64)
        binding.take("logits", logits)
        assert (binding.io.times, binding.io.bound["ids"].tolist()) == (2 * times, [[times]])


def test_an_output_is_bound_again_only_for_another_array():
    binding = Binding(RecordingSession(), Device(provider=CPU))
    logits = np.zeros((1, 1, 4), np.float32)
    binding.take("logits", logits)
    binding.take("logits", logits)
    assert binding.io.times == 1
    del logits
    other = np.zeros((2, 1, 4), np.float32)
    binding.take("logits", other)
    assert binding.io.bound["logits"] == (np.float32, (2, 1, 4), other.ctypes.data)


def test_steps_bind_nothing_while_their_mask_has_room(tiny_directory, monkeypatch):
    monkeypatch.setattr(cache, "MASK_STEP", 4)
    runtime = open_runtime(tiny_directory)
    runtime.prefill(TEXT[:4], slot=0, start=0)
    runtime.step([TEXT[4]], [5])
    io = runtime._cache.open(0, 1, 5, with_logits=True).io
    bound = []
    monkeypatch.setattr(io, "bind_cpu_input", lambda name, _: bound.append(name))
    for length in (6, 7, 8):
        runtime.step([TEXT[length - 1]], [length])
    assert bound == []
    runtime.step([TEXT[8]], [9])
    assert bound == [runtime.config.attention_mask]


@pytest.mark.parametrize("rows", [1, 3])
def test_wide_masks_change_no_bit_of_the_logits(tiny_directory, monkeypatch, rows):
    drawn = []
    for width in (1, 5):
        monkeypatch.setattr(cache, "MASK_STEP", width)
        runtime = open_runtime(tiny_directory, context=len(TEXT) + rows)
        for row in range(1, rows):
            runtime.prefill(TEXT[:row], slot=row, start=0)
        steps = [
            runtime.step([token] * rows, [at + row + 1 for row in range(rows)]).copy()
            for at, token in enumerate(TEXT)
        ]
        drawn.append(np.stack(steps))
    assert (drawn[0] == drawn[1]).all()
    monkeypatch.undo()
    whole = open_runtime(tiny_directory).score(TEXT)
    assert np.abs(drawn[0][:, 0] - whole).max() < 1e-3 * np.abs(whole).max()


def test_a_step_writes_where_the_last_did_and_a_chunk_does_not(tiny_directory):
    runtime = open_runtime(tiny_directory)
    chunk = runtime.score(TEXT[:4])
    kept = chunk.copy()
    first = runtime.step([TEXT[4]], [5])
    row = first.copy()
    second = runtime.step([TEXT[5]], [6])
    runtime.score(TEXT[:4], slot=1)
    assert np.shares_memory(first, second)
    assert (first == second).all()
    assert (second != row).any()
    assert (chunk == kept).all()


# Large pages


def read_counter(name: str) -> int:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def fill(size: int) -> mmap.mmap:
    """Memory of small pages, in use, with something else in each."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for page in range(0, size, mmap.PAGESIZE):
        memory[page : page + 8] = page.to_bytes(8)
    return memory


@pytest.mark.skipif(not pages._read_size(), reason="this kernel gathers no pages")
def test_memory_in_use_is_gathered_and_holds_what_it_held(caplog):
    caplog.set_level(logging.INFO, logger="miner.runtime.pages")
    with fill(16 * MIB) as memory:
        before = read_counter("AnonHugePages:")
        if not pages.gather_pages():
            pytest.skip("this kernel gathers no pages, or has none free")
        assert read_counter("AnonHugePages:") >= before
        assert all(
            memory[page : page + 8] == page.to_bytes(8)
            for page in range(0, len(memory), mmap.PAGESIZE)
        )
    assert "MiB are in large pages" in caplog.text


@pytest.mark.skipif(not pages._read_size(), reason="this kernel has no large pages")
def test_memory_that_nothing_has_touched_stays_untouched():
    size = pages._read_size()
    with fill(8 * size) as used, mmap.mmap(-1, 64 * MIB, flags=mmap.MAP_PRIVATE) as untouched:
        places = [np.frombuffer(memory, np.uint8).ctypes.data for memory in (used, untouched)]
        pieces = list(pages._find_pieces(size))
        assert sum(places[0] <= piece < places[0] + len(used) for piece in pieces) >= 7
        assert not any(places[1] <= piece < places[1] + len(untouched) for piece in pieces)
        assert all(piece % size == 0 for piece in pieces)


@pytest.mark.parametrize("policy", ["always madvise [never]\n", None])
def test_pages_are_left_alone_where_the_system_says_so(tmp_path, monkeypatch, policy):
    if policy:
        (tmp_path / "enabled").write_text(policy)
        (tmp_path / "hpage_pmd_size").write_text("2097152\n")
    monkeypatch.setattr(pages, "_LARGE", tmp_path)
    monkeypatch.setattr(pages, "_find_pieces", lambda _: pytest.fail("looked for pieces"))
    assert pages.gather_pages() == 0


def test_pages_that_cannot_be_seen_are_left_alone(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO, logger="miner.runtime.pages")
    monkeypatch.setattr(pages, "_read_size", lambda: 2 * MIB)
    monkeypatch.setattr(pages, "_PROC", tmp_path)
    assert pages.gather_pages() == 0
    assert "no large pages" in caplog.text


def test_files_are_left_alone_and_memory_that_went_meanwhile_is_no_error(tmp_path, monkeypatch):
    size = 2 * MIB
    (tmp_path / "maps").write_text(
        "10000000-10800000 rw-p 00000000 00:00 0 \n"
        "08000000-08800000 rw-p 00000000 fe:00 77                   /weights\n"
        "09000000-09800000 r--p 00000000 00:00 0 \n"
        "7ffc00000000-7ffc00800000 rw-p 00000000 00:00 0                          [stack]\n"
    )
    entries = np.full((0x10000000 + size) // mmap.PAGESIZE + 7, 1 << 63, np.uint64)
    entries.tofile(tmp_path / "pagemap")
    monkeypatch.setattr(pages, "_PROC", tmp_path)
    assert list(pages._find_pieces(size)) == [0x10000000]
