import json
import shutil
import threading

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from miner.engine import GenerationRequest
from miner.errors import (
    JobError,
    ModelError,
    ModelFormatError,
    PromptTooLongError,
    RoomError,
    UnsupportedModelError,
)
from miner.runtime import CPU, LlamaRuntime
from miner.runtime.cache import DeviceCopier
from miner.runtime.device import Device
from miner.sampling import SamplingParams
from miner.tokenizer import ChatTokenizer, Message, TextStream
from tests.miner_fixtures import answer, open_engine
from tests.tiny_model import CONTEXT, TOKENS

TEXT = [1, 60, 70, 5, 99, 1, 200, 258, 30]
TEXTS = ["the cat", " the the", "naïve café 你好 🦊👩‍👩‍👧", "\u0000\ufffd x", "123 45", "a\r\n\tb"]


def request(prompt: str = "hello", *, job_id: str = "job_1", **changes) -> GenerationRequest:
    stop = changes.pop("stop", ())
    params = {"max_tokens": 12, "temperature_micros": 10**6, "top_p_micros": 10**6, "seed": 1}
    return GenerationRequest(
        job_id=job_id,
        messages=(Message(role="user", content=prompt),),
        params=SamplingParams(**params | changes),
        stop=stop,
    )


def run(engine, asked):
    completion, pieces = answer(engine, asked)
    assert "".join(pieces) == completion.text
    assert all(pieces)
    return completion


@pytest.fixture(scope="module")
def tokenizer(tiny_directory):
    return ChatTokenizer(tiny_directory)


@pytest.fixture(scope="module")
def engine(tiny_directory):
    with open_engine(tiny_directory, context=CONTEXT) as engine:
        yield engine


# Runtime


def test_slots_of_different_length_step_together_as_each_would_alone(tiny_directory):
    runtime = LlamaRuntime(tiny_directory, threads=1, context=CONTEXT, slots=3)
    alone = runtime.score(TEXT)
    runtime.prefill(TEXT[:8], slot=1, start=0)
    runtime.prefill(TEXT[:2], slot=2, start=0)
    runtime.prefill(TEXT[2:4], slot=2, start=2)
    rows = runtime.step([TEXT[8], TEXT[4]], [9, 5], first_slot=1)
    assert np.abs(rows - alone[[8, 4]]).max() < 1e-3 * np.abs(alone).max()


def test_a_text_scored_in_chunks_scores_as_in_one_run(tiny_directory):
    runtime = LlamaRuntime(tiny_directory, threads=1, context=CONTEXT, slots=2)
    whole = runtime.score(TEXT)
    runtime.prefill(TEXT[:2], slot=1, start=0)
    chunks = [runtime.score(TEXT[a:b], slot=1, start=a) for a, b in ((2, 3), (3, 8), (8, 9))]
    assert np.abs(np.concatenate(chunks) - whole[2:]).max() < 1e-3 * np.abs(whole).max()


def test_a_copied_slot_goes_on_as_its_source_would(tiny_directory):
    runtime = LlamaRuntime(tiny_directory, threads=1, context=CONTEXT, slots=3)
    expected = runtime.score(TEXT)[-1]
    runtime.score(TEXT[::-1], slot=2)
    runtime.copy_slot(0, 2, 8)
    runtime.prefill(TEXT[:4], slot=0, start=0)
    copied = runtime.step([TEXT[8]], [9], first_slot=2)[0]
    assert np.abs(copied - expected).max() < 1e-3 * np.abs(expected).max()


def test_copying_part_of_a_slot_leaves_the_source_whole(tiny_directory):
    runtime = LlamaRuntime(tiny_directory, threads=1, context=CONTEXT, slots=2)
    whole = runtime.score(TEXT)
    runtime.copy_slot(0, 1, 4)
    runtime.prefill(TEXT[::-1][:4], slot=1, start=4)
    again = runtime.step([TEXT[8]], [9])[0]
    assert np.abs(again - whole[8]).max() < 1e-3 * np.abs(whole).max()


