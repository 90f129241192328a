"""A client that follows a job: it comes back where it was, and never waits for ever."""

import contextlib
import itertools
import json

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from node import restclient
from node.cli import cli
from node.cli import submit as submit_module
from node.jobstream import JobEvent, follow_job, parse_events
from node.restclient import RequestFailedError, RestClient


def event(name: str, position: str, **data: object) -> bytes:
    return f"event: {name}\nid: {position}\ndata: {json.dumps(data)}\n\n".encode()


class Node:
    """Answers each connection with the next of its streams: bytes, or why there is none."""

    def __init__(self, *streams: list[bytes | BaseException] | Exception | None) -> None:
        self.streams = list(streams)
        self.positions: list[str] = []
        self.now_s = 0.0
        self.pauses: list[float] = []

    @contextlib.contextmanager
    def stream_events(self, _job_id, position, *, silence_s):
        self.positions.append(position)
        assert silence_s > 0
        stream = self.streams.pop(0)
        if isinstance(stream, Exception):
            raise stream
        yield None if stream is None else self._read(stream, silence_s)

    def _read(self, stream, silence_s):
        for piece in stream:
            if isinstance(piece, BaseException):
                raise piece
            if piece == b":\n\n":
                self.now_s += min(silence_s, 15)
                if silence_s < 15:
                    raise GONE
            yield piece

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now_s += seconds

    def follow(self, timeout_s: float = 300) -> list[JobEvent]:
        return list(
            follow_job(self, "job", timeout_s=timeout_s, now=lambda: self.now_s, sleep=self.sleep)
        )


GONE = RequestFailedError("no answer")


def test_a_stream_that_breaks_off_goes_on_behind_the_last_event():
    node = Node(
        [event("status", "1", status="running"), event("token", "2", text="a"), GONE],
        GONE,
        RequestFailedError("503", status=503),
        [event("token", "3", text="b")],
        None,
    )
    assert [one.id for one in node.follow()] == ["1", "2", "3"]
    assert node.positions == ["", "2", "2", "2", "3"]
    assert node.pauses == [1.0] * 4


def test_a_refusal_is_one():
    with pytest.raises(RequestFailedError, match="404"):
        Node(RequestFailedError("404", status=404)).follow()


@pytest.mark.parametrize("life", [b":\n\n", event("token", "2", text="x")])
def test_the_time_is_over_though_the_stream_lives(life):
    node = Node(*[[event("status", "1", status="running"), *[life] * 10, GONE]] * 100)
    with pytest.raises(RequestFailedError, match="still running after 40 s; it is not lost"):
        node.follow(timeout_s=40)
    assert node.now_s <= 40 + 1


@given(
    st.lists(st.text(alphabet="aé\n:", max_size=20), min_size=1, max_size=5),
    st.lists(st.integers(0, 400)),
)
def test_events_are_whole_however_their_bytes_are_cut(texts, cuts):
    stream = b"retry: 1000\n\n" + b"".join(
        event("token", str(n), text=text) for n, text in enumerate(texts)
    )
    marks = sorted({0, *(cut for cut in cuts if cut < len(stream)), len(stream)})
    chunks = [stream[a:b] for a, b in itertools.pairwise(marks)]
    found = [one for one in parse_events(chunks) if one]
    assert [(one.id, one.data["text"]) for one in found] == [
        (str(n), text) for n, text in enumerate(texts)
    ]


@pytest.mark.parametrize(
    "stream",
    [
        b"event: token\nid: 1\ndata: {\n\n",
        b"event: token\nid: 1\ndata: []\n\n",
        b"event: token\nid: \xff\ndata: {}\n\n",
        b"event: token\ndata: {}\n\n",
        b"event: \xff\nid: 1\ndata: {}\n\n",
        b"event: token\nid: 1\ndata: " + b"[" * 100_000 + b"\n\n",
        b"x" * (5 << 20),
    ],
)
def test_what_is_no_stream_is_refused_and_not_asked_for_again(stream):
    node = Node([stream])
    with pytest.raises(RequestFailedError):
        node.follow()


# --- aitbc submit --wait ------------------------------------------------------------------------

JOB = {"job_id": "job_1", "status": "completed", "result": "Ray\x1b[2J", "receipt_id": "rcp_1"}
EVENTS = [
    event("status", "1", status="running"),
    event("token", "2", offset=0, text="Ray"),
    event("token", "3", offset=3, text="\x1b[2J"),
    event("status", "4", status="completed"),
]


