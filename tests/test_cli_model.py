import fcntl
import json
import os
import signal
from pathlib import Path

import pytest
from click.testing import CliRunner

from miner import conversion
from miner.models.convert import write_model
from miner.models.digest import digest_model
from miner.models.embedded import DIRECTORY, MODEL_NAME
from miner.models.kinds import TensorKind
from node.cli import cli
from tests.gguf_family import Family
from tests.tiny_model import TEMPLATE, write_gguf

MIX = {"attn_v": TensorKind.Q6_K, "": TensorKind.Q4_K}


@pytest.fixture(scope="module")
def family():
    return Family(MIX)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("AITBC_MODELS", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


@pytest.fixture
def source(tmp_path, family):
    path = tmp_path / "tiny.gguf"
    path.write_bytes(family.gguf)
    return path


def run(*arguments: str | Path, status: int = 0) -> str:
    result = CliRunner().invoke(cli, ["model", *map(str, arguments)])
    assert result.exit_code == status, result.output
    return result.output


def run_json(*arguments: str | Path):
    return json.loads(run(*arguments, "--json"))


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_gguf_file_becomes_a_model_that_all_commands_agree_about(cache, source):
    target = cache / "tiny"
    told = run("convert", source, target)
    digest = digest_model(target)
    assert told.strip() == f"{target}: digest {digest}"
    assert run_json("digest", target) == {"path": str(target), "digest": digest}
    assert run("digest", target).strip() == digest
    info = run_json("info", target)
    assert info["digest"] == digest
    assert (info["layout"], info["architecture"], info["layers"]) == ("genai", "llama", 2)
    assert (info["kv_heads"], info["head_size"], info["context"]) == (2, 64, 64)
    assert info["has_chat_template"]
    assert info["size_bytes"] == sum(path.stat().st_size for path in target.iterdir())
    kinds = {each["kind"]: each["tensors"] for each in info["weights"]}
    assert kinds["4 bits in groups of 32"] == 11
    assert kinds["8 bits in groups of 16"] == 2
    assert digest in run("info", target)
    known = run_json("list")["models"]
    assert [one["name"] for one in known] == [MODEL_NAME, "tiny"]
    assert known[0]["problem"] == "not downloaded yet"
    assert known[1]["digest"] == digest
    assert digest in run("list")


def test_the_same_file_converts_to_the_same_digest(cache, source):
    first, second = (run_json("convert", source, cache / name) for name in "ab")
    assert first["digest"] == second["digest"]


def test_half_precision_is_another_model_of_the_same_layout(cache, source):
    whole = run_json("convert", source, cache / "whole")
    half = run_json("convert", source, cache / "half", "--half")
    assert half["digest"] != whole["digest"]
    assert names(cache / "half") == names(cache / "whole")
    stored = [run_json("info", cache / name)["memory"]["cache_bytes"] for name in ("half", "whole")]
    assert 2 * stored[0] == stored[1]


def test_a_shorter_context_is_a_smaller_model(cache, source):
    run("convert", source, cache / "a", "--context", "32")
    assert run_json("info", cache / "a")["context"] == 32


def test_memory_grows_with_slots_and_context(cache, source):
    run("convert", source, cache / "a")
    one, four = (run_json("info", cache / "a", "--slots", n)["memory"] for n in ("1", "4"))
    short = run_json("info", cache / "a", "--context", "16")["memory"]
    assert four["cache_bytes"] == 4 * one["cache_bytes"] == 16 * short["cache_bytes"]
    assert one["cache_bytes"] == 64 * 2 * 2 * 2 * 64 * 4
    assert one["fixed_bytes"] > run_json("info", cache / "a")["size_bytes"]
    assert four["total_bytes"] == four["fixed_bytes"] + four["cache_bytes"]


# What can go wrong


def test_a_directory_that_is_there_is_never_written_to(cache, source):
    (cache / "taken").mkdir()
    assert "is there already" in run("convert", source, cache / "taken", status=1)
    assert names(cache) == ["taken"]
    assert names(cache / "taken") == []


def without(family: Family, key: str) -> bytes:
    metadata = {name: value for name, value in family.metadata.items() if name != key}
    return write_gguf(metadata, family.tensors)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda family: b"GGML" + family.gguf[4:], "not a GGUF file"),
        (lambda family: family.gguf[:50_000], "is the download complete"),
        (lambda family: without(family, "tokenizer.chat_template"), "--chat-template FILE"),
        (lambda family: without(family, "tokenizer.ggml.pre"), "get a newer file"),
        (
            lambda family: write_gguf(
                family.metadata, family.tensors | {"blk.0.extra": (0, (1,), bytes(4))}
            ),
            "blk.0.extra",
        ),
        (
            lambda family: write_gguf(
                family.metadata | {"tokenizer.chat_template": "{{ raise_exception('no') }}"},
                family.tensors,
            ),
            "the chat template does not work",
        ),
        (
            lambda family: write_gguf(
                family.metadata | {"tokenizer.chat_template": "{% if %}"}, family.tensors
            ),
            "chat template",
        ),
    ],
)
def test_a_file_that_does_not_convert_is_named_and_leaves_nothing(
    cache, tmp_path, family, make, said
):
    path = tmp_path / "bad.gguf"
    path.write_bytes(make(family))
    output = run("convert", path, cache / "bad", status=1)
    assert said in output
    assert len(output.strip().splitlines()) == 1
    assert names(cache) == []