@pytest.mark.parametrize("place", [(0, 2, 1), (-1, 0, 1), (0, 1, CONTEXT + 1), (0, 1, -1)])
def test_copies_outside_the_cache_are_our_own_bug(tiny_directory, place):
    runtime = LlamaRuntime(tiny_directory, threads=1, context=CONTEXT, slots=2)
    with pytest.raises(AssertionError):
        runtime.copy_slot(*place)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_device_copies_its_memory_within_itself(dtype):
    memory = np.arange(48, dtype=dtype).reshape(4, 12)
    copier = DeviceCopier(Device(provider=CPU), dtype=dtype, values=12)
    copier.copy(memory[3].ctypes.data, memory[1].ctypes.data)
    assert memory[1].tolist() == list(range(36, 48))
    assert memory[2].tolist() == list(range(24, 36))


def test_a_slot_can_be_used_again(tiny_directory):
    runtime = LlamaRuntime(tiny_directory, threads=1, context=CONTEXT)
    first = runtime.score(TEXT)
    runtime.score(TEXT[::-1])
    assert np.array_equal(runtime.score(TEXT), first)


def test_the_provider_is_what_the_session_really_uses(tiny_directory):
    runtime = LlamaRuntime(tiny_directory, threads=1, context=CONTEXT, provider="cpu")
    assert runtime.provider == CPU


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda c: c.pop("model"), ModelFormatError),
        (lambda c: c["model"]["decoder"].update(num_hidden_layers=10**9), ModelFormatError),
        (lambda c: c["model"]["decoder"].update(num_hidden_layers=1), UnsupportedModelError),
        (lambda c: c["model"]["decoder"]["inputs"].update(input_ids="x"), UnsupportedModelError),
        (lambda c: c["model"]["decoder"].update(filename="missing.onnx"), ModelError),
        (lambda c: c["model"].update(eos_token_id="two"), ModelFormatError),
    ],
)
def test_a_model_directory_that_contradicts_itself_is_refused(
    tiny_directory, tmp_path, change, error
):
    shutil.copytree(tiny_directory, tmp_path / "model")
    path = tmp_path / "model" / "genai_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    change(config)
    path.write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(error):
        LlamaRuntime(tmp_path / "model", threads=1, context=CONTEXT)


# Engine


def test_the_same_request_gives_the_same_answer(engine):
    first, second = run(engine, request()), run(engine, request())
    assert first == second
    assert first.completion_tokens == len(first.token_ids) > 0


@pytest.mark.parametrize("change", [{"seed": 2}, {"job_id": "job_2"}, {"prompt": "hellp"}])
def test_seed_job_and_prompt_change_the_answer(engine, change):
    assert run(engine, request()).token_ids != run(engine, request(**change)).token_ids


def test_greedy_answers_ignore_the_seed_and_take_the_best_token(engine, tiny_model, tokenizer):
    answer = run(engine, request(temperature_micros=0, max_tokens=3))
    assert answer == run(engine, request(temperature_micros=0, max_tokens=3, seed=9))
    ids = tokenizer.encode(tokenizer.render([Message(role="user", content="hello")]))
    for token in answer.token_ids:
        assert token == tiny_model.logits(ids)[-1].argmax()
        ids.append(token)


def test_an_answer_ends_at_max_tokens(engine):
    answer = run(engine, request(max_tokens=1))
    assert (answer.completion_tokens, answer.finish_reason) == (1, "length")


def test_an_answer_ends_with_the_context(engine):
    answer = run(engine, request(prompt="x" * 50, max_tokens=10_000, temperature_micros=0))
    if answer.finish_reason == "length":
        assert answer.prompt_tokens + answer.completion_tokens == CONTEXT
    else:
        assert answer.prompt_tokens + answer.completion_tokens <= CONTEXT


@pytest.mark.parametrize("size", [CONTEXT, 5_000])
def test_a_prompt_that_leaves_no_room_fails_the_job_and_is_never_cut(engine, size):
    with pytest.raises(PromptTooLongError, match=f"context of {CONTEXT}"):
        run(engine, request(prompt="x" * size))


def test_an_answer_that_may_outgrow_the_miners_room_is_left_to_others(tiny_directory):
    with open_engine(tiny_directory, context=32) as engine:
        with pytest.raises(RoomError, match="64 tokens of prompt and answer, room for 32"):
            run(engine, request(max_tokens=10_000))
        with pytest.raises(RoomError):
            run(engine, request(prompt="x" * 30, max_tokens=1))
        assert run(engine, request(max_tokens=3)).completion_tokens <= 3


def test_an_answer_ends_before_a_stop_sequence(engine):
    whole = run(engine, request(max_tokens=30))
    stop = whole.text[5:8]
    cut = run(engine, request(max_tokens=30, stop=(stop,)))
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.finish_reason == "stop"
    assert cut.token_ids == whole.token_ids[: cut.completion_tokens]


