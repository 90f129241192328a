"""The variant of a converted model for GPUs, computed on the CPU."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from miner.conversion import convert_file
from miner.errors import ModelFormatError, UnsupportedModelError
from miner.models.convert import write_model
from miner.models.digest import digest_model
from miner.models.embedded import (
    DIGEST,
    HALF_DIGEST,
    MODEL_NAME,
    prepare_embedded_model,
)
from miner.models.gguf import parse_gguf
from miner.models.half import write_half_model
from miner.models.kinds import TensorKind
from miner.runtime import LlamaRuntime
from tests.gguf_family import Family
from tests.tiny_model import CONTEXT

TEXT = [1, 60, 70, 5, 99, 1, 200, 258, 30]


@pytest.fixture
def halved(tiny_directory, tmp_path) -> Path:
    target = tmp_path / "half"
    target.mkdir()
    write_half_model(tiny_directory, target)
    return target


def change_model(source: Path, target: Path, change) -> Path:
    shutil.copytree(source, target)
    model = onnx.load(target / "model.onnx", load_external_data=False)
    change(model)
    (target / "model.onnx").write_bytes(model.SerializeToString())
    return target


def test_the_half_model_computes_what_the_whole_one_does_but_for_rounding(halved, tiny_model):
    runtime = LlamaRuntime(halved, threads=1, context=CONTEXT, slots=2)
    expected = tiny_model.logits(TEXT)
    error = np.abs(runtime.score(TEXT) - expected).max() / np.abs(expected).max()
    assert 1e-5 < error < 1e-2
    assert runtime.is_half
    assert runtime.max_rows == 2


def test_nothing_in_the_half_model_is_in_full_precision_or_two_parts(halved):
    graph = onnx.load(halved / "model.onnx").graph
    faces = [*graph.input, *graph.output]
    assert TensorProto.FLOAT not in {face.type.tensor_type.elem_type for face in faces}
    assert TensorProto.FLOAT not in {tensor.data_type for tensor in graph.initializer}
    casts = [a.i for node in graph.node if node.op_type == "Cast" for a in node.attribute]
    assert TensorProto.FLOAT not in casts
    assert {"Round", "ReduceMax"}.isdisjoint(node.op_type for node in graph.node)
    levels = {
        attribute.i
        for node in graph.node
        for attribute in node.attribute
        if attribute.name == "accuracy_level"
    }
    assert levels == {0}


def test_the_same_model_gives_the_same_half_bytes(tiny_directory, halved, tmp_path):
    again = tmp_path / "again"
    again.mkdir()
    write_half_model(tiny_directory, again)
    assert digest_model(again) == digest_model(halved) != digest_model(tiny_directory)
    for name in ("genai_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (again / name).read_bytes() == (tiny_directory / name).read_bytes()


@pytest.mark.parametrize("unpack", [False, True])
@pytest.mark.parametrize("head", ["int8", "fp32"])
@pytest.mark.parametrize(
    "kind", [TensorKind.Q8_0, TensorKind.Q6_K, TensorKind.Q4_1, TensorKind.BF16]
)
def test_models_of_every_way_of_holding_weights_have_a_half_variant(tmp_path, kind, head, unpack):
    family = Family({"": kind}, architecture="qwen2", has_biases=True)
    whole, half = tmp_path / "whole", tmp_path / "half"
    for directory in (whole, half):
        directory.mkdir()
    write_model(parse_gguf(family.gguf), whole, head=head)
    write_half_model(whole, half, unpack=unpack)
    kinds = {node.op_type for node in onnx.load(half / "model.onnx").graph.node}
    assert ("MatMulNBits" in kinds) is (kind is not TensorKind.BF16 and not unpack)
    expected = family.reference.logits(TEXT)
    logits = LlamaRuntime(half, threads=1, context=CONTEXT).score(TEXT)
    assert np.abs(logits - expected).max() < 2e-2 * np.abs(expected).max()


def test_a_gguf_file_converts_to_half_precision_whole_or_not_at_all(tmp_path, tiny_model):
    (tmp_path / "tiny.gguf").write_bytes(tiny_model.gguf)
    said: list[str] = []
    options = {"head": "int8", "context": None, "chat_template": None, "progress": said.append}
    digests = [
        convert_file(tmp_path / "tiny.gguf", tmp_path / name, half=half, **options)
        for name, half in (("half", True), ("whole", False))
    ]
    assert digest_model(tmp_path / "half") == digests[0] != digests[1]
    assert LlamaRuntime(tmp_path / "half", threads=1, context=CONTEXT).is_half
    assert sorted(path.name for path in tmp_path.iterdir()) == ["half", "tiny.gguf", "whole"]
    assert "halving the precision" in said


def test_weights_that_half_precision_cannot_hold_are_refused(tiny_directory, tmp_path):
    def enlarge(model):
        tensor = next(t for t in model.graph.initializer if t.name == "output_norm.weight")
        values = onnx.numpy_helper.to_array(tensor).copy()
        values[3] = 70_000
        tensor.raw_data = values.tobytes()

    source = change_model(tiny_directory, tmp_path / "source", enlarge)
    (tmp_path / "target").mkdir()
    with pytest.raises(UnsupportedModelError, match=r"output_norm\.weight: .*too large"):
        write_half_model(source, tmp_path / "target")


def test_a_product_of_another_making_is_refused(tiny_directory, tmp_path):
    def rewire(model):
        split = next(n for n in model.graph.node if n.output[0] == "head/of_coarse")
        split.CopyFrom(helper.make_node("Identity", ["head/products"], ["head/of_coarse"]))

    source = change_model(tiny_directory, tmp_path / "source", rewire)
    (tmp_path / "target").mkdir()
    with pytest.raises(ModelFormatError, match="Split expected"):
        write_half_model(source, tmp_path / "target")


# The embedded model


@pytest.fixture(scope="module")
def embedded_half(embedded_model, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    shutil.copytree(embedded_model.path, cache / embedded_model.path.name)
    said: list[str] = []
    half = prepare_embedded_model(cache, said.append, requirement=Path("missing.txt"), half=True)
    assert [line.split()[0] for line in said] == ["Converting", "Model"]
    return half


def test_the_embedded_half_model_has_its_own_digest_under_the_same_name(embedded_half):
    assert embedded_half.name == MODEL_NAME
    assert digest_model(embedded_half.path) == embedded_half.digest == HALF_DIGEST != DIGEST
    again = prepare_embedded_model(
        embedded_half.path.parent, pytest.fail, requirement=Path("missing.txt"), half=True
    )
    assert again == embedded_half


def test_the_embedded_half_model_agrees_with_the_reference(embedded_half):
    """On the CPU, which rounds to half precision after each operator and computes between."""
    reference = Path("tests/vectors/smollm2_135m_reference.json").read_text(encoding="ascii")
    case = json.loads(reference)["prompts"][0]
    runtime = LlamaRuntime(embedded_half.path, threads=2, context=256)
    logits = runtime.score(case["ids"] + case["greedy"])
    assert logits[len(case["ids"]) - 1 : -1].argmax(-1).tolist() == case["greedy"]
    for position in case["positions"]:
        row = logits[position["at"]]
        expected = position["logits"]
        assert row[[int(token) for token in expected]] == pytest.approx(
            list(expected.values()), abs=0.25
        )
