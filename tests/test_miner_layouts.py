"""Models in the layouts that people download, on graphs that the tests build."""

import contextlib
import json

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.keys import KeyPair
from miner.engine import GenerationRequest, InferenceThread
from miner.errors import ModelFormatError, NoCudaError, SettingsError, UnsupportedModelError
from miner.loading import load_engine
from miner.models.digest import cached_digest, digest_model
from miner.models.onnx_file import read_onnx
from miner.runtime import CPU, CUDA, LlamaRuntime, llama
from miner.runtime.graph import FIRST_ROW, cut_before_head
from miner.sampling import SamplingParams
from miner.settings import MinerSettings
from miner.tokenizer import Message
from tests.miner_fixtures import answer
from tests.tiny_exports import Export, write_genai, write_onnx, write_transformers_js
from tests.tiny_model import CONTEXT, EOS

TEXT = [1, 60, 70, 5, 99, 1, 200, 258, 30]
EXPORTS = {
    "joined": {},
    "joined-half": {"dtype": np.float16},
    "joined-no-positions": {"has_positions": False},
    "joined-rounding": {"head": "rounding"},
    "shared": {"attention": "shared", "has_positions": False},
    "shared-half": {"attention": "shared", "dtype": np.float16},
}


def tolerance(name: str) -> float:
    return 0.1 if "rounding" in name else 2e-2 if "half" in name else 1e-4


@pytest.fixture(scope="module")
def directory(tiny_model, tmp_path_factory):
    """All exports as choices of one directory."""
    exports = {
        f"model_{name}.onnx": Export(tiny_model, **options) for name, options in EXPORTS.items()
    }
    return write_transformers_js(exports, tmp_path_factory.mktemp("choices"))


def open_runtime(path, **options) -> LlamaRuntime:
    return LlamaRuntime(path, **{"threads": 1, "context": CONTEXT, "slots": 3} | options)


def choice(directory, name):
    return directory / "onnx" / f"model_{name}.onnx"


@pytest.mark.parametrize("name", EXPORTS)
def test_every_kind_of_export_computes_what_the_reference_does(name, directory, tiny_model):
    runtime = open_runtime(choice(directory, name))
    expected = tiny_model.logits(TEXT)
    bound = tolerance(name) * np.abs(expected).max()
    assert np.abs(runtime.score(TEXT) - expected).max() < bound
    assert runtime.config.eos_token_ids == {EOS, 0}


@pytest.fixture(params=["as on a CPU", "as on a GPU"])
def way(request, monkeypatch):
    """How steps are taken; the CPU computes either way."""
    monkeypatch.setattr(llama, "looks_on", lambda _: request.param == "as on a GPU")


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("name", EXPORTS)
def test_slots_of_every_kind_step_together_as_each_would_alone(name, directory, tiny_model):
    runtime = open_runtime(choice(directory, name))
    expected = tiny_model.logits(TEXT)
    bound = tolerance(name) * np.abs(expected).max()
    runtime.score(TEXT[::-1], slot=1)
    runtime.prefill(TEXT[:8], slot=1, start=0)
    runtime.prefill(TEXT[:2], slot=2, start=0)
    runtime.prefill(TEXT[2:4], slot=2, start=2)
    rows = runtime.step([TEXT[8], TEXT[4]], [9, 5], first_slot=1)
    assert np.abs(rows - expected[[8, 4]]).max() < bound
    chunk = runtime.score(TEXT[3:6], slot=1, start=3)
    assert np.abs(chunk - expected[3:6]).max() < bound


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("name", EXPORTS)
def test_a_copied_slot_of_every_kind_goes_on_as_its_source_would(name, directory, tiny_model):
    runtime = open_runtime(choice(directory, name))
    expected = tiny_model.logits(TEXT)
    bound = tolerance(name) * np.abs(expected).max()
    runtime.score(TEXT)
    runtime.copy_slot(0, 2, 6)
    runtime.score(TEXT[::-1], slot=0)
    runtime.prefill(TEXT[6:8], slot=2, start=6)
    assert np.abs(runtime.step([TEXT[8]], [9], first_slot=2) - expected[8]).max() < bound


@pytest.mark.parametrize("data_files", [0, 1, 3])
@pytest.mark.parametrize("options", [{}, {"attention": "shared", "dtype": np.float16}])
def test_a_genai_directory_runs_wherever_its_weights_are(tmp_path, tiny_model, data_files, options):
    directory = write_genai(Export(tiny_model, **options), tmp_path, data_files=data_files)
    expected = tiny_model.logits(TEXT)
    runtime = open_runtime(directory)
    assert np.abs(runtime.score(TEXT) - expected).max() < 2e-2 * np.abs(expected).max()
    assert runtime.config.eos_token_ids == {EOS, 0}
    assert runtime.max_rows == (3 if options else 1)


