"""Following a job by events: exactly what lies beyond the client's position, wherever that is."""

import asyncio
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec.structs import replace
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT

from api import events as events_module
from api.events import EventReader, LastToken
from api.position import START, Position, TextMark, parse_position
from api.requests import ANONYMOUS
from ledger.jobs import Job, JobOrder, Prices, Progress
from node.market.feed import JobFeed
from tests.market_story import tell_story

TEXTS = st.text("aé\u2028\U0001f600\n", max_size=30)
PENDING = Job(
    id=b"j" * 16,
    state="pending",
    status_reason="queued",
    client="c",
    owner="o",
    order=JobOrder(
        prompt="p", model="m", max_tokens=5, temperature_micros=0, top_p_micros=1_000_000
    ),
    seed=1,
    prompt_salt=b"p" * 32,
    result_salt=b"r" * 32,
    prices=Prices(tokens=1, gpu_seconds=1),
    created_at_ms=0,
)


def parse(piece: bytes) -> tuple[str, str, dict]:
    name, position, data = piece.decode().rstrip("\n").split("\n", 2)
    assert piece.endswith(b"\n\n")
    return (
        name.removeprefix("event: "),
        position.removeprefix("id: "),
        json.loads(data.removeprefix("data: ")),
    )


class Client:
    """Follows the documented rules, and nothing else."""

    def __init__(self) -> None:
        self.position = ""
        self.attempt = 0
        self.text = ""
        self.states: list[tuple[int, str]] = []
        self.reader: EventReader | None = None

    def connect(self, job: Job) -> None:
        position = parse_position(self.position)
        self.reader = EventReader(job, position, caller=ANONYMOUS, mode="dev")

    def look(self, progress: Progress, most: int = 1_000) -> None:
        """Read what is new; hang up after `most` events."""
        if self.reader is None:
            self.connect(progress.job)
        assert self.reader is not None
        for piece in self.reader.read_job(progress, None):
            if most == 0:
                self.reader = None
                return
            most -= 1
            name, self.position, data = parse(piece)
            if name == "status":
                self.states.append((data["attempt"], data["status"]))
                assert not {"prompt", "result"} & set(data)
                continue
            assert name == "token"
            if data["offset"] == 0:
                assert data.get("reset", False) == (self.attempt == data["attempt"] != 0)
                self.text = ""
            else:
                assert data["attempt"] == self.attempt
            assert data["offset"] == len(self.text), "nothing twice, nothing left out"
            self.attempt = data["attempt"]
            self.text += data["text"]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("tell"), TEXTS),
        st.tuples(st.just("requeue"), st.just("")),
        st.tuples(st.just("restart"), st.just("")),
        st.tuples(st.just("hang up"), st.integers(0, 2)),
    ),
    max_size=12,
)


@given(steps=STEPS, result=TEXTS, ends_as_told=st.booleans())
def test_however_often_a_stream_breaks_off_the_client_ends_with_the_result(
    steps, result, ends_as_told
):
    client = Client()
    job = replace(PENDING)
    client.look(Progress(job=job, text=""))
    job = replace(job, state="running", attempt=1)
    told, known = "", ""
    for what, detail in steps:
        if what == "tell":
            told = known = told + detail
        elif what == "requeue":
            client.look(Progress(job=replace(job, state="pending"), text=""))
            job, told, known = replace(job, attempt=job.attempt + 1), "", ""
        elif what == "restart":  # the node forgets, the miner repeats with its next piece
            known, client.reader = told[: len(told) // 2], None
        else:
            client.look(Progress(job=job, text=known), most=detail)
            client.reader = None
        client.look(Progress(job=job, text=known))
        if len(known) >= len(client.text) and client.attempt == job.attempt:
            assert client.text == known
    final = told + result if ends_as_told else result
    job = replace(job, state="completed", result=final, receipt_id="rcp_x")
    client.look(Progress(job=job, text=final))
    if final or client.attempt == job.attempt:
        assert client.text == final
    assert client.states[-1] == (job.attempt, "completed")
    assert len(client.states) == len(set(client.states))
    client.look(Progress(job=job, text=final), most=0)
    client.reader = None
    client.look(Progress(job=job, text=final), most=0)


SHORT = st.sampled_from(["", "a", "ab", "b"])
LOOKS = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.integers(1, 2),
        st.sampled_from(["running", "completed"]),
        SHORT,
        SHORT,
    ),
    max_size=20,
)


