"""Steps as a GPU takes them, computed on the CPU: all but the recording of launches."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from miner.engine import Generation, GenerationRequest, InferenceThread, LlamaEngine
from miner.errors import ModelError, UnsupportedModelError
from miner.models.layout import find_model
from miner.rows import BLOCK
from miner.runtime import CPU, CUDA, LlamaRuntime, llama, selftest, session, steps
from miner.runtime.binding import Binding
from miner.runtime.config import read_config
from miner.runtime.device import Device
from miner.runtime.graph import PEAKS, SHARPNESS, TOTALS, add_peaks
from miner.runtime.session import open_session, read_source
from miner.runtime.steps import widen
from miner.sampling import SamplingParams
from miner.tokenizer import ChatTokenizer, Message
from tests.recording_runtime import ByHand
from tests.tiny_exports import Export, write_genai
from tests.tiny_model import CONTEXT

TEXT = [1, 60, 70, 5, 99, 1, 200, 258, 30, 4, 8, 77]


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Let the CPU take steps as a GPU does."""
    monkeypatch.setattr(llama, "looks_on", lambda _: True)


def open_runtime(directory, **options) -> LlamaRuntime:
    return LlamaRuntime(directory, **{"threads": 1, "context": CONTEXT, "slots": 5} | options)


def submit(engine: LlamaEngine, prompt: str, **params: int) -> Generation:
    return engine.submit(
        GenerationRequest(
            job_id=f"job_{len(prompt)}",
            messages=(Message(role="user", content=prompt),),
            params=SamplingParams(seed=3, **params),
        ),
        on_text=lambda _: None,
    )


# Shapes


@given(st.integers(1, 70).flatmap(lambda size: st.tuples(st.just(size), st.integers(0, size - 1))))
def test_a_wide_span_is_a_block_around_the_span(sizes):
    slots, start = sizes
    for stop in range(start + 1, slots + 1):
        wide = widen(range(start, stop), slots)
        assert wide.start <= start < stop <= wide.stop <= slots
        whole = range(wide.start, wide.start + 2 ** (len(wide) - 1).bit_length())
        assert whole.start % len(whole) == 0, "aligned, so that few blocks overlap"
        assert wide.stop in (whole.stop, slots)


def test_spans_of_many_slots_take_few_shapes():
    spans = [range(a, b) for a in range(32) for b in range(a + 1, 33)]
    assert len(spans) == 528
    assert len({widen(span, 32) for span in spans}) == 63


# What is computed


def test_steps_compute_what_they_compute_otherwise(tiny_directory, monkeypatch):
    monkeypatch.setattr(steps, "LEAST_WIDTH", 4)  # several widths in a short text
    logits = []
    for is_device in (False, True):
        monkeypatch.setattr(llama, "looks_on", lambda _, is_device=is_device: is_device)
        runtime = open_runtime(tiny_directory)
        assert runtime.is_faster_with_few_rows is not is_device
        for slot in range(3):
            runtime.prefill(TEXT[: slot + 1], slot=slot, start=0)
        rows = [
            runtime.step(
                [TEXT[at + slot] for slot in range(3)], [at + slot + 1 for slot in range(3)]
            )
            for at in range(1, 9)
        ]
        logits.append(np.stack([row.copy() for row in rows]))
        logits.append(runtime.score(TEXT))
    assert np.abs(logits[0] - logits[2]).max() < 1e-4
    assert np.abs(logits[1] - logits[3]).max() < 1e-4


def test_a_look_tells_the_peaks_and_totals_of_its_rows(tiny_directory, as_on_a_gpu):
    runtime = open_runtime(tiny_directory)
    temperatures = [0.25, 0.7, 2.0]
    rows = runtime.look([7, 8, 9], [1, 1, 1], temperatures, first_slot=1)
    logits = runtime.step([7, 8, 9], [1, 1, 1], first_slot=1)
    assert runtime.vocabulary % BLOCK, "the last block is not full"
    for row, line, temperature in zip(rows, logits, temperatures, strict=True):
        assert row.top == line.max()
        assert (
            row.find_above(row.top - 1).tolist() == np.flatnonzero(line >= line.max() - 1).tolist()
        )
        expected = np.exp((line.astype(np.float64) - line.max()) / temperature).sum()
        assert row.add_up(temperature) == pytest.approx(expected, rel=1e-5)


