"""Telling the text of a running job: whole, at a steady pace, and never at the job's cost."""

import asyncio
import threading
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miner import telling
from miner.client import CoordinatorClient
from miner.engine import Completion
from miner.errors import BadAnswerError, LeaseLostError, RefusedError, UnreachableError
from miner.retry import Pace
from miner.telling import Teller
from tests.fake_coordinator import CutOff, FakeCoordinator, refuse
from tests.scripted_engine import ANSWER, ScriptedEngine, until_stopped
from tests.test_miner_worker import PATIENCE_S, play

AT_ONCE = Pace(tell_interval_s=0, first_retry_s=0.001, longest_retry_s=0.001)
NEVER = Pace(tell_interval_s=3600, first_retry_s=3600)


class Node:
    """What a node knows of one text, and what it was sent."""

    def __init__(self, *failures: Exception) -> None:
        self.text = ""
        self.sent: list[tuple[int, str]] = []
        self.failures = list(failures)
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.under_way = 0
        self._asked = asyncio.Event()

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait for the request after which something holds."""
        while not holds():
            self._asked.clear()
            await self._asked.wait()

    async def take(self, offset: int, text: str) -> int:
        assert self.under_way == 0, "one at a time"
        self.under_way += 1
        self.sent.append((offset, text))
        await self.may_answer.wait()
        self._asked.set()
        self.under_way -= 1
        if self.failures:
            raise self.failures.pop(0)
        if offset <= len(self.text):
            self.text = self.text[:offset] + text
        return len(self.text)


def run(scenario, *failures: Exception, pace: Pace = AT_ONCE) -> None:
    async def bounded():
        node = Node(*failures)
        teller = Teller(node.take, pace)
        task = asyncio.create_task(teller.run())
        try:
            async with asyncio.timeout(PATIENCE_S):
                await scenario(node, teller, task)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(bounded())


async def turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def test_the_first_piece_goes_at_once_and_the_rest_waits_for_the_pace():
    async def scenario(node, teller, _task):
        await turns()
        teller.add("a")
        await turns()
        teller.add("b")
        teller.add("c")
        await turns()
        assert node.sent == [(0, "a")]

    run(scenario, pace=NEVER)


def test_what_comes_while_one_request_is_under_way_goes_in_the_next():
    async def scenario(node, teller, _task):
        node.may_answer.clear()
        teller.add("a")
        await turns()
        for piece in "bcd":
            teller.add(piece)
        await turns()
        node.may_answer.set()
        await node.until(lambda: node.text == "abcd")
        assert node.sent == [(0, "a"), (1, "bcd")]

    run(scenario)


def test_a_node_that_forgot_the_text_gets_it_again():
    async def scenario(node, teller, _task):
        teller.add("abc")
        await node.until(lambda: node.text == "abc")
        node.text = ""
        teller.add("def")
        await node.until(lambda: node.text == "abcdef")

    run(scenario)


@pytest.mark.parametrize("lie", [10**9, 0])
def test_a_node_that_says_nonsense_gets_no_nonsense(lie):
    async def scenario(node, teller, _task):
        async def lying(offset, text):
            await Node.take(node, offset, text)
            return lie

        teller._send = lying
        teller.add("abc")
        await node.until(lambda: node.sent)
        teller.add("d")
        await node.until(lambda: len(node.sent) > 1)
        assert node.sent[1] in ((3, "d"), (0, "abc"), (0, "abcd"))

    run(scenario)


def test_a_long_text_goes_in_bounded_pieces(monkeypatch):
    monkeypatch.setattr(telling, "MAX_PIECE_CHARS", 3)

    async def scenario(node, teller, _task):
        teller.add("abcdefgh")
        await node.until(lambda: node.text == "abcdefgh")
        assert [text for _, text in node.sent] == ["abc", "def", "gh"]

    run(scenario)


def test_a_node_that_cannot_be_reached_is_tried_again():
    async def scenario(node, teller, task):
        teller.add("abc")
        await node.until(lambda: node.text == "abc")
        assert not task.done()

    run(scenario, UnreachableError("gone"), UnreachableError("500"))


@pytest.mark.parametrize(
    "refusal",
    [
        UnreachableError("no room", is_refusal=True),
        LeaseLostError("gone", status=409, error_code="JOB_ALREADY_CANCELLED"),
        RefusedError("an old node", status=404, error_code="PATH_NOT_FOUND"),
        BadAnswerError("nonsense"),
    ],
)
def test_a_node_that_does_not_want_the_text_is_left_alone(refusal):
    async def scenario(node, teller, task):
        teller.add("abc")
        await task
        teller.add("def")
        await turns()
        assert node.sent == [(0, "abc")]

    run(scenario, refusal)


@given(pieces=st.lists(st.text(min_size=1, max_size=5), max_size=60))
def test_no_piece_of_another_thread_is_lost(pieces):
    async def scenario(node, teller, _task):
        thread = threading.Thread(target=lambda: [teller.add(piece) for piece in pieces])
        thread.start()
        await node.until(lambda: node.text == "".join(pieces))
        thread.join()

    run(scenario)


# --- in a worker --------------------------------------------------------------------------------

TOLD = Completion(
    text="Because of Rayleigh.", token_ids=(5, 6, 2), prompt_tokens=4, finish_reason="stop"
)


def telling_engine(told: threading.Event) -> ScriptedEngine:
    """Tells some text, runs on until the node has been told, and ends."""

    def script(_should_stop) -> Completion:
        for piece in ("Because", " of", " Ray"):
            engine.say(piece)
        assert told.wait(PATIENCE_S)
        return TOLD

    engine = ScriptedEngine(script)
    return engine


def test_a_job_tells_its_text_while_it_runs():
    told = threading.Event()
    node = FakeCoordinator()
    node.hooks["text"] = told.set
    play(node, telling_engine(told), "completed", "idle")
    assert node.bodies["text"][0]["offset"] == 0
    assert "Because of Rayleigh.".startswith(node.text)
    assert node.receipt is not None


@pytest.mark.parametrize(
    "answer",
    [refuse(503, "SYSTEM_OVERLOADED"), refuse(404, "PATH_NOT_FOUND"), refuse(500, "X"), CutOff],
)
def test_no_trouble_with_the_text_is_trouble_for_the_job(answer, caplog):
    told = threading.Event()
    node = FakeCoordinator()
    node.hooks["text"] = told.set
    node.script["text"] = [answer] * 100
    play(node, telling_engine(told), "completed", "idle")
    assert node.receipt is not None
    assert "Because" not in caplog.text


def test_a_node_without_room_for_text_is_not_asked_again_for_this_job():
    told = threading.Event()
    node = FakeCoordinator()
    node.hooks["text"] = told.set
    node.script["text"] = [refuse(503, "SYSTEM_OVERLOADED")]
    play(node, telling_engine(told), "completed", "idle")
    assert node.calls.count("text") == 1


def test_a_text_that_hangs_does_not_hold_up_the_result():
    told = threading.Event()
    node = FakeCoordinator()
    hanging = asyncio.Event()

    async def hang(_request):
        told.set()
        await hanging.wait()

    node.text_told = hang
    play(node, telling_engine(told), "completed", "idle")
    assert node.receipt is not None


def test_heartbeats_wait_at_the_node_as_long_as_until_the_next_one():
    beaten = threading.Event()
    node = FakeCoordinator(heartbeat_interval_ms=20_000)
    node.hooks["heartbeat"] = beaten.set

    def script(_should_stop) -> Completion:
        assert beaten.wait(PATIENCE_S)
        return ANSWER

    play(node, ScriptedEngine(script), "completed")
    assert node.bodies["heartbeat"][0]["wait"] == 20


@pytest.mark.parametrize("interval_ms", [3_600_000, 20_000])
def test_a_cancelled_job_stops_though_the_next_heartbeat_is_far(interval_ms):
    node = FakeCoordinator(heartbeat_interval_ms=interval_ms)
    node.script["heartbeat"] = [refuse(409, "JOB_ALREADY_CANCELLED")]
    play(node, ScriptedEngine(until_stopped), "idle")
    assert "claim" in node.calls
    assert not {"complete", "fail", "release"} & set(node.calls)


def test_a_heartbeat_that_a_result_answers_is_no_lost_lease(caplog, monkeypatch):
    node = FakeCoordinator(heartbeat_interval_ms=20_000)
    completing, heard = asyncio.Event(), asyncio.Event()
    ask = CoordinatorClient.heartbeat

    async def ask_and_note(self, *arguments, **options):
        try:
            return await ask(self, *arguments, **options)
        finally:
            heard.set()

    async def wait_for_the_result(_request):
        await completing.wait()
        return refuse(409, "JOB_ALREADY_COMPLETED")()

    async def complete(request):
        completing.set()
        await heard.wait()
        for _ in range(10):  # turns of the one loop, in which the worker draws its conclusion
            await asyncio.sleep(0)
        return await FakeCoordinator.complete(node, request)

    monkeypatch.setattr(CoordinatorClient, "heartbeat", ask_and_note)
    node.heartbeat, node.complete = wait_for_the_result, complete
    play(node, ScriptedEngine(), "completed", "idle")
    assert node.receipt is not None
    assert "JOB_ALREADY_COMPLETED" not in caplog.text