@given(looks=LOOKS)
@example(looks=[(0, 1, "running", "a", "a"), (2, 1, "completed", "a", "a")])
def test_who_shares_an_event_is_told_what_it_would_be_told_alone(looks):
    jobs = [
        replace(PENDING, id=name * 16, state="running", attempt=1, result_salt=name * 32)
        for name in (b"1", b"2")
    ]
    last_token = LastToken()

    def read(job, **options):
        return EventReader(job, START, caller=ANONYMOUS, mode="dev", **options)

    together = [read(jobs[number % 2], last_token=last_token) for number in range(3)]
    alone = [read(jobs[number % 2]) for number in range(3)]
    for number, attempt, state, *texts in looks:
        for text in texts:
            job = replace(jobs[number % 2], attempt=attempt, state=state, result=text)
            progress = Progress(job=job, text=text)
            told = list(together[number].read_job(progress, None))
            assert told == list(alone[number].read_job(progress, None))


def test_what_followers_share_is_forgotten_at_the_end_of_the_turn():
    class OneJob:
        def progress(self, _job_id):
            return Progress(job=replace(PENDING, state="running", attempt=1), text="told")

    async def scenario():
        glance = events_module._Glance(OneJob())
        progress = glance.read("job")
        glance.last_token.remember("key", b"told", TextMark(b""))
        assert glance.last_token.recall("key") is not None
        assert glance.read("job") is progress
        await asyncio.sleep(0)
        assert glance.last_token.recall("key") is None
        assert glance.read("job") is not progress

    asyncio.run(scenario())


def test_a_hundred_followers_at_one_place_cost_one_event(monkeypatch):
    made = []
    beyond = TextMark.beyond
    monkeypatch.setattr(TextMark, "beyond", lambda *of: made.append(of) or beyond(*of))
    job = replace(PENDING, state="running", attempt=1)
    last_token = LastToken()
    for _ in range(100):
        reader = EventReader(job, START, caller=ANONYMOUS, mode="dev", last_token=last_token)
        assert len(list(reader.read_job(Progress(job=job, text="told"), None))) == 2
    assert len(made) == 1


@pytest.mark.parametrize(
    "text",
    [
        *(None, "", "1", "1.running.0.none", "x" * 10_000, "1.running.5.0123456789abcdef.none\n"),
        *("-1.running.5.0123456789abcdef.none", "1.running.5.0123456789ABCDEF.none"),
        *("1.running.\u0665.0123456789abcdef.none", "1.ended.5.0123456789abcdef.none"),
        "9999999999.running.5.0123456789abcdef.none",
    ],
)
def test_what_is_no_position_stands_for_the_beginning(text):
    assert parse_position(text) == START


@given(
    st.builds(
        Position,
        attempt=st.integers(0, 10**9 - 1),
        state=st.sampled_from(["new", "pending", "running", "completed", "failed", "cancelled"]),
        chars=st.integers(0, 10**9 - 1),
        digest=st.text("0123456789abcdef", min_size=16, max_size=16),
        receipt=st.sampled_from(["none", "pending", "final"]),
    )
)
def test_a_position_is_read_as_it_was_written(position):
    assert parse_position(str(position)) == position


def test_a_position_tells_nothing_of_the_text_to_who_lacks_the_salt():
    marks = [TextMark(salt).beyond("yes") for salt in (b"1" * 32, b"2" * 32)]
    assert marks[0].digest != marks[1].digest


@given(
    position=st.builds(
        Position,
        attempt=st.integers(0, 4),
        state=st.sampled_from(["new", "pending", "running", "completed"]),
        chars=st.integers(0, 40),
        digest=st.text("0123456789abcdef", min_size=16, max_size=16),
        receipt=st.just("none"),
    ),
    result=TEXTS,
)
def test_a_position_that_somebody_made_up_does_no_harm(position, result):
    job = replace(PENDING, state="completed", attempt=1, result=result, receipt_id="rcp_x")
    reader = EventReader(job, position, caller=ANONYMOUS, mode="dev")
    events = [parse(piece) for piece in reader.read_job(Progress(job=job, text=result), None)]
    text = "".join(data["text"] for name, _, data in events if name == "token")
    assert text in ("", result)


def test_a_long_result_comes_in_bounded_events(monkeypatch):
    monkeypatch.setattr(events_module, "MAX_TOKEN_CHARS", 4)
    job = replace(PENDING, state="completed", attempt=1, result="0123456789", receipt_id="rcp_x")
    client = Client()
    client.look(Progress(job=job, text=job.result), most=2)
    assert (client.text, client.states) == ("01234567", [])
    client.look(Progress(job=job, text=job.result))
    assert (client.text, client.states) == ("0123456789", [(1, "completed")])


def test_one_event_is_no_more_than_a_connection_keeps_for_a_slow_reader_anyhow():
    longest = len(json.dumps("\x01" * events_module.MAX_TOKEN_CHARS))
    assert longest < HIGH_WATER_LIMIT