def add_positions(model: onnx.ModelProto) -> None:
    """Make logits depend on position ids."""
    last = next(node for node in model.graph.node if "logits" in node.output)
    last.output[0] = "plain"
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([2]), "behind"))
    model.graph.node.extend(
        [
            helper.make_node("Cast", ["position_ids"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["floats", "behind"], ["column"]),
            helper.make_node("Add", ["plain", "column"], ["logits"]),
        ]
    )


def test_positions_are_given_to_graphs_that_ask_for_them(tiny_model, tmp_path, as_on_a_gpu):
    export = Export(tiny_model, attention="shared")
    directory = write_genai(export, tmp_path, change=add_positions)
    runtime = open_runtime(directory)
    whole = runtime.score(TEXT)
    for slot, length in ((0, 5), (1, 9)):
        runtime.prefill(TEXT[:length], slot=slot, start=0)
    rows = runtime.step([TEXT[5], TEXT[9]], [6, 10])
    assert np.abs(rows - whole[[5, 9]]).max() < 1e-3


@pytest.mark.parametrize("opset", [17, 21])
@pytest.mark.parametrize("vocabulary", [BLOCK, 3 * BLOCK + 1])
def test_peaks_are_told_by_graphs_of_any_opset(opset, vocabulary):
    """Since 18 the axes of ReduceMax are an input."""
    face = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Identity", ["given"], ["logits"])],
        "head",
        [face("given", TensorProto.FLOAT16, ["rows", 1, vocabulary])],
        [face("logits", TensorProto.FLOAT16, ["rows", 1, "vocabulary"])],
    )
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", opset)])
    add_peaks(model, "logits", vocabulary)
    onnx.checker.check_model(model, full_check=True)
    given_logits = np.random.default_rng(1).normal(-90, 5, (2, 1, vocabulary)).astype(np.float16)
    sharpness = np.array([0.5, 2], np.float32).reshape(2, 1, 1)
    peaks, totals = ort.InferenceSession(model.SerializeToString()).run(
        [PEAKS, TOTALS], {"given": given_logits, SHARPNESS: sharpness}
    )
    floats = given_logits[:, 0].astype(np.float32)
    starts = range(0, vocabulary, BLOCK)
    assert ([floats[:, at : at + BLOCK].max(axis=1) for at in starts] == peaks[:, 0].T).all()
    scaled = (floats - floats.max(axis=1, keepdims=True)) * sharpness[:, 0]
    assert totals[:, 0] == pytest.approx(np.exp(scaled).sum(axis=1), rel=1e-5)


@pytest.mark.parametrize("temperature_micros", [0, 700_000])
@pytest.mark.parametrize("top_p_micros", [900_000, 1_000_000])
def test_answers_are_those_of_ordinary_steps(
    tiny_directory, monkeypatch, temperature_micros, top_p_micros
):
    tokenizer = ChatTokenizer(tiny_directory)
    answers = []
    for is_device in (False, True):
        monkeypatch.setattr(llama, "looks_on", lambda _, is_device=is_device: is_device)
        hand = ByHand()
        engine = LlamaEngine(
            open_runtime(tiny_directory), tokenizer, model_digest="0" * 64, inference=hand
        )
        generations = [
            submit(
                engine,
                "ab" * number,
                max_tokens=9 + number,
                temperature_micros=temperature_micros,
                top_p_micros=top_p_micros,
            )
            for number in range(9)
        ]
        hand.finish()
        engine._batch.close()
        answers.append([one.future.result(timeout=0).token_ids for one in generations])
    assert answers[0] == answers[1]


@pytest.mark.usefixtures("as_on_a_gpu")
def test_a_full_slot_beside_those_that_grow_is_left_in_its_place(tiny_directory):
    """An answer that fills its slot ends; the others are stepped in a block with it."""
    hand = ByHand()
    engine = LlamaEngine(
        open_runtime(tiny_directory),
        ChatTokenizer(tiny_directory),
        model_digest="0" * 64,
        inference=hand,
    )
    generations = [
        submit(
            engine,
            "q" * letters,
            max_tokens=CONTEXT,
            temperature_micros=900_000,
            top_p_micros=900_000,
        )
        for letters in (1, 30, 10, 20)
    ]
    hand.finish()
    engine._batch.close()
    done = [generation.future.result(timeout=0) for generation in generations]
    assert [one.prompt_tokens + len(one.token_ids) for one in done] == [CONTEXT] * 4


# Recordings


class RecordingIo:
    def __init__(self) -> None:
        self.bound: list[str] = []

    def bind_cpu_input(self, name, values) -> None:
        self.bound.append(name)


class RecordingSession:
    def __init__(self) -> None:
        self.options: list = []

    def io_binding(self):
        return RecordingIo()

    def run_with_iobinding(self, io, options) -> None:
        self.options.append(options)