# The head


@pytest.mark.parametrize("name", EXPORTS)
def test_prefill_computes_one_row_of_logits_at_most(name, directory):
    runtime = open_runtime(choice(directory, name))
    binding = runtime._cache.open(0, 1, 0, with_logits=True)
    runtime._feed_tokens(binding, np.array([TEXT]), [len(TEXT)])
    runtime._feed_rows(binding, len(TEXT), all_rows=False)
    binding.io.bind_output("logits")
    binding.run()
    logits = binding.io.get_outputs()[-1].numpy()
    assert logits.shape[1] == 1
    whole = runtime.score(TEXT)
    assert np.abs(logits[0, 0] - whole[-1]).max() < tolerance(name) * np.abs(whole).max()


def test_a_head_that_is_not_understood_is_computed_and_said_so(tmp_path, tiny_model, caplog):
    caplog.set_level("INFO")

    def negate(model):
        model.graph.node[-1].output[0] = "plain"
        model.graph.node.append(onnx.helper.make_node("Neg", ["plain"], ["logits"]))
        before = model.SerializeToString()
        assert not cut_before_head(model, "logits")
        assert model.SerializeToString() == before

    runtime = open_runtime(write_genai(Export(tiny_model), tmp_path, change=negate))
    expected = tiny_model.logits(TEXT)
    assert np.abs(runtime.score(TEXT) + expected).max() < 1e-4 * np.abs(expected).max()
    assert any("head was not recognised" in message for message in caplog.messages)


def test_a_head_whose_rows_depend_on_each_other_is_found_out_and_left_whole(
    tmp_path, tiny_model, caplog
):
    """A second product of rows with rows looks like a head, and is none."""

    def mix(model):
        add = model.graph.node
        add[-1].output[0] = "plain"
        first = onnx.helper.make_node("CumSum", ["plain", "axis.rows"], ["summed"])
        add.append(first)
        add.append(onnx.helper.make_node("Mul", ["summed", "half"], ["logits"]))
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(1), "axis.rows"))
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(0.5), "half"))

    with pytest.raises(UnsupportedModelError, match="nonsense"):
        open_runtime(write_genai(Export(tiny_model), tmp_path, change=mix))


def test_the_native_input_for_fewer_logits_is_used(tmp_path, tiny_model):
    def keep_rows(model):
        value = onnx.helper.make_tensor_value_info("num_logits_to_keep", onnx.TensorProto.INT64, [])
        model.graph.input.append(value)
        model.graph.node[-1].output[0] = "plain"
        make = onnx.helper.make_node
        constants = {"shape.one": np.array([1]), "end.all": np.array([1 << 40])}
        for name, values in constants.items():
            model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
        model.graph.node.extend(
            [
                make("Reshape", ["num_logits_to_keep", "shape.one"], ["kept"]),
                make("Neg", ["kept"], ["from"]),
                make("Slice", ["plain", "from", "end.all", "shape.one"], ["logits"]),
            ]
        )

    runtime = open_runtime(write_genai(Export(tiny_model), tmp_path, change=keep_rows))
    expected = tiny_model.logits(TEXT)
    assert np.abs(runtime.score(TEXT) - expected).max() < 1e-4 * np.abs(expected).max()


# What is refused


def test_a_cache_that_is_not_used_as_expected_is_found_out(tmp_path, tiny_model):
    directory = write_genai(Export(tiny_model, forgets_past=True), tmp_path)
    with pytest.raises(UnsupportedModelError, match="nonsense here: in pieces"):
        open_runtime(directory)


def test_several_choices_are_named_and_one_is_taken(directory, tmp_path, tiny_model):
    with pytest.raises(SettingsError) as caught:
        open_runtime(directory)
    assert all(str(choice(directory, name)) in str(caught.value) for name in EXPORTS)
    only = write_transformers_js({"model_q4.onnx": Export(tiny_model)}, tmp_path)
    assert open_runtime(only).config.file == only / "onnx" / "model_q4.onnx"