def test_a_chat_template_of_ones_own_takes_the_place_of_a_missing_one(cache, tmp_path, family):
    path, template = tmp_path / "plain.gguf", tmp_path / "template.jinja"
    path.write_bytes(without(family, "tokenizer.chat_template"))
    template.write_text(TEMPLATE + "!")
    run("convert", path, cache / "own", "--chat-template", template)
    config = json.loads((cache / "own" / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert config["chat_template"] == TEMPLATE + "!"
    template.write_bytes(b"\xff")
    assert "UTF-8" in run("convert", path, cache / "b", "--chat-template", template, status=2)


def test_a_full_disk_is_seen_before_anything_is_written(cache, source, monkeypatch):
    monkeypatch.setattr(conversion, "OTHER_BYTES", 1 << 60)
    assert "No space left on device: about" in run("convert", source, cache / "a", status=1)
    assert names(cache) == []


@pytest.fixture
def interruptible():
    """Ctrl-C as a person's shell leaves it: who was started in the background may not hear it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 1)])
def test_a_conversion_that_is_stopped_leaves_nothing(
    cache, source, monkeypatch, interruptible, number, status
):
    def stop_midway(*arguments, **options):
        write_model(*arguments, **options)
        os.kill(os.getpid(), number)

    monkeypatch.setattr(conversion, "write_model", stop_midway)
    run("convert", source, cache / "a", status=status)
    assert names(cache) == []


def test_what_a_killed_conversion_left_is_removed_and_what_a_living_one_makes_is_not(cache, source):
    dead, alive = cache / ".a.converting-dead", cache / ".a.converting-alive"
    for directory in (dead, alive):
        directory.mkdir()
        (directory / "model.onnx.data").write_bytes(b"half")
    handle = os.open(alive, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        run("convert", source, cache / "a")
    finally:
        os.close(handle)
    assert names(cache) == [alive.name, "a"]


def test_directories_that_are_no_models_are_listed_with_what_is_wrong(cache, source):
    run("convert", source, cache / "good")
    (cache / "empty").mkdir()
    (cache / DIRECTORY).mkdir()
    for name in names(cache / "good"):
        (cache / DIRECTORY / name).write_bytes((cache / "good" / name).read_bytes())
    known = {one["name"]: one for one in run_json("list")["models"]}
    assert known["good"]["problem"] == ""
    assert "genai_config.json" in known["empty"]["problem"]
    assert "changed" in known[MODEL_NAME]["problem"]
    assert "no" in run("info", cache / "empty", status=1)