def test_a_cancelled_answer_ends_between_two_tokens(engine):
    pieces: list[str] = []

    def hear(piece: str) -> None:
        pieces.append(piece)
        generation.cancel()

    hold = threading.Event()
    engine.run(holding(hold))
    generation = engine.submit(request(), on_text=hear)
    hold.set()
    ended = generation.future.result(timeout=60)
    assert ended.finish_reason == "cancelled"
    assert 0 < ended.completion_tokens < 12
    assert "".join(pieces) == ended.text


def test_an_answer_can_be_cancelled_before_it_begins(engine):
    hold = threading.Event()
    engine.run(holding(hold))
    generation = engine.submit(request(), on_text=pytest.fail)
    generation.cancel()
    hold.set()
    ended = generation.future.result(timeout=60)
    assert (ended.token_ids, ended.finish_reason) == ((), "cancelled")


def holding(hold: threading.Event):
    """Work that keeps the inference thread until told."""

    def work(runtime, slot):
        assert hold.wait(60)
        yield

    return work


# Tokenizer


@given(text=st.one_of(st.sampled_from(TEXTS), st.text(max_size=40)))
def test_text_survives_encoding_and_decoding(tokenizer, text):
    ids = tokenizer.encode(text)
    shown = text
    for special in TOKENS[:3]:
        shown = shown.replace(special, "")
    assert tokenizer.decode(ids) == shown.replace("\0", "\ufffd")


@given(text=st.one_of(st.sampled_from(TEXTS), st.text(max_size=40)))
def test_streamed_pieces_join_to_the_text_and_cut_no_character(tokenizer, text):
    stream = TextStream(tokenizer, ())
    ids = tokenizer.encode(text)
    pieces = [stream.push(token) for token in ids] + [stream.finish()]
    assert "".join(pieces) == stream.text == tokenizer.decode(ids)
    assert "\0" not in stream.text
    assert "\ufffd" not in stream.text or {"\0", "\ufffd"} & set(text)


@example(text="a a", stop=[" ", "a a"])
@given(
    text=st.text("abc ", max_size=30),
    stop=st.lists(st.text("abc ", min_size=1, max_size=4), max_size=3),
)
def test_streamed_text_ends_before_the_stop_sequence_that_is_complete_first(tokenizer, text, stop):
    stream = TextStream(tokenizer, stop)
    pieces = []
    for token in tokenizer.encode(text):
        pieces.append(stream.push(token))
        if stream.stopped:
            break
    pieces.append(stream.finish())
    found = [(text.find(s) + len(s), text.find(s)) for s in stop if s in text]
    assert "".join(pieces) == (text[: min(found)[1]] if found else text)
    assert stream.stopped == bool(found)


def test_an_answer_cut_within_a_character_is_still_text(tokenizer):
    stream = TextStream(tokenizer, ())
    fox = tokenizer.encode("🦊")
    assert [stream.push(token) for token in fox[:-1]] == [""] * (len(fox) - 1)
    stream.finish()
    assert stream.text.encode().decode() == stream.text != "🦊"


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{% for i in range(10**9) %}{% endfor %}",
        "{{ raise_exception(messages[0].content) }}",
        "{{ 1 / 0 }}",
        "{{ messages[0].missing.deeper }}",
    ],
)
def test_a_hostile_template_can_only_refuse(tiny_directory, tmp_path, template):
    shutil.copytree(tiny_directory, tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text(template, encoding="utf-8")
    with pytest.raises(JobError) as caught:
        ChatTokenizer(tmp_path / "model").render([Message(role="user", content="my secret")])
    assert "secret" not in str(caught.value), "it is logged"


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("chat_template.jinja", "{% if %}", ModelFormatError),
        ("tokenizer.json", "{}", ModelFormatError),
        ("tokenizer_config.json", "[1]", ModelFormatError),
        ("tokenizer_config.json", "{}", UnsupportedModelError),
        ("tokenizer_config.json", "[" * 100_000, ModelFormatError),
    ],
)
def test_a_damaged_tokenizer_is_refused(tiny_directory, tmp_path, name, content, error):
    shutil.copytree(tiny_directory, tmp_path / "model")
    (tmp_path / "model" / name).write_text(content, encoding="utf-8")
    with pytest.raises(error):
        ChatTokenizer(tmp_path / "model")
