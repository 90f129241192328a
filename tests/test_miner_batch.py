"""Many answers at once: each as it would be alone, in fair order, whatever the others do."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miner.engine import GenerationRequest, InferenceThread, LlamaEngine, batch
from miner.engine.batch import Batch
from miner.errors import BusyError, ModelError, OverdueError
from miner.runtime import LlamaRuntime
from miner.sampling import SamplingParams
from miner.tokenizer import ChatTokenizer, Message
from tests.recording_runtime import ByHand, RecordingRuntime
from tests.tiny_model import CONTEXT

DIGEST = "ab" * 32
PROMPTS = ("a", "hello", "the cat", "the cat sat on", "the cat sat on the mat. and then?")


def request(number: int = 0, *, prompt: str = "hello", owner: str = "", **changes):
    stop = changes.pop("stop", ())
    time_left_s = changes.pop("time_left_s", None)
    params = {"max_tokens": 8, "temperature_micros": 10**6, "top_p_micros": 10**6, "seed": number}
    return GenerationRequest(
        job_id=f"job_{number}",
        messages=(Message(role="user", content=prompt),),
        params=SamplingParams(**params | changes),
        stop=stop,
        owner=owner,
        time_left_s=time_left_s,
    )


class Stage:
    """An engine whose turns a test takes."""

    def __init__(self, runtime, tokenizer) -> None:
        self.runtime = runtime
        self.now_s = 0.0
        self.hand = ByHand()
        self.engine = LlamaEngine(
            runtime,
            tokenizer,
            model_digest=DIGEST,
            inference=self.hand,
            clock=lambda: self.now_s,
        )
        self.texts: dict[int, str] = {}

    def submit(self, asked):
        number = int(asked.job_id.removeprefix("job_"))
        self.texts[number] = ""

        def hear(piece: str) -> None:
            self.texts[number] += piece

        return self.engine.submit(asked, on_text=hear)

    def alone(self, asked):
        generation = self.submit(asked)
        self.hand.finish()
        return generation.future.result(timeout=0)


@pytest.fixture(scope="module")
def tokenizer(tiny_directory):
    return ChatTokenizer(tiny_directory)


@pytest.fixture
def stage(tokenizer):
    """Three answers at once, without a model."""
    return Stage(RecordingRuntime(slots=4), tokenizer)


@pytest.fixture
def small_pieces(monkeypatch):
    """Prompts fit a small context, so pieces of them are small too."""
    monkeypatch.setattr(RecordingRuntime, "chunk_beside", 4)
    monkeypatch.setattr(RecordingRuntime, "chunk", 8)
    monkeypatch.setattr(batch, "PREFILL_LEAST", 1)


# --- each as it would be alone ------------------------------------------------------------------


@dataclass(frozen=True)
class Arrival:
    turns_before: int
    number: int
    prompt: str
    temperature: int
    stop: tuple[str, ...]
    owner: str
    max_tokens: int
    cancelled_after: int | None


arrivals = st.lists(
    st.builds(
        Arrival,
        turns_before=st.integers(0, 4),
        number=st.integers(0, 5),
        prompt=st.sampled_from(PROMPTS),
        temperature=st.sampled_from((0, 700_000)),
        stop=st.sampled_from(((), ("e",), ("th", "q"))),
        owner=st.sampled_from(("", "anna")),
        max_tokens=st.integers(1, 20),
        cancelled_after=st.none() | st.integers(0, 12),
    ),
    min_size=1,
    max_size=12,
)


def ask(arrival: Arrival):
    return request(
        arrival.number,
        prompt=arrival.prompt,
        owner=arrival.owner,
        stop=arrival.stop,
        temperature_micros=arrival.temperature,
        max_tokens=arrival.max_tokens,
    )


def check_story(story, shared: Stage, lonely: Stage) -> None:
    """Play arrivals on a shared engine; each answer is what it is alone, or a beginning of it."""
    waiting = []
    age: dict[int, int] = {}
    for number, arrival in enumerate(story):
        for _ in range(arrival.turns_before):
            shared.hand.turn()
            tick(waiting, age)
        pieces: list[str] = []
        generation = shared.engine.submit(ask(arrival), on_text=pieces.append)
        waiting.append((number, arrival, generation, pieces))
    while any(one.is_busy for one in shared.hand.batches):
        shared.hand.turn()
        tick(waiting, age)
    for _, arrival, generation, pieces in waiting:
        answer = generation.future.result(timeout=0)
        expected = lonely.alone(ask(arrival))
        assert "".join(pieces) == answer.text
        if answer.finish_reason == "cancelled":
            assert arrival.cancelled_after is not None
            assert expected.token_ids[: len(answer.token_ids)] == answer.token_ids
        else:
            assert answer == expected


def tick(waiting, age) -> None:
    for number, arrival, generation, _ in waiting:
        age[number] = age.get(number, 0) + 1
        if arrival.cancelled_after is not None and age[number] > arrival.cancelled_after:
            generation.cancel()


@given(story=arrivals, max_rows=st.sampled_from((1, 64)))
def test_an_answer_does_not_depend_on_who_shares_its_batch(tokenizer, story, max_rows):
    shared = Stage(RecordingRuntime(slots=4, max_rows=max_rows), tokenizer)
    check_story(story, shared, Stage(RecordingRuntime(slots=2), tokenizer))
    check_books(shared)


def check_books(stage: Stage) -> None:
    """What the books say of the cache is what it holds."""
    (one,) = stage.hand.batches
    for slot in range(one.size):
        tokens = one._slots.tokens(slot)
        assert stage.runtime.cache[slot][: len(tokens)] == tokens


@pytest.fixture(scope="module")
def real_stages(tiny_directory, tokenizer):
    return [
        Stage(LlamaRuntime(tiny_directory, threads=1, context=CONTEXT, slots=slots), tokenizer)
        for slots in (4, 2)
    ]


@given(story=arrivals)
@settings(max_examples=15)
def test_a_real_model_answers_in_a_batch_as_alone(real_stages, story):
    check_story(story, *real_stages)


# --- order and stalls ---------------------------------------------------------------------------


def test_slots_are_given_in_the_order_of_arrival(stage):
    generations = [stage.submit(request(n, temperature_micros=0, max_tokens=5)) for n in range(9)]
    ended = []
    while len(ended) < 9:
        stage.hand.turn()
        ended += [n for n, g in enumerate(generations) if g.future.done() and n not in ended]
    assert ended == list(range(9))


@pytest.mark.usefixtures("small_pieces")
def test_a_long_prompt_does_not_stall_running_answers(stage):
    first = stage.submit(request(1, max_tokens=40, temperature_micros=0))
    while not stage.texts[1]:
        stage.hand.turn()
    stage.runtime.calls.clear()
    stage.submit(request(2, prompt="x" * 40))
    drawn = stage.engine.figures.drawn_tokens
    for turns in range(1, 8):
        stage.hand.turn()
        assert stage.engine.figures.drawn_tokens == drawn + turns
    assert not first.future.done()
    prefilled = [call[3] for call in stage.runtime.calls if call[0] == "prefill"]
    assert prefilled == [4] * 7


@pytest.mark.usefixtures("small_pieces")
def test_a_short_prompt_does_not_wait_for_a_long_one_nor_the_long_one_for_ever(stage, monkeypatch):
    monkeypatch.setattr(batch, "BURST_S", 0.0)
    long = stage.submit(request(1, prompt="x" * 40, max_tokens=1))
    short = stage.submit(request(2, prompt="y", max_tokens=1))
    order = []
    for _ in range(60):
        stage.hand.turn()
        order += [g for g in (long, short) if g.future.done() and g not in order]
    assert order == [short, long]
    for n in range(3, 60):
        stage.submit(request(n, prompt="z", max_tokens=1))
    patient = stage.submit(request(60, prompt="x" * 40, max_tokens=1))
    for n in range(61, 120):
        stage.submit(request(n, prompt="z", max_tokens=1))
    stage.hand.finish()
    assert patient.future.done()


# --- bursts -------------------------------------------------------------------------------------

TOKEN_S = 0.01
"""What a token of a prompt takes on these stages."""


@pytest.fixture
def slow(tokenizer, monkeypatch):
    """Eight answers at once; reading prompts takes time."""
    stage = Stage(RecordingRuntime(slots=9), tokenizer)
    prefill = stage.runtime.prefill

    def read_slowly(token_ids, *, slot, start) -> None:
        prefill(token_ids, slot=slot, start=start)
        stage.now_s += TOKEN_S * len(token_ids)

    monkeypatch.setattr(stage.runtime, "prefill", read_slowly)
    return stage


def submit_burst(stage: Stage, numbers, *, prompt: str = "x" * 20) -> list:
    """Answers that nothing but max_tokens ends soon."""
    return [
        stage.submit(request(n, prompt=prompt, owner=str(n), max_tokens=20, temperature_micros=0))
        for n in numbers
    ]


def widths(stage: Stage) -> list[int]:
    """Rows of all steps so far."""
    return [call[2] for call in stage.runtime.calls if call[0] == "step"]


@pytest.mark.usefixtures("small_pieces")
def test_answers_to_a_burst_begin_together(slow):
    submit_burst(slow, range(8))
    slow.hand.turn()
    assert widths(slow) == [8]


@pytest.mark.usefixtures("small_pieces")
def test_who_comes_while_a_burst_is_read_begins_with_it(slow, monkeypatch):
    prefill, late = slow.runtime.prefill, list(range(1, 8))

    def read_and_submit(token_ids, *, slot, start) -> None:
        prefill(token_ids, slot=slot, start=start)
        submit_burst(slow, [late.pop()] if late else [])

    monkeypatch.setattr(slow.runtime, "prefill", read_and_submit)
    submit_burst(slow, [0])
    slow.hand.turn()
    assert widths(slow) == [8]


@pytest.mark.usefixtures("small_pieces")
def test_the_first_answer_to_a_burst_waits_no_longer_than_the_bound(slow, monkeypatch):
    monkeypatch.setattr(batch, "BURST_S", 1.0)
    submit_burst(slow, range(8))
    slow.hand.turn()
    assert 1 < widths(slow)[0] < 8
    assert slow.now_s <= 1.0


@pytest.mark.usefixtures("small_pieces")
def test_an_answer_that_grows_waits_for_a_burst_no_longer_than_the_bound(slow):
    slow.submit(request(100, max_tokens=40, temperature_micros=0))
    slow.hand.turn()
    submit_burst(slow, range(7))
    waited = []
    while widths(slow)[-1] < 8:
        began_s = slow.now_s
        slow.hand.turn()
        waited.append(slow.now_s - began_s)
    assert max(waited) <= batch.BURST_BESIDE_S
    assert waited[0] > batch.BURST_BESIDE_S / 2, "more than a piece, since more wait than grow"


@pytest.mark.usefixtures("small_pieces")
def test_answers_that_grow_wait_for_single_pieces_of_fewer_others(slow):
    submit_burst(slow, range(4))
    slow.hand.turn()
    submit_burst(slow, range(4, 8))
    began_s = slow.now_s
    slow.hand.turn()
    assert slow.now_s - began_s <= 5 * TOKEN_S


@pytest.mark.usefixtures("small_pieces")
def test_a_burst_does_not_wait_for_a_document_that_comes_with_it(slow, monkeypatch):
    monkeypatch.setattr(batch, "BURST_S", 0.5)
    submit_burst(slow, [0], prompt="x" * 50)
    submit_burst(slow, [1, 2], prompt="yy")
    slow.hand.turn()
    prefilled = [call for call in slow.runtime.calls if call[0] == "prefill"]
    assert len(slow.engine._batch._answering) == 2
    assert sum(size for _, slot, _, size in prefilled if slot == prefilled[0][1]) == 8, "one piece"


def test_runs_of_few_tokens_are_avoided(slow):
    """They cost nearly as much as long ones."""
    submit_burst(slow, range(8))
    slow.hand.finish()
    lengths = [call[3] for call in slow.runtime.calls if call[0] == "prefill"]
    assert len(lengths) == 8, "each prompt in one piece"


def test_no_few_tokens_of_a_prompt_are_left_for_another_run(slow, monkeypatch):
    monkeypatch.setattr(slow.runtime, "chunk_beside", 24)
    submit_burst(slow, [0, 1])
    slow.hand.turn()
    slow.runtime.calls.clear()
    _, other = submit_burst(slow, [2, 3], prompt="x" * 24)
    slow.hand.finish()
    unread = other.future.result(timeout=0).prompt_tokens - 1
    assert 24 < unread < 24 + batch.PREFILL_LEAST
    assert [call[3] for call in slow.runtime.calls if call[0] == "prefill"] == [unread, unread]


def test_slots_in_use_stay_together(stage):
    lengths = (30, 3, 20)
    for number, most in enumerate(lengths):
        stage.submit(request(number, max_tokens=most, temperature_micros=0, prompt="q"))
    stage.hand.finish()
    assert widths(stage)[0] == 3
    assert widths(stage)[-1] == 1
    assert stage.engine.figures.rows == stage.engine.figures.drawn_tokens, "none for nothing"
    assert stage.engine.figures.moved_tokens > 0


# --- what fails ---------------------------------------------------------------------------------


def test_logits_that_are_no_numbers_end_their_own_answer_alone(stage, monkeypatch):
    step = stage.runtime.step

    def poison(token_ids, lengths, *, first_slot=0):
        rows = step(token_ids, lengths, first_slot=first_slot)
        if len(rows) == 3:
            rows[1] = np.nan
        return rows

    monkeypatch.setattr(stage.runtime, "step", poison)
    generations = [stage.submit(request(n, max_tokens=6, temperature_micros=0)) for n in range(3)]
    stage.hand.finish()
    errors = [type(g.future.exception(timeout=0)) for g in generations]
    assert errors == [type(None), ModelError, type(None)]


def test_a_listener_that_fails_ends_its_own_answer_alone(stage):
    def fail(_piece: str) -> None:
        raise RuntimeError("the loop is closed")

    deaf = stage.engine.submit(request(0), on_text=fail)
    heard = stage.submit(request(1))
    stage.hand.finish()
    assert isinstance(deaf.future.exception(timeout=0), RuntimeError)
    assert heard.future.result(timeout=0).text == stage.texts[1]


@pytest.mark.parametrize("part", ["prefill", "step", "copy_slot"])
def test_after_the_model_failed_others_are_answered(stage, monkeypatch, part):
    expected = Stage(RecordingRuntime(slots=2), stage.engine._tokenizer).alone(request(5))
    work = getattr(stage.runtime, part)
    left = [1]

    def fail_once(*arguments, **options):
        if left:
            left.pop()
            raise ModelError("out of memory")
        return work(*arguments, **options)

    monkeypatch.setattr(stage.runtime, part, fail_once)
    if part == "copy_slot":
        stage.alone(request(1, prompt="y" * 40))
        failed = stage.submit(request(1, prompt="y" * 20 + "z"))
    else:
        failed = stage.submit(request(1))
    stage.hand.finish()
    assert isinstance(failed.future.exception(timeout=0), ModelError)
    assert stage.alone(request(5)) == expected
    check_books(stage)


def test_an_answer_that_is_overdue_is_given_up_and_the_others_go_on(stage):
    late = stage.submit(request(1, max_tokens=40, time_left_s=10.0, temperature_micros=0))
    other = stage.submit(request(2, max_tokens=40, temperature_micros=0))
    for _ in range(3):
        stage.hand.turn()
    stage.now_s = 10.0
    stage.hand.turn()
    assert isinstance(late.future.exception(timeout=0), OverdueError)
    stage.hand.finish()
    assert other.future.result(timeout=0).completion_tokens


def test_an_answer_that_is_cancelled_while_it_waits_takes_no_slot(stage):
    for number in range(3):
        stage.submit(request(number, max_tokens=20, temperature_micros=0))
    stage.hand.turn()
    waiting = stage.submit(request(9))
    waiting.cancel()
    stage.hand.turn()
    assert waiting.future.result(timeout=0).token_ids == ()


def test_more_answers_than_may_wait_are_refused(stage, monkeypatch):
    monkeypatch.setattr(batch, "MAX_WAITING", 2)
    for number in range(2):
        stage.submit(request(number))
    with pytest.raises(BusyError):
        stage.submit(request(2))
    stage.hand.finish()
    stage.alone(request(2))


# --- prefixes -----------------------------------------------------------------------------------


def conversation(number: int, *turns: str, owner: str = "anna"):
    messages = tuple(Message(role="user", content=turn) for turn in turns)
    asked = request(number, owner=owner, temperature_micros=0, max_tokens=4)
    return GenerationRequest(
        job_id=asked.job_id, messages=messages, params=asked.params, owner=owner
    )


def test_what_a_prompt_has_in_common_with_an_earlier_one_is_not_computed_again(stage):
    first = stage.alone(conversation(1, "be brief", "a"))
    computed = stage.engine.figures.prompt_tokens
    second = stage.alone(conversation(2, "be brief", "b"))
    shared = stage.engine.figures.shared_tokens
    assert stage.engine.figures.shared_prompts == 1
    assert shared >= 20
    assert stage.engine.figures.prompt_tokens - computed == second.prompt_tokens - 1 - shared
    lonely = Stage(RecordingRuntime(slots=2), stage.engine._tokenizer)
    assert [lonely.alone(conversation(2, "be brief", "b"))] == [second]
    assert first != second


def test_a_prefix_is_copied_from_an_answer_that_still_runs(stage):
    stage.submit(request(1, prompt="the cat sat on the mat", max_tokens=20, temperature_micros=0))
    for _ in range(3):
        stage.hand.turn()
    second = stage.submit(request(2, prompt="the cat sat on the hat", temperature_micros=0))
    stage.hand.finish()
    assert stage.engine.figures.shared_tokens > 10
    lonely = Stage(RecordingRuntime(slots=2), stage.engine._tokenizer)
    alone = lonely.alone(request(2, prompt="the cat sat on the hat", temperature_micros=0))
    assert second.future.result(timeout=0) == alone


def test_a_beginning_that_a_burst_has_in_common_is_computed_once(slow):
    alone = Stage(RecordingRuntime(slots=2), slow.engine._tokenizer)
    texts = ["a", "b", "c", "d"]
    generations = [
        slow.submit(conversation(n, "be brief, please", text)) for n, text in enumerate(texts)
    ]
    slow.hand.finish()
    prompts = generations[0].future.result(timeout=0).prompt_tokens * len(texts)
    assert slow.engine.figures.shared_prompts == 3
    assert slow.engine.figures.prompt_tokens < prompts / 2
    assert slow.engine.figures.prompt_tokens + slow.engine.figures.shared_tokens == prompts - 4
    for number, (text, generation) in enumerate(zip(texts, generations, strict=True)):
        expected = alone.alone(conversation(number, "be brief, please", text))
        assert generation.future.result(timeout=0) == expected
    check_books(slow)


def test_nobody_learns_from_the_time_an_answer_takes_what_others_have_asked(stage):
    stage.alone(conversation(1, "be brief", "a", owner="anna"))
    stage.alone(conversation(2, "be brief", "a", owner="bert"))
    assert stage.engine.figures.shared_tokens == 0


# --- other work ---------------------------------------------------------------------------------


def test_other_work_gets_a_slot_of_its_own_and_one_piece_a_turn(stage):
    seen = []

    def work(runtime, slot):
        for piece in range(3):
            seen.append((slot, piece))
            runtime.prefill([piece], slot=slot, start=piece)
            yield
        return sum(piece for _, piece in seen)

    answer = stage.submit(request(1, max_tokens=30, temperature_micros=0))
    future = stage.engine.run(work)
    for pieces in range(1, 4):
        drawn = stage.engine.figures.drawn_tokens
        stage.hand.turn()
        assert len(seen) == pieces
        assert stage.engine.figures.drawn_tokens == drawn + 1
    stage.hand.turn()
    assert future.result(timeout=0) == 3
    assert not answer.future.done()
    assert {slot for slot, _ in seen} == {3}, "never one of an answer"


def test_other_work_that_fails_or_is_cancelled_ends_alone(stage):
    closed = []

    def broken(runtime, slot):
        yield
        raise ModelError("no")

    def endless(runtime, slot):
        try:
            while True:
                yield
        finally:
            closed.append(slot)

    failed, cancelled = stage.engine.run(broken), stage.engine.run(endless)
    answer = stage.submit(request(1, max_tokens=30, temperature_micros=0))
    for _ in range(4):
        stage.hand.turn()
    cancelled.cancel()
    stage.hand.finish()
    assert isinstance(failed.exception(timeout=0), ModelError)
    assert closed == [3]
    assert answer.future.result(timeout=0).text == stage.texts[1]


# --- the thread ---------------------------------------------------------------------------------


def never_ending(runtime, slot):
    while True:
        yield


def test_the_end_of_the_thread_cancels_what_is_not_done(tokenizer):
    begun = threading.Event()
    with InferenceThread() as inference:
        engine = LlamaEngine(
            RecordingRuntime(slots=3), tokenizer, model_digest=DIGEST, inference=inference
        )
        generations = [
            engine.submit(request(n, max_tokens=50), on_text=lambda _: begun.set())
            for n in range(40)
        ]
        assert begun.wait(60)
        endless = engine.run(never_ending)
    reasons = {g.future.result(timeout=0).finish_reason for g in generations}
    assert "cancelled" in reasons
    assert endless.cancelled()


def test_a_turn_that_fails_by_our_own_fault_leaves_nobody_waiting(tokenizer, monkeypatch, caplog):
    monkeypatch.setattr(Batch, "_admit", lambda self: 1 / 0)
    with InferenceThread() as inference:
        engine = LlamaEngine(
            RecordingRuntime(slots=2), tokenizer, model_digest=DIGEST, inference=inference
        )
        generation = engine.submit(request(), on_text=pytest.fail)
        assert isinstance(generation.future.exception(timeout=60), ZeroDivisionError)
    assert "ZeroDivisionError" in caplog.text


def test_models_take_turns(tokenizer):
    """Two engines on one thread: both get on, neither waits for the other's end."""
    hand = ByHand()
    engines = [
        LlamaEngine(RecordingRuntime(slots=2), tokenizer, model_digest=DIGEST, inference=hand)
        for _ in range(2)
    ]
    for number, engine in enumerate(engines):
        engine.submit(
            request(number, max_tokens=30, temperature_micros=0), on_text=lambda _piece: None
        )
    for turns in range(1, 5):
        hand.turn()
        assert [engine.figures.drawn_tokens for engine in engines] == [turns, turns]
