"""`GET /p2p/blocks`: stored bytes in whole frames, bounded answers, bounded waiting."""

import asyncio
import contextlib

import pytest

from explorer_ui import ClosingError
from ledger.block import hash_genesis
from ledger.store.chain import ChainStore
from node.p2p import blocks
from node.p2p.blocks import BlockStream, build_block_route, read_frame
from node.p2p.frames import GENESIS_HEADER, HEIGHT_HEADER
from tests.builders import build_chain
from tests.sync_peer import build_frames
from tests.test_chain_store import fill

CHAIN = build_chain(4, blocks=(1, 70, 2, 1))
FRAMES = build_frames(CHAIN)


class Head:
    """A head that grows when a test says so."""

    def __init__(self) -> None:
        self.grown = asyncio.Event()
        self.waiting = asyncio.Event()
        self.is_closing = False

    async def wait(self, height: int) -> int:
        self.waiting.set()
        await self.grown.wait()
        if self.is_closing:
            raise ClosingError
        return height + 1


class Answer:
    """What the endpoint sent."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.pieces: list[bytes] = []
        self.is_complete = False

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)

    async def send(self, message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {k.decode(): v.decode() for k, v in message["headers"]}
        else:
            self.pieces.append(message["body"])
            self.is_complete = not message["more_body"]


async def ask(stream: BlockStream, query: str, *, send=None, left: asyncio.Event | None = None):
    answer = Answer()
    body = iter([{"type": "http.request", "body": b"", "more_body": False}])

    async def receive():
        for message in body:
            return message
        await (left or asyncio.Event()).wait()
        return {"type": "http.disconnect"}

    scope = {"type": "http", "method": "GET", "query_string": query.encode()}
    await stream(scope, receive, send(answer) if send else answer.send)
    return answer


@pytest.fixture
def store(tmp_path):
    store = fill(tmp_path / "ledger.db", CHAIN)
    yield store
    store.close()


@pytest.mark.parametrize("first", [1, 2, 3, 4])
def test_it_sends_the_stored_blocks_from_a_height_to_the_tip(store, first):
    answer = asyncio.run(ask(BlockStream(store, Head()), f"from={first}"))
    assert (answer.status, answer.body) == (200, b"".join(FRAMES[first - 1 :]))
    assert answer.headers[GENESIS_HEADER] == hash_genesis(CHAIN.genesis).hex()
    assert answer.headers[HEIGHT_HEADER] == "4"
    assert answer.is_complete


def test_above_the_tip_there_is_an_empty_stream(store):
    answer = asyncio.run(ask(BlockStream(store, Head()), "from=5"))
    assert (answer.status, answer.body, answer.is_complete) == (200, b"", True)


def test_an_answer_ends_after_the_blocks_asked_for(store):
    answer = asyncio.run(ask(BlockStream(store, Head()), "from=1&limit=2"))
    assert answer.body == b"".join(FRAMES[:2])


def test_an_answer_ends_between_frames_once_it_is_long_enough(store, monkeypatch):
    monkeypatch.setattr(blocks, "MAX_BYTES", len(FRAMES[0]) + 1)
    answer = asyncio.run(ask(BlockStream(store, Head()), "from=1"))
    assert answer.body == b"".join(FRAMES[:2])


def test_an_answer_ends_between_frames_once_it_lasted_long_enough(store, monkeypatch):
    monkeypatch.setattr(blocks, "MAX_SECONDS", -1.0)
    answer = asyncio.run(ask(BlockStream(store, Head()), "from=1"))
    assert (answer.body, answer.is_complete) == (b"", True)


def test_others_have_their_turn_between_short_steps(store, monkeypatch):
    monkeypatch.setattr(blocks, "STEP_BYTES", 1024)
    turns = []

    async def both():
        async def take_turns():
            while True:
                turns.append(1)
                await asyncio.sleep(0)

        other = asyncio.create_task(take_turns())
        answer = await ask(BlockStream(store, Head()), "from=1")
        other.cancel()
        return answer

    answer = asyncio.run(both())
    assert answer.body == b"".join(FRAMES)
    assert len(turns) >= len(answer.pieces) - 1 >= 3


@pytest.mark.parametrize(
    "query",
    [
        "",
        "from=",
        "from=0",
        "from=-1",
        "from=1.0",
        "from=x",
        "from=%D9%A1",
        "from=" + "9" * 40,
        "from=1&wait_ms=30001",
        "from=1&wait_ms=x",
        "from=1&limit=0",
        "from=1&limit=10001",
    ],
)
def test_a_wrong_query_is_refused(store, query):
    answer = asyncio.run(ask(BlockStream(store, Head()), query))
    assert answer.status == 400
    assert b'"error_code":"VALIDATION_FAILED"' in answer.body


def test_a_caller_waits_for_the_next_block_and_gets_it(tmp_path):
    with contextlib.closing(fill(tmp_path / "ledger.db", CHAIN, blocks=3)) as store:

        async def wait_and_append():
            head = Head()
            asking = asyncio.create_task(ask(BlockStream(store, head), "from=4&wait_ms=30000"))
            await head.waiting.wait()
            store.append(CHAIN.blocks[3], CHAIN.certificates[3]).result()
            head.grown.set()
            return await asking

        answer = asyncio.run(wait_and_append())
        assert (answer.body, answer.headers[HEIGHT_HEADER]) == (FRAMES[3], "4")


def test_a_wait_without_a_block_ends_in_an_empty_stream(store):
    answer = asyncio.run(ask(BlockStream(store, Head()), "from=5&wait_ms=1"))
    assert (answer.status, answer.body) == (200, b"")


def test_whoever_waits_when_the_node_closes_is_told_so(store):
    async def close():
        head = Head()
        head.is_closing = True
        head.grown.set()
        return await ask(BlockStream(store, head), "from=5&wait_ms=30000")

    answer = asyncio.run(close())
    assert (answer.status, answer.headers["retry-after"]) == (503, "2")


def test_a_caller_that_leaves_frees_its_place_and_one_too_many_is_refused(store, monkeypatch):
    monkeypatch.setattr(blocks, "MAX_REQUESTS", 1)

    async def leave():
        head, left = Head(), asyncio.Event()
        stream = BlockStream(store, head)
        waiting = asyncio.create_task(ask(stream, "from=5&wait_ms=30000", left=left))
        await head.waiting.wait()
        refused = await ask(stream, "from=1")
        left.set()
        await waiting
        return refused, await ask(stream, "from=1")

    refused, served = asyncio.run(leave())
    assert (refused.status, refused.headers["retry-after"]) == (503, "2")
    assert (served.status, served.body) == (200, b"".join(FRAMES))


def test_a_caller_that_stops_reading_is_dropped_and_frees_its_place(store, monkeypatch):
    monkeypatch.setattr(blocks, "frame_timeout_s", lambda _size: 0.01)

    def stall(answer):
        async def send(message):
            await answer.send(message)
            if message["type"] == "http.response.body":
                await asyncio.Event().wait()

        return send

    async def drop():
        stream = BlockStream(store, Head())
        dropped = await ask(stream, "from=1", send=stall)
        return dropped, await ask(stream, "from=4")

    dropped, served = asyncio.run(drop())
    assert not dropped.is_complete
    assert served.body == FRAMES[3]


def test_a_stored_frame_states_its_size_before_its_body_is_read(store):
    for height, data in enumerate(FRAMES, 1):
        frame = read_frame(store.database.reader, height)
        assert frame is not None
        assert frame.size_bytes == len(data)
        assert b"".join(frame.pieces) == data
    assert read_frame(store.database.reader, len(FRAMES) + 1) is None


def test_the_route_takes_get_alone(store: ChainStore):
    route = build_block_route(store, Head())
    assert (route.path, route.methods) == ("/p2p/blocks", {"GET", "HEAD"})