@pytest.fixture
def submit(monkeypatch):
    """Run `aitbc submit` against scripted streams."""

    def run(*arguments: str, streams, job=JOB, terminal: bool = False):
        node = Node(*streams)
        calls: list[str] = []
        monkeypatch.setattr(
            RestClient, "stream_events", lambda _, *a, **k: node.stream_events(*a, **k)
        )
        monkeypatch.setattr(
            RestClient,
            "submit",
            lambda *_, **__: {"job_id": "job_1", "status": "pending", "model": "m"},
        )
        monkeypatch.setattr(RestClient, "job", lambda *_: job)
        monkeypatch.setattr(RestClient, "cancel", lambda _, job_id: calls.append(job_id) or {})
        monkeypatch.setattr(submit_module, "is_terminal", lambda: terminal)
        result = CliRunner().invoke(
            cli, ["submit", "p", "--url", "http://127.0.0.1:1", "--key", "k", "--wait", *arguments]
        )
        return result, calls

    return run


def test_into_a_file_goes_the_result_and_nothing_else(submit):
    result, _ = submit(streams=[EVENTS])
    assert (result.exit_code, result.stdout) == (0, "Ray\x1b[2J\n")
    assert "receipt rcp_1" in result.stderr


def test_on_a_terminal_the_text_comes_as_it_is_told_and_commands_nothing(submit):
    result, _ = submit(streams=[EVENTS], terminal=True)
    assert (result.exit_code, result.stdout) == (0, "Ray\ufffd[2J\n")


def test_a_text_that_begins_anew_is_told_apart(submit):
    streams = [[*EVENTS[:3], event("token", "4", offset=0, text="Anew"), EVENTS[3]]]
    result, _ = submit(streams=streams, terminal=True)
    assert result.stdout == "Ray\ufffd[2J\nAnew\n"
    assert "begins anew" in result.stderr


def test_as_json_the_job_is_printed_as_the_api_shows_it(submit):
    result, _ = submit("--json", streams=[EVENTS], terminal=True)
    assert json.loads(result.stdout) == JOB
    failed = JOB | {"status": "failed", "status_reason": "max_attempts"}
    result, _ = submit("--json", streams=[[event("status", "1", status="failed")]], job=failed)
    assert (result.exit_code, json.loads(result.stdout)) == (1, failed)


def test_ctrl_c_cancels_the_job(submit):
    result, cancelled = submit(streams=[[EVENTS[0], KeyboardInterrupt()]])
    assert (result.exit_code, cancelled) == (1, ["job_1"])
    assert "cancelled job_1" in result.stderr


def test_what_ctrl_c_says_begins_a_line_below_the_text(submit):
    streams = [[*EVENTS[:2], KeyboardInterrupt()]]
    result, cancelled = submit(streams=streams, terminal=True)
    assert (result.exit_code, cancelled) == (1, ["job_1"])
    assert "Ray\ncancelled job_1\n" in result.output


# --- waiting for the end of a job ---------------------------------------------------------------


class Clock:
    """Time passes while a node holds its answer, and while its client sleeps."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.pauses: list[float] = []

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now_s += seconds


@pytest.fixture
def wait_for(monkeypatch):
    """Wait for a job whose node gives these answers, each after so many seconds."""

    def run(*answers: tuple[str, float], timeout_s: float = 300):
        clock, given, seen = Clock(), iter(answers), []
        monkeypatch.setattr(restclient, "time", clock)

        def job(_, _job_id, *, wait_s):
            status, held_s = next(given)
            assert held_s <= wait_s
            clock.now_s += held_s
            return {"status": status}

        monkeypatch.setattr(RestClient, "job", job)
        with RestClient("http://127.0.0.1:1") as client:
            ended = client.wait_for_job(
                "job_1", timeout_s=timeout_s, progress=lambda job: seen.append(job["status"])
            )
        return ended["status"], seen, clock.pauses

    return run


def test_the_node_tells_of_the_end_and_is_not_asked_again_and_again(wait_for):
    answers = ("pending", 1), ("running", 1), ("completed", 0.3)
    assert wait_for(*answers) == ("completed", ["pending", "running", "completed"], [])


def test_a_node_that_answers_at_once_is_given_time(wait_for):
    status, _, pauses = wait_for(*[("running", 0)] * 5, ("failed", 0))
    assert (status, pauses) == ("failed", [restclient.POLL_S] * 5)


def test_a_job_that_does_not_end_in_time_is_told_so(wait_for):
    with pytest.raises(RequestFailedError, match="still running after 3 s; it is not lost"):
        wait_for(*[("running", 1)] * 3, timeout_s=3)


@pytest.mark.parametrize("url", ["node.example:8001", "node.example", "ftp://node.example"])
def test_an_address_that_is_none_is_told_apart_from_a_node_that_is_silent(url):
    with RestClient(url) as client, pytest.raises(RequestFailedError, match="expected an address"):
        client.health()


def test_a_job_that_cannot_be_cancelled_any_more_is_told_so(monkeypatch, capsys):
    def refuse(*_):
        raise RequestFailedError("409: it is completed", status=409)

    monkeypatch.setattr(RestClient, "cancel", refuse)
    with RestClient("http://127.0.0.1:1") as client:
        submit_module._cancel(client, "job_1")
    assert "job_1 was not cancelled: 409: it is completed" in capsys.readouterr().err
