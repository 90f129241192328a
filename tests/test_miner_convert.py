import contextlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miner.errors import ModelError, ModelFormatError, UnsupportedModelError
from miner.models.convert import write_model
from miner.models.digest import digest_model
from miner.models.gguf import parse_gguf
from miner.models.half import write_half_model
from miner.models.kinds import TensorKind
from miner.models.packing import PACKINGS, dequantise
from miner.runtime import LlamaRuntime
from tests.gguf_family import Family, read_vector
from tests.tiny_model import CONTEXT, HIDDEN, METADATA, build_tiny_model, write_gguf

TEXT = [1, 60, 70, 5, 99, 1, 200, 258, 30]
K = TensorKind
MIXES = {
    "Q4_K_M": {"attn_v": K.Q6_K, "ffn_down": K.Q6_K, "token_embd": K.Q6_K, "": K.Q4_K},
    "Q5_K_M": {"attn_v": K.Q6_K, "ffn_up": K.Q6_K, "": K.Q5_K},
    "Q3_K_S": {"attn_v": K.Q5_K, "token_embd": K.Q2_K, "": K.Q3_K},
    "IQ4": {"attn_v": K.IQ4_NL, "": K.IQ4_XS},
}
SHAPES = {
    "plain heads": {"kv_heads": 4},
    "wide heads": {"head_size": 128},
    "head apart": {"has_output": True},
    "biases": {"has_biases": True},
    "qwen2": {"architecture": "qwen2", "has_biases": True},
    "qwen3": {"architecture": "qwen3", "has_head_norms": True, "head_size": 128},
    "divided": {"divisors": np.geomspace(1, 8, 32)},
    "stretched": {"metadata": {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}},
}


def convert(gguf: bytes, directory: Path, **options) -> Path:
    directory.mkdir()
    write_model(parse_gguf(gguf), directory, **options)
    return directory


def difference(directory: Path, reference) -> float:
    """The largest error of a logit, as a part of the largest logit."""
    expected = reference.logits(TEXT)
    return float(np.abs(score(directory) - expected).max() / np.abs(expected).max())


def score(directory: Path) -> np.ndarray:
    return LlamaRuntime(directory, threads=1, context=CONTEXT).score(TEXT)


@pytest.mark.parametrize("kind", PACKINGS, ids=lambda kind: kind.name)
def test_every_kind_means_what_another_implementation_reads(kind):
    blocks, weights = read_vector(kind)
    packing, expected = PACKINGS[kind], weights.reshape(1, -1)
    rounding = 0 if packing.rests is None else 1e-7
    assert np.abs(dequantise(packing, blocks[None]) - expected).max() <= rounding
    assert PACKINGS[kind].codes(blocks[None]).max() < 1 << PACKINGS[kind].bits


@pytest.mark.parametrize(
    "kinds",
    [*({"": kind} for kind in K), *MIXES.values()],
    ids=[*(kind.name for kind in K), *MIXES],
)
@pytest.mark.parametrize("head", ["int8", "fp32"])
def test_a_model_of_every_kind_computes_what_its_gguf_means(tmp_path, kinds, head):
    family = Family(kinds)
    # Random matrices of few different blocks amplify rounding; one wrong scale gives 2e-2.
    assert difference(convert(family.gguf, tmp_path / "m", head=head), family.reference) < 2e-3


@pytest.mark.parametrize("kinds", MIXES.values(), ids=MIXES)
def test_mixes_of_every_kind_compute_the_same_in_half_precision(tmp_path, kinds):
    family = Family(kinds, has_output=True)
    (tmp_path / "half").mkdir()
    write_half_model(convert(family.gguf, tmp_path / "whole"), tmp_path / "half")
    assert difference(tmp_path / "half", family.reference) < 3e-2


@pytest.mark.parametrize("kind", [K.Q4_1, K.Q6_K, K.F16], ids=lambda kind: kind.name)
@pytest.mark.parametrize("options", SHAPES.values(), ids=SHAPES)
def test_a_model_of_every_shape_computes_what_its_gguf_means(tmp_path, kind, options):
    family = Family({"": kind}, **options)
    assert difference(convert(family.gguf, tmp_path / "model"), family.reference) < 1e-4


@pytest.mark.parametrize("kind", K, ids=lambda kind: kind.name)
def test_one_changed_byte_of_a_matrix_changes_the_logits(tmp_path, kind):
    family = Family({"": kind})
    before = score(convert(family.gguf, tmp_path / "before"))
    number, shape, data = family.tensors["blk.1.ffn_down.weight"]
    at = kind.record.itemsize - 3  # inside the codes or scales of a block
    changed = data[:at] + bytes([data[at] ^ 0x2D]) + data[at + 1 :]
    family.tensors["blk.1.ffn_down.weight"] = number, shape, changed
    assert not np.array_equal(score(convert(family.gguf, tmp_path / "after")), before)