@pytest.mark.parametrize(("recording", "number"), [(None, "-1"), (0, "0"), (7, "7")])
def test_every_run_on_a_gpu_says_what_it_is_recorded_as(recording, number):
    opened = RecordingSession()
    Binding(opened, Device(provider=CUDA), recording=recording).run()
    assert opened.options[0].get_run_config_entry("gpu_graph_id") == number
    Binding(opened, Device(provider=CPU)).run()
    assert opened.options[1] is None


def test_shapes_beyond_the_bound_are_not_kept(tiny_directory, as_on_a_gpu, monkeypatch):
    monkeypatch.setattr(steps, "MAX_RECORDED", 3)
    runtime = open_runtime(tiny_directory)
    expected = runtime.step([7], [1])
    for first in (1, 2, 3, 4, 3):
        assert np.abs(runtime.step([7], [1], first_slot=first) - expected).max() < 1e-5
    assert len(runtime._steps._places) == 3


def test_a_graph_that_cannot_be_recorded_is_opened_without(tiny_directory, monkeypatch, caplog):
    real = ort.InferenceSession
    asked = []

    def refuse(content, options, *, providers, **rest):
        asked.append(providers[0][1]["enable_cuda_graph"])
        if asked[-1] == "1":
            raise RuntimeError("nodes on another device")
        return real(content, options, providers=[CPU], **rest)

    monkeypatch.setattr(session.ort, "InferenceSession", refuse)
    monkeypatch.setattr(session, "_check_assignment", lambda *_: None)
    caplog.set_level("INFO")
    source = read_source(read_config(find_model(tiny_directory)))
    opened = open_session(source, Device(provider=CUDA), threads=1, records=True)
    assert asked == ["1", "0"]
    assert not session.is_recording(opened)
    assert "its steps are not recorded: nodes on another device" in caplog.text


class Replaying:
    """Computes as a runtime does, but a step of a shape it knows as it was the first time."""

    def __init__(self, runtime) -> None:
        self._runtime = runtime
        self._first: dict = {}

    def __getattr__(self, name):
        return getattr(self._runtime, name)

    def step(self, token_ids, lengths, *, first_slot=0):
        logits = self._runtime.step(token_ids, lengths, first_slot=first_slot)
        return self._first.setdefault(len(token_ids), logits.copy())


def test_what_replays_the_past_is_noticed_when_a_model_is_loaded(tiny_directory):
    runtime = open_runtime(tiny_directory)
    assert selftest.find_deviation(runtime) is None
    assert selftest.find_deviation(Replaying(runtime)).startswith("token by token")


def test_steps_that_compute_nonsense_when_recorded_are_taken_unrecorded(
    tiny_directory, as_on_a_gpu, monkeypatch, caplog
):
    loads = []
    real = llama.open_session

    def open_and_note(source, device, *, threads, records):
        loads.append((source.cuts_head, records))
        return real(source, device, threads=threads, records=records)

    monkeypatch.setattr(llama, "open_session", open_and_note)
    monkeypatch.setattr(steps, "is_recording", lambda _: loads[-1][1])
    monkeypatch.setattr(steps, "CUDA", CPU)
    monkeypatch.setattr(
        llama, "find_deviation", lambda _: "token by token, off" if loads[-1][1] else None
    )
    runtime = open_runtime(tiny_directory)
    assert loads == [(True, True), (True, False)]
    assert not runtime._steps.records
    assert "steps are not recorded: token by token, off" in caplog.text
    monkeypatch.setattr(llama, "find_deviation", lambda _: "in pieces, off")
    with pytest.raises(UnsupportedModelError, match="in pieces"):
        open_runtime(tiny_directory)
    assert loads[2:] == [(True, True), (True, False), (False, False)]


def test_a_step_that_fails_says_so(tiny_directory, as_on_a_gpu):
    runtime = open_runtime(tiny_directory)
    with pytest.raises(AssertionError, match="outside the cache"):
        runtime.look([7, 7], [1, 1], [1.0, 1.0], first_slot=4)
    with pytest.raises(ModelError, match="failed while running"):
        runtime.step([runtime.vocabulary], [1])


def test_a_gpu_is_warm_before_the_first_job(tiny_directory, as_on_a_gpu):
    """What is run, and recorded, in the thread that will take the steps."""
    with InferenceThread() as inference:
        runtime = open_runtime(tiny_directory, slots=7)
        engine = LlamaEngine(
            runtime, ChatTokenizer(tiny_directory), model_digest="0" * 64, inference=inference
        )
        engine.warm_up()
    shapes = {(first, rows) for first, rows, _ in runtime._steps._places}
    assert {(0, 1), (0, 2), (0, 4), (0, 6), (6, 1)} <= shapes
