import json
import struct
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miner.errors import ModelFormatError, UnsupportedModelError
from miner.models.digest import cached_digest, digest_model, hash_manifest, name_files
from miner.models.gguf import MAX_ARRAY_ITEMS, open_gguf, parse_gguf
from miner.models.kinds import TensorKind
from miner.models.rotary import rotary_tables
from tests import golden
from tests.tiny_model import write_gguf

SMALL = write_gguf(
    {"a": 1, "b": ["x", "y"], "c": 2.5, "d": True},
    {"t": (8, (2, 32), bytes(68)), "u": (0, (3,), bytes(12))},
)


# GGUF


def test_a_gguf_file_reads_as_it_was_written():
    parsed = parse_gguf(SMALL)
    assert parsed.metadata == {"a": 1, "b": ["x", "y"], "c": 2.5, "d": True}
    assert parsed.tensors["t"].shape == (2, 32)
    assert parsed.tensor("u", (3,)).blocks.tolist() == [0, 0, 0]
    assert parsed.tensors["t"].kind is TensorKind.Q8_0


def test_every_truncation_of_a_gguf_file_is_refused():
    for size in range(len(SMALL) - 20):  # the last 20 bytes pad the last tensor
        with pytest.raises(ModelFormatError):
            parse_gguf(SMALL[:size])


@given(at=st.integers(0, len(SMALL) - 1), byte=st.integers(0, 255))
def test_a_damaged_gguf_file_is_read_or_refused_with_our_error(at, byte):
    damaged = SMALL[:at] + bytes([byte]) + SMALL[at + 1 :]
    with suppress(ModelFormatError, UnsupportedModelError):
        parse_gguf(damaged)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"GGML" + SMALL[4:], "not a GGUF"),
        (b"", "ends early"),
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


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (b"GGUF" + struct.pack("<III", 1, 0, 0), "version 1 .* only 2 and 3"),
        (write_gguf({"split.count": 3}, {}), "one of 3 parts .* --merge"),
        (write_gguf({"split.count": [1]}, {}), "parts"),
        (write_gguf({}, {"t": (16, (256,), bytes(66))}), "IQ2_XXS.* Q4_K"),
    ],
)
def test_a_sound_gguf_file_that_is_not_read_says_what_to_get_instead(data, said):
    with pytest.raises(UnsupportedModelError, match=said):
        parse_gguf(data)


def test_a_gguf_file_is_mapped_and_errors_name_it(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(SMALL)
    assert open_gguf(path).tensors["t"].shape == (2, 32)
    for content in (b"", SMALL[:100]):
        path.write_bytes(content)
        with pytest.raises(ModelFormatError, match=r"model\.gguf: "):
            open_gguf(path)


def test_rotary_tables_are_the_cosine_and_sine_of_every_angle():
    cosines, sines = rotary_tables(head_size=64, context=8192, base=100_000.0)
    frequencies = (1 / 100_000.0 ** (np.arange(0, 64, 2) / 64)).astype(np.float32)
    angles = np.arange(8192, dtype=np.float32)[:, None] * frequencies
    assert np.abs(cosines - np.cos(angles.astype(np.float64))).max() < 1e-7
    assert np.abs(sines - np.sin(angles.astype(np.float64))).max() < 1e-7


def test_tensors_beyond_two_gigabytes_are_read_where_they_stand(tmp_path):
    path, weights = tmp_path / "large.gguf", 600_000_000
    start = len(write_gguf({}, {"t": (0, (weights,), b"")}))
    with path.open("wb") as file:
        file.write(write_gguf({}, {"t": (0, (weights,), b"")}))
        file.seek(start + 4 * weights - 4)  # the rest is a hole, which takes no room
        file.write(struct.pack("<f", 2.5))
    assert open_gguf(path).tensors["t"].blocks[-1] == 2.5


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