# Conversion


@pytest.mark.parametrize(("head", "tolerance"), [("fp32", 2e-5), ("int8", 1e-4)])
def test_the_converted_model_computes_what_the_gguf_means(tiny_model, tmp_path, head, tolerance):
    directory = convert(tiny_model.gguf, tmp_path / "model", head=head)
    runtime = LlamaRuntime(directory, threads=1, context=CONTEXT)
    expected = tiny_model.logits(TEXT)
    difference = np.abs(runtime.score(TEXT) - expected).max() / np.abs(expected).max()
    assert difference < tolerance


def test_one_changed_weight_changes_the_logits(tiny_model, tmp_path):
    kind, shape, data = tiny_model.tensors["blk.1.ffn_down.weight"]
    changed = tiny_model.tensors | {
        "blk.1.ffn_down.weight": (kind, shape, data[:4] + bytes([data[4] ^ 15]) + data[5:])
    }
    gguf = write_gguf(tiny_model.metadata, changed)
    runtime = LlamaRuntime(convert(gguf, tmp_path / "model"), threads=1, context=CONTEXT)
    expected = tiny_model.logits(TEXT)
    assert np.abs(runtime.score(TEXT) - expected).max() / np.abs(expected).max() > 1e-4


def test_the_same_gguf_gives_the_same_bytes(tiny_model, tmp_path):
    first, second = (convert(tiny_model.gguf, tmp_path / name) for name in "ab")
    assert digest_model(first) == digest_model(second)
    assert sorted(path.name for path in first.iterdir()) == [
        "genai_config.json",
        "model.onnx",
        "model.onnx.data",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


@pytest.mark.parametrize("kind", [K.F32, K.BF16, K.Q8_0, K.Q4_K], ids=lambda kind: kind.name)
@pytest.mark.parametrize("name", ["token_embd.weight", "blk.1.ffn_down.weight"])
def test_weights_that_are_no_numbers_are_refused(tmp_path, kind, name):
    family = Family({"": kind})
    number, shape, data = family.tensors[name]
    family.tensors[name] = number, shape, b"\xff\x7f\xff\x7f" + data[4:]
    with pytest.raises(ModelFormatError, match="no finite numbers"):
        convert(family.gguf, tmp_path / "model")


DAMAGED = write_gguf(METADATA, build_tiny_model().tensors)


@given(
    at=st.integers(0, DAMAGED.index(b"blk.1.ffn_down") + 60),
    bytes_=st.binary(min_size=1, max_size=8),
)
def test_a_damaged_model_converts_or_is_refused_with_our_error(tmp_path_factory, at, bytes_):
    damaged = DAMAGED[:at] + bytes_ + DAMAGED[at + len(bytes_) :]
    with contextlib.suppress(ModelError):
        convert(damaged, tmp_path_factory.mktemp("damaged") / "model")


@pytest.mark.parametrize(
    ("key", "value", "error"),
    [
        ("general.architecture", "gptneox", UnsupportedModelError),
        ("llama.attention.head_count", 3, UnsupportedModelError),
        ("llama.attention.head_count_kv", 0, UnsupportedModelError),
        ("llama.context_length", 1 << 30, UnsupportedModelError),
        ("llama.rope.scaling.type", "yarn", UnsupportedModelError),
        ("llama.rope.scaling.factor", 0.0, UnsupportedModelError),
        ("llama.rope.freq_base", float("nan"), UnsupportedModelError),
        ("llama.expert_count", 8, UnsupportedModelError),
        ("llama.attention.sliding_window", 32, UnsupportedModelError),
        ("llama.rope.dimension_count", 16, UnsupportedModelError),
        ("llama.attention.value_length", 16, UnsupportedModelError),
        ("llama.attention.key_length", 40, UnsupportedModelError),
        ("llama.attention.key_length", 1 << 30, UnsupportedModelError),
        ("llama.block_count", 1 << 30, UnsupportedModelError),
        ("llama.block_count", 1, UnsupportedModelError),
        ("llama.block_count", 3, ModelFormatError),
        ("llama.embedding_length", HIDDEN * 2, ModelFormatError),
        ("llama.rope.freq_base", 7, ModelFormatError),
        ("tokenizer.ggml.pre", "other", UnsupportedModelError),
        ("tokenizer.ggml.eos_token_id", 1 << 20, ModelFormatError),
        ("tokenizer.ggml.merges", ["a b c"], ModelFormatError),
        ("tokenizer.ggml.tokens", ["a", "a"], ModelError),
    ],
)
def test_a_gguf_that_is_no_such_model_is_refused(tmp_path, key, value, error):
    tiny = build_tiny_model()
    with pytest.raises(error):
        convert(write_gguf(METADATA | {key: value}, tiny.tensors), tmp_path / "model")