def test_a_result_that_was_deleted_takes_nothing_from_who_has_it():
    job = replace(PENDING, state="completed", attempt=1, result="kept", receipt_id="rcp_x")
    client = Client()
    client.look(Progress(job=job, text="kept"))
    client.reader = None
    client.look(Progress(job=replace(job, result=None), text=""))
    assert client.text == "kept"


# --- on a node ----------------------------------------------------------------------------------


def test_a_job_is_told_from_submission_to_the_final_receipt(tmp_path, monkeypatch):
    monkeypatch.setattr(events_module, "BEAT_S", 3_600.0)  # so nothing but news wakes the stream

    async def scenario(story):
        await story.submit()
        stream = await story.events()
        assert stream.headers["content-type"] == "text/event-stream"
        assert stream.headers["cache-control"] == "no-store"
        name, _, job = await stream.event()
        assert (name, job["status"], job["queue"]["position"]) == ("status", "pending", 1)
        assert job["params"]["max_tokens"] == 256
        assert "prompt" not in job
        await story.claim()
        name, position, job = await stream.event()
        assert (name, job["status"], job["attempt"]) == ("status", "running", 1)
        assert position == "1.running.0.0000000000000000.none"
        await story.tell(0, "Air ")
        first = "1.running.4." + _digest(story, "Air ") + ".none"
        told = {"attempt": 1, "offset": 0, "text": "Air "}
        assert await stream.event() == ("token", first, told)
        await story.tell(4, "scatters")
        await stream.event()
        await story.complete("Air scatters blue.")
        name, _, data = await stream.event()
        assert (name, data) == ("token", {"attempt": 1, "offset": 12, "text": " blue."})
        name, _, job = await stream.event()
        assert (name, job["status"]) == ("status", "completed")
        assert "disclosure" in job
        assert "result" not in job
        name, position, receipt = await stream.event()
        assert (name, receipt["status"]) == ("receipt", "pending")
        story.node.start_sealing()
        name, last, receipt = await stream.event()
        assert (name, receipt["status"], receipt["block_height"]) == ("receipt", "final", 1)
        assert await stream.events() == []
        again = await (await story.events(position)).events()
        assert [(name, last) for name, _, _ in again] == [("receipt", last)]
        end = await story.events(last)
        assert (end.status, await end.read_all()) == (204, "")
        rest = await (await story.events(first)).events()
        assert rest[0][2]["text"] == "scatters blue."

    tell_story(tmp_path, scenario)


def _digest(story, text: str) -> str:
    return TextMark(story.node.coordinator.job(story.job).result_salt).beyond(text).digest


def test_a_new_attempt_begins_its_text_anew(tmp_path):
    async def scenario(story):
        await story.submit()
        await story.claim()
        await story.tell(0, "old text")
        stream = await story.events()
        await stream.event()
        await stream.event()
        await story.release()
        name, position, job = await stream.event()
        assert (name, job["status"], job["status_reason"]) == ("status", "pending", "requeued")
        await stream.hang_up()
        await story.claim()
        await story.tell(0, "new")
        stream = await story.events(position)
        assert [(await stream.event())[2].get("attempt") for _ in range(2)] == [2, 2]
        await story.complete("new")
        name, _, job = await stream.event()
        assert (name, job["status"], job["attempt"]) == ("status", "completed", 2)

    tell_story(tmp_path, scenario)


def test_a_result_that_is_not_what_was_told_replaces_it(tmp_path):
    async def scenario(story):
        await story.submit()
        await story.claim()
        await story.tell(0, "One thing")
        stream = await story.events()
        for _ in range(2):
            _, position, _ = await stream.event()
        await story.complete("Another")
        reset = {"attempt": 1, "offset": 0, "text": "Another", "reset": True}
        assert (await stream.event())[2] == reset
        again = await story.events(position)
        assert (await again.event())[2] == reset

    tell_story(tmp_path, scenario)


@pytest.mark.parametrize("end", ["cancelled", "failed"])
def test_a_job_without_a_result_ends_its_stream(tmp_path, end):
    async def scenario(story):
        await story.submit()
        await story.claim()
        stream = await story.events()
        await stream.event()
        if end == "cancelled":
            await story.cancel()
        else:
            await story.call(f"{story.path}/fail", miner_id="m1", retryable=False)
        [(name, position, job)] = await stream.events()
        assert (name, job["status"]) == ("status", end)
        assert (await story.events(position)).status == 204

    tell_story(tmp_path, scenario)