def test_an_export_in_several_graphs_is_refused_by_name(tmp_path, tiny_model):
    write_transformers_js({"decoder_model_merged.onnx": Export(tiny_model)}, tmp_path)
    with pytest.raises(UnsupportedModelError, match=r"decoder_model_merged\.onnx"):
        open_runtime(tmp_path)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"is_encoder_decoder": True}, UnsupportedModelError, "encoder"),
        ({"vision_config": {"layers": 1}}, UnsupportedModelError, "plain decoders"),
        ({"num_key_value_heads": 4}, UnsupportedModelError, "4 heads of size 32"),
        ({"head_dim": 64}, UnsupportedModelError, "2 heads of size 64"),
        ({"num_hidden_layers": 3}, UnsupportedModelError, "missing"),
        ({"num_hidden_layers": 1}, UnsupportedModelError, "unknown inputs"),
        ({"num_hidden_layers": 10**9}, ModelFormatError, "layers"),
        ({"max_position_embeddings": 0}, ModelFormatError, "context"),
        ({"num_attention_heads": 0, "head_dim": None}, ModelFormatError, "decoder"),
        ({"vocab_size": "many"}, ModelFormatError, "decoder"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(tmp_path, tiny_model, change, error, said):
    write_transformers_js({"model.onnx": Export(tiny_model)}, tmp_path)
    path = tmp_path / "config.json"
    content = json.loads(path.read_text(encoding="utf-8")) | change
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(error, match=said):
        open_runtime(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m["decoder"].update(pipeline=[{}]), "several graphs"),
        (lambda m: m["decoder"].update(sliding_window={"slide_key_value_cache": True}), "slides"),
        (lambda m: m.update(vision={"filename": "v.onnx"}), "plain decoders"),
    ],
)
def test_a_genai_model_of_several_parts_is_refused(tmp_path, tiny_model, change, said):
    path = write_genai(Export(tiny_model), tmp_path) / "genai_config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content["model"])
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UnsupportedModelError, match=said):
        open_runtime(tmp_path)


def test_operators_that_only_a_custom_runtime_has_are_refused(tmp_path, tiny_model):
    def customise(model):
        model.graph.node[-1].domain = "my.company"

    with pytest.raises(UnsupportedModelError, match="custom operators of"):
        open_runtime(write_genai(Export(tiny_model), tmp_path, change=customise))


def test_unknown_inputs_are_refused_by_name(tmp_path, tiny_model):
    def add_input(model):
        face = onnx.helper.make_tensor_value_info("use_cache_branch", onnx.TensorProto.BOOL, [1])
        model.graph.input.append(face)

    with pytest.raises(UnsupportedModelError, match=r"unknown inputs.*use_cache_branch"):
        open_runtime(write_genai(Export(tiny_model), tmp_path, change=add_input))


def test_a_miner_serves_one_choice_with_the_tokenizer_beside(tmp_path, tiny_model):
    exports = {"model.onnx": Export(tiny_model), "model_q4.onnx": Export(tiny_model)}
    root = write_transformers_js(exports, tmp_path / "model")
    settings = MinerSettings(
        url="http://127.0.0.1:1",
        api_key="",
        miner_id="m",
        key=KeyPair.from_seed(bytes(32)),
        models={},
        cache=tmp_path / "cache",
        provider="cpu",
    )
    choice = root / "onnx" / "model_q4.onnx"
    request = GenerationRequest(
        job_id="job_1",
        messages=(Message(role="user", content="hello"),),
        params=SamplingParams(max_tokens=2, temperature_micros=0, top_p_micros=1_000_000, seed=1),
    )
    with InferenceThread() as inference:
        engine = load_engine(choice, settings, name="tiny", inference=inference)
        assert engine.model_digest == digest_model(choice)
        completion, _ = answer(engine, request)
    assert 1 <= completion.completion_tokens <= 2


def test_missing_weights_are_named(tmp_path, tiny_model):
    write_genai(Export(tiny_model), tmp_path, data_files=2)
    (tmp_path / "model.onnx_data_1").unlink()
    with pytest.raises(ModelFormatError, match=r"missing: .*model\.onnx_data_1"):
        open_runtime(tmp_path)


@pytest.mark.parametrize("place", ["../secret", "/etc/passwd", "a/../../b"])
def test_weights_outside_the_model_are_refused(tmp_path, tiny_model, place):
    def move(model):
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=place)

    with pytest.raises(ModelFormatError, match="outside its directory"):
        open_runtime(write_genai(Export(tiny_model), tmp_path, data_files=0, change=move))


@pytest.mark.parametrize("missing", ["", "x.onnx"])
def test_what_is_no_model_is_refused(tmp_path, missing):
    with pytest.raises(SettingsError):
        open_runtime(tmp_path / missing)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SettingsError, match=r"no onnx/model|no such file"):
        open_runtime(tmp_path / missing)


# Providers


HALF = {"attention": "shared", "dtype": np.float16}


