import json
import struct
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miner.errors import ModelError, ModelFormatError, UnsupportedModelError
from miner.models.convert import write_model
from miner.models.digest import cached_digest, digest_model, hash_manifest, name_files
from miner.models.gguf import MAX_ARRAY_ITEMS, TensorKind, parse_gguf
from miner.models.rotary import rotary_tables
from miner.runtime import LlamaRuntime
from tests import golden
from tests.tiny_model import CONTEXT, HIDDEN, METADATA, build_tiny_model, write_gguf

TEXT = [1, 60, 70, 5, 99, 1, 200, 258, 30]
SMALL = write_gguf(
    {"a": 1, "b": ["x", "y"], "c": 2.5, "d": True},
    {"t": (8, (2, 32), bytes(68)), "u": (0, (3,), bytes(12))},
)


def convert(gguf: bytes, directory: Path, **options) -> Path:
    directory.mkdir()
    write_model(parse_gguf(gguf), directory, **options)
    return directory


# GGUF


def test_a_gguf_file_reads_as_it_was_written():
    parsed = parse_gguf(SMALL)
    assert parsed.metadata == {"a": 1, "b": ["x", "y"], "c": 2.5, "d": True}
    assert parsed.tensors["t"].shape == (2, 32)
    assert parsed.tensor("u", TensorKind.F32, (3,)).tolist() == [0, 0, 0]


def test_every_truncation_of_a_gguf_file_is_refused():
    for size in range(len(SMALL) - 20):  # the last 20 bytes pad the last tensor
        with pytest.raises(ModelFormatError):
            parse_gguf(SMALL[:size])


@given(at=st.integers(0, len(SMALL) - 1), byte=st.integers(0, 255))
def test_a_damaged_gguf_file_is_read_or_refused_with_our_error(at, byte):
    damaged = SMALL[:at] + bytes([byte]) + SMALL[at + 1 :]
    with suppress(ModelFormatError):
        parse_gguf(damaged)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"GGML" + SMALL[4:], "not a GGUF"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60), "metadata entries"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 62), "bytes in a string"),
        (
            b"GGUF" + struct.pack("<IQQQcIIQ", 3, 0, 1, 1, b"k", 9, 4, MAX_ARRAY_ITEMS + 1),
            "items in an array",
        ),
        (b"GGUF" + struct.pack("<IQQQcIIQ", 3, 0, 1, 1, b"k", 9, 9, 1), "arrays of arrays"),
        (b"GGUF" + struct.pack("<IQQQcI", 3, 0, 1, 1, b"k", 77), "type 77"),
        (b"GGUF" + struct.pack("<IQQQc", 3, 0, 1, 1, b"\xff"), "UTF-8"),
        (write_gguf({"general.alignment": 0}, {}), "alignment"),
        (write_gguf({}, {"t": (8, (33,), bytes(68))}), "does not fit"),
        (write_gguf({}, {"t": (0, (1 << 39, 1 << 39), bytes(4))}), "does not fit"),
        (write_gguf({}, {"t": (0, (64,), bytes(32))}), "past the end"),
        (write_gguf({}, {"t": (0, (0,), b"")}), "does not fit"),
        (write_gguf({}, {"t": (99, (1,), bytes(4))}), "type 99"),
    ],
)
def test_a_hostile_gguf_file_is_refused_without_believing_its_numbers(data, said):
    with pytest.raises(ModelFormatError, match=said):
        parse_gguf(data)


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


def test_rotary_tables_are_the_cosine_and_sine_of_every_angle():
    cosines, sines = rotary_tables(head_size=64, context=8192, base=100_000.0)
    frequencies = (1 / 100_000.0 ** (np.arange(0, 64, 2) / 64)).astype(np.float32)
    angles = np.arange(8192, dtype=np.float32)[:, None] * frequencies
    assert np.abs(cosines - np.cos(angles.astype(np.float64))).max() < 1e-7
    assert np.abs(sines - np.sin(angles.astype(np.float64))).max() < 1e-7


@pytest.mark.parametrize(
    ("key", "value", "error"),
    [
        ("general.architecture", "gptneox", UnsupportedModelError),
        ("llama.attention.head_count", 3, UnsupportedModelError),
        ("llama.attention.head_count_kv", 0, UnsupportedModelError),
        ("llama.context_length", 1 << 30, UnsupportedModelError),
        ("llama.rope.scaling.type", "linear", UnsupportedModelError),
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


# Digest


def test_the_digest_is_the_golden_one(tmp_path):
    for name, content in golden.MODEL_FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    files = name_files(tmp_path, tmp_path.rglob("*"))
    assert hash_manifest(files) == golden.hash_model(golden.MODEL_FILES)


def test_every_change_of_a_model_directory_changes_its_digest(tmp_path):
    def write(name: str, content: bytes) -> str:
        (tmp_path / name).write_bytes(content)
        return digest_model(tmp_path)

    digests = {write("a", b"1"), write("a", b"2"), write("b", b""), write("c", b"")}
    (tmp_path / "c").rename(tmp_path / "d")
    digests.add(digest_model(tmp_path))
    assert len(digests) == 5


def test_a_remembered_digest_is_used_until_a_file_changes(tmp_path):
    model, cache = tmp_path / "model", tmp_path / "cache.json"
    model.mkdir()
    (model / "a").write_bytes(b"1")
    true = cached_digest(model, cache)
    known = json.loads(cache.read_text()) | {"digest": "remembered"}
    cache.write_text(json.dumps(known))
    assert cached_digest(model, cache) == "remembered"
    (model / "a").write_bytes(b"2")
    assert cached_digest(model, cache) == digest_model(model) != true


@pytest.mark.parametrize("content", ["", "[]", "{", '{"stamp": 1}', "\x00"])
def test_a_damaged_digest_cache_only_costs_time(tmp_path, content):
    model, cache = tmp_path / "model", tmp_path / "cache.json"
    model.mkdir()
    (model / "a").write_bytes(b"1")
    cache.write_text(content)
    assert cached_digest(model, cache) == digest_model(model)


def test_a_model_directory_with_a_link_or_without_files_is_refused(tmp_path):
    with pytest.raises(ModelFormatError, match="no model files"):
        digest_model(tmp_path)
    (tmp_path / "a").symlink_to("/etc/passwd")
    with pytest.raises(ModelFormatError, match="plain files"):
        digest_model(tmp_path)