def test_text_wakes_nobody_who_may_not_read_it(tmp_path, monkeypatch):
    monkeypatch.setattr(events_module, "BEAT_S", 3_600.0)
    looks = []
    read_job = EventReader.read_job

    def count(reader, progress, queue):
        looks.append(reader._caller.key)
        return read_job(reader, progress, queue)

    monkeypatch.setattr(EventReader, "read_job", count)

    async def scenario(story):
        await story.submit()
        story.node.keys["stranger"] = story.node.create_key("client")
        stranger = story.node.keys["stranger"].split("_")[1]
        await story.claim()
        await story.events(key="stranger")
        owner = await story.events(key="client")
        await story.tell(0, "Ray")
        while "Ray" not in owner.text:
            assert await owner.read()
        before = looks.count(stranger)
        await story.tell(3, "leigh")
        while "leigh" not in owner.text:
            assert await owner.read()
        assert looks.count(stranger) == before == 1

    tell_story(tmp_path, scenario)


def test_who_may_not_read_the_texts_gets_none_of_them(tmp_path):
    async def scenario(story):
        await story.submit("secret prompt")
        story.node.keys["stranger"] = story.node.create_key("client")
        streams = {key: await story.events(key=key) for key in ("", "stranger", "client", "miner")}
        await story.claim()
        await story.tell(0, "secret answer")
        await story.complete("secret answer")
        story.node.start_sealing()
        for key, stream in streams.items():
            events = await stream.events()
            shown = "secret" in json.dumps(events)
            assert shown == (key in {"client", "miner"}), key
            assert [name for name, _, _ in events][-2:] == ["receipt", "receipt"]
            if not shown:
                assert "token" not in [name for name, _, _ in events]
                assert not {"params", "disclosure"} & {k for _, _, data in events for k in data}

    tell_story(tmp_path, scenario)


def test_a_stream_goes_on_after_a_restart_of_the_node(tmp_path):
    async def scenario(story):
        await story.submit()
        await story.claim()
        await story.tell(0, "Air scatters")
        stream = await story.events()
        for _ in range(2):
            _, position, _ = await stream.event()
        story.node.coordinator.close()
        assert await stream.events() == [], "a proper end"
        story.node.coordinator.feed = JobFeed()
        story.node.coordinator.feed.bind()
        stream = await story.events(position)
        await story.tell(12, " blue.")  # beyond a gap: the node has forgotten the rest
        await story.tell(0, "Air sc")
        await story.tell(6, "atters blue.")
        name, _, data = await stream.event()
        assert (name, data) == ("token", {"attempt": 1, "offset": 12, "text": " blue."})
        story.node.coordinator.close()
        await stream.events()

    tell_story(tmp_path, scenario)


def test_comments_show_life_while_there_is_nothing_to_say(tmp_path, monkeypatch):
    monkeypatch.setattr(events_module, "BEAT_S", 0.0)

    async def scenario(story):
        await story.submit()
        stream = await story.events()
        await stream.event()
        for _ in range(3):
            await stream.read()
        assert stream.text.strip(":\n") == ""
        assert ":\n\n" in stream.text

    tell_story(tmp_path, scenario)


def test_a_receipt_that_does_not_become_final_is_not_waited_for_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(events_module, "FINALITY_WAIT_S", 0.0)

    async def scenario(story):
        await story.submit()
        await story.claim()
        await story.complete("Rayleigh.")
        events = await (await story.events()).events()
        assert [name for name, _, _ in events] == ["token", "status", "receipt"]
        position = events[-1][1]
        assert await (await story.events(position)).events() == []
        story.node.start_sealing()
        await asyncio.to_thread(story.node.wait_final, 1)
        [(name, _, receipt)] = await (await story.events(position)).events()
        assert (name, receipt["status"]) == ("receipt", "final")

    tell_story(tmp_path, scenario)


def test_the_position_may_stand_in_the_address_and_the_header_comes_first(tmp_path):
    async def scenario(story):
        await story.submit()
        await story.claim()
        position = "1.running.0.0000000000000000.none"
        path = f"{story.path}/events?last_event_id={position}"
        key = {"x_api_key": story.node.keys["client"]}
        stream = await story.open(path, **key)
        other = await story.open(path, last_event_id="nonsense", **key)
        assert (await other.event())[0] == "status"
        await story.tell(0, "a")
        assert (await stream.event())[0] == "token"

    tell_story(tmp_path, scenario)


def test_an_unknown_job_has_no_events(tmp_path):
    async def scenario(story):
        for job in ("job_" + "0" * 26, "nonsense"):
            answer = await story.open.get(f"/v1/jobs/{job}/events")
            assert answer.status == 404

    tell_story(tmp_path, scenario)