def test_the_gpu_build_without_a_gpu_runs_on_the_cpu_and_says_so(tmp_path, tiny_model, caplog):
    caplog.set_level("INFO")
    runtime = open_runtime(write_genai(Export(tiny_model, **HALF), tmp_path), provider="auto")
    if runtime.provider == CPU:
        assert any("no NVIDIA GPU" in m or "without CUDA" in m for m in caplog.messages)
        with pytest.raises(NoCudaError, match=r"no NVIDIA GPU|without CUDA"):
            open_runtime(tmp_path, provider="cuda")


@pytest.mark.skipif(CUDA not in ort.get_available_providers(), reason="a build without CUDA")
def test_a_gpu_that_cannot_be_used_is_told_and_not_claimed(
    tmp_path, tiny_model, monkeypatch, caplog
):
    monkeypatch.setattr("miner.runtime.device.cuda_device_is_there", lambda: True)
    directory = write_genai(Export(tiny_model, **HALF), tmp_path)
    runtime = open_runtime(directory)
    told = any('"make setup GPU=1"' in message for message in caplog.messages)
    assert told is (runtime.provider == CPU)
    assert runtime.score(TEXT).shape == (len(TEXT), runtime.vocabulary)
    if told:
        with pytest.raises(NoCudaError, match='"make setup GPU=1" installs the CUDA libraries'):
            open_runtime(directory, provider="cuda")


@pytest.mark.skipif(CUDA not in ort.get_available_providers(), reason="a build without CUDA")
def test_attention_that_cuda_does_not_compute_is_said_before_it_is_tried(
    tmp_path, tiny_model, monkeypatch
):
    monkeypatch.setattr("miner.runtime.device.cuda_device_is_there", lambda: True)
    directory = write_genai(Export(tiny_model, attention="shared"), tmp_path)
    with pytest.raises(NoCudaError, match="half precision"):
        open_runtime(directory, provider="cuda")
    assert open_runtime(directory).provider == CPU


# Files


def test_the_digest_names_what_is_used_and_nothing_else(directory, tmp_path, tiny_model):
    exports = {"model.onnx": Export(tiny_model), "model_q4.onnx": Export(tiny_model)}
    root = write_transformers_js(exports, tmp_path / "model", data_files=2)
    first = root / "onnx" / "model.onnx"
    digest = digest_model(first)
    assert cached_digest(first, tmp_path / "cache") == digest
    for unused in ("README.md", "onnx/model_q4.onnx"):
        (root / unused).write_bytes(b"changed")
    assert digest_model(first) == digest
    for used in ("config.json", "tokenizer.json", "onnx/model.onnx_data_1", "onnx/model.onnx"):
        path = root / used
        content = path.read_bytes()
        path.write_bytes(content[:-1] + b" ")
        if used != "onnx/model.onnx":  # cut, it would be no graph
            assert digest_model(first) != digest, used
        path.write_bytes(content)
    (root / "chat_template.jinja").write_text("{{ messages }}")
    assert digest_model(first) != digest
    assert digest_model(first) == cached_digest(first, tmp_path / "cache")


def test_a_graph_is_read_without_its_weights(tmp_path, tiny_model):
    model = Export(tiny_model).build()
    write_onnx(model, tmp_path / "model.onnx")
    read = read_onnx(tmp_path / "model.onnx")
    assert read.model.graph.node == model.graph.node
    assert read.model.graph.input == model.graph.input
    assert read.model.opset_import == model.opset_import
    assert len(read.inline) > 10
    assert len(read.model.SerializeToString()) < 40_000
    whole = onnx.load_from_string(read.serialize())
    assert list(whole.graph.initializer) == list(model.graph.initializer)


@given(st.data())
def test_hostile_bytes_are_refused_as_no_model(tmp_path_factory, small_graph, data):
    content = bytearray(small_graph)
    at = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        del content[at:]
    else:
        content[at] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "hostile.onnx"
    path.write_bytes(content)
    with contextlib.suppress(ModelFormatError):
        read_onnx(path)


@pytest.fixture(scope="module")
def small_graph() -> bytes:
    make, info = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    weights = onnx.numpy_helper.from_array(np.zeros(2048, np.float32), "w")
    faces = [info(name, onnx.TensorProto.FLOAT, [2048]) for name in "xy"]
    graph = onnx.helper.make_graph(
        [make("Add", ["x", "w"], ["y"])], "small", faces[:1], faces[1:], initializer=[weights]
    )
    content = onnx.helper.make_model(graph).SerializeToString()
    assert FIRST_ROW.encode() not in content
    return content
