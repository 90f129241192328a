"""The home page's stream, spoken to as a server speaks to an application: no sockets, no sleeps."""

import asyncio
import re
from contextlib import asynccontextmanager, suppress

import pytest
from starlette.applications import Starlette
from starlette.routing import Route

from api.following import BEAT_S
from explorer_ui import jobs as jobs_module
from explorer_ui import pending as pending_module
from explorer_ui.assets import FOLDER as STATIC
from explorer_ui.home import Home
from explorer_ui.jobs import Jobs
from explorer_ui.live import BEAT, END, HEARTBEAT_S, MAX_STREAMS_PER_CLIENT, Live
from explorer_ui.pending import Pending
from explorer_ui.site import Site
from tests.fake_views import FakeViews, build_chain, now_ms

LIMIT_S = 20
"""A test that waits longer than this has failed."""


class Stream:
    """One open request: its status, headers, and messages as they come."""

    def __init__(self, app, path: str, *, client: str, headers: dict[str, str]) -> None:
        path, _, query = path.partition("?")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
            "client": (client, 50_000),
            "server": ("node.test", 80),
        }
        self.sent: asyncio.Queue[dict] = asyncio.Queue()
        self.left = asyncio.Event()
        self.task = asyncio.create_task(app(scope, self._receive, self.sent.put))

    async def _receive(self):
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def start(self):
        message = await self.sent.get()
        self.status = message["status"]
        self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        return self

    async def next(self) -> str:
        return (await self.sent.get())["body"].decode()

    async def leave(self) -> None:
        self.left.set()
        with suppress(asyncio.CancelledError):
            await self.task


@asynccontextmanager
async def node(views: FakeViews, *, heartbeat_s: float = 60.0):
    site = Site(release="1.2.3")
    live = Live(site=site, head_changed=views, heartbeat_s=heartbeat_s, min_gap_s=0.0)
    home = Home(site=site, views=views, live=live, clock_ms=now_ms)
    jobs = Jobs(site=site, views=views, market=views.market, live=live, clock_ms=now_ms)
    pending = Pending(site=site, views=views, market=views.market, live=live)
    app = Starlette(
        routes=[
            Route("/", home.page),
            Route("/_f/home", home.fragment),
            Route("/_f/home/stream", home.stream),
            Route("/jobs/{key}", jobs.job),
            Route("/_f/jobs/{key}", jobs.fragment),
            Route("/_f/jobs/{key}/stream", jobs.stream),
            Route("/pending", pending.page),
            Route("/_f/pending", pending.fragment),
            Route("/_f/pending/stream", pending.stream),
        ]
    )
    opened: list[Stream] = []

    async def connect(path="/_f/home/stream", *, client="192.0.2.1", **headers) -> Stream:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        stream = Stream(app, path, client=client, headers=names)
        opened.append(stream)
        return await stream.start()

    async with asyncio.timeout(LIMIT_S):
        try:
            yield connect
        finally:
            for stream in opened:
                await stream.leave()


def run(scenario) -> None:
    asyncio.run(scenario())


def data_of(message: str) -> str:
    return "\n".join(
        line.removeprefix("data: ") for line in message.split("\n") if line.startswith("data: ")
    )


async def stream_address(connect) -> str:
    page = await connect("/")
    html = await page.next()
    return re.search(r'hx-sse:connect="([^"]+)"', html)[1]


def test_a_stream_is_silent_until_a_block_comes_and_then_replaces_whole_tables():
    async def scenario():
        views = build_chain(12)
        async with node(views) as connect:
            stream = await connect(await stream_address(connect))
            assert stream.status == 200
            assert stream.headers["content-type"].startswith("text/event-stream")
            assert stream.headers["cache-control"] == "no-store"
            assert await stream.next() == "id: 12\n\n"
            await asyncio.sleep(0)
            assert stream.sent.empty()
            views.add_receipt(500)
            views.seal()
            await views.announce()
            message = await stream.next()
            assert message.startswith("id: 13\ndata: ")
            assert message.endswith("\n\n")
            html = data_of(message)
            targets = re.findall(r'<hx-partial hx-target="#([a-z-]+)" hx-swap="innerHTML">', html)
            assert targets == [
                "status",
                "lede",
                "figures",
                "charts",
                "latest-blocks",
                "latest-receipts",
                "first",
            ]
            assert html.count("<tr") == 20, "both tables keep their ten rows"
            assert ">#13</a>" in html
            assert ">#3</a>" not in html

    run(scenario)


def test_a_short_chain_keeps_the_height_of_its_tables():
    async def scenario():
        views = build_chain(1)
        async with node(views) as connect:
            html = await (await connect("/_f/home")).next()
            assert html.count("<tr") == 20
            assert html.count('class="blank"') == 9 + 8

    run(scenario)


def test_a_page_that_is_behind_is_brought_up_to_date_at_once():
    async def scenario():
        views = build_chain(3)
        async with node(views) as connect:
            stream = await connect("/_f/home/stream?seen=older", last_event_id="1")
            assert await stream.next() == "id: 3\n\n"
            assert ">#3</a>" in data_of(await stream.next())

    run(scenario)


def test_a_quiet_stream_beats_and_notices_figures_that_change_without_a_block():
    async def scenario():
        views = build_chain(3)
        async with node(views, heartbeat_s=0.01) as connect:
            stream = await connect(await stream_address(connect))
            await stream.next()
            assert await stream.next() == BEAT
            views.jobs_24h = 4321
            while not (message := await stream.next()).startswith("id:"):
                assert message == BEAT
            assert "4,321" in data_of(message)

    run(scenario)


def test_pages_wait_for_three_heartbeats_of_their_streams():
    assert BEAT.startswith("event: "), "scripts are told of no comment"
    for script, beat_s in (("explorer.js", HEARTBEAT_S), ("playground.js", BEAT_S)):
        text = (STATIC / script).read_text()
        assert f"SILENCE_MS = {3 * beat_s * 1000:.0f};" in text, script


def test_the_fifth_stream_of_one_client_polls_instead():
    async def scenario():
        views = build_chain(2)
        async with node(views) as connect:
            streams = [await connect() for _ in range(MAX_STREAMS_PER_CLIENT)]
            assert [stream.status for stream in streams] == [200] * 4
            refused = await connect()
            assert (refused.status, refused.headers["hx-trigger"]) == (204, "poll")
            broken = await connect(last_event_id="2")
            assert (broken.status, broken.headers["retry-after"]) == (503, "10")
            assert (await connect(client="192.0.2.2")).status == 200
            await streams[0].leave()
            assert (await connect()).status == 200

    run(scenario)


def test_a_client_that_leaves_before_the_first_byte_gives_its_place_back():
    async def scenario():
        views = build_chain(2)
        async with node(views) as connect:
            for _ in range(3 * MAX_STREAMS_PER_CLIENT):
                stream = await connect()
                stream.task.cancel()
                await asyncio.gather(stream.task, return_exceptions=True)
            assert (await connect()).status == 200

    run(scenario)


def test_streams_end_when_the_node_closes():
    async def scenario():
        views = build_chain(2)
        async with node(views) as connect:
            streams = [await connect(await stream_address(connect)) for _ in range(3)]
            for stream in streams:
                await stream.next()
            await views.close()
            await asyncio.gather(*(stream.task for stream in streams))
            assert (await connect()).status == 200, "a late one starts"
            late = await connect("/_f/home/stream?seen=x")
            await late.task

    run(scenario)


def test_polling_asks_for_the_same_fragment_and_is_answered_304_when_nothing_changed():
    async def scenario():
        views = build_chain(2)
        async with node(views) as connect:
            first = await connect("/_f/home")
            assert first.headers["hx-trigger"] == "poll"
            again = await connect("/_f/home", if_none_match=first.headers["etag"])
            assert (again.status, again.headers["hx-trigger"]) == (304, "poll")
            views.add_receipt(700)
            changed = await connect("/_f/home", if_none_match=first.headers["etag"])
            assert changed.status == 200

    run(scenario)


def test_many_watchers_cost_one_rendering(monkeypatch):
    async def scenario():
        views = build_chain(2)
        rendered = []
        render = Site.render

        def counted(self, template, request, **context):
            rendered.append(template)
            return render(self, template, request, **context)

        monkeypatch.setattr(Site, "render", counted)
        async with node(views) as connect:
            streams = [await connect(client=f"192.0.2.{n}") for n in range(20)]
            for stream in streams:
                await stream.next()
                await stream.next()
            assert rendered == ["fragments/home.html"]

    run(scenario)


@pytest.mark.parametrize("hostile", ["a\r\nid: 99\n\ndata: x", "\u2028\x85\x0b"])
def test_no_name_can_break_out_of_its_message(hostile):
    async def scenario():
        views = FakeViews()
        views.add_receipt(1, model=hostile, client=hostile)
        views.seal()
        async with node(views) as connect:
            stream = await connect()
            await stream.next()
            lines = (await stream.next()).split("\n")
            assert lines[0] == "id: 1"
            assert all(line.startswith("data: ") for line in lines[1:-2])
            assert lines[-2:] == ["", ""]
            assert not [line for line in lines if "\r" in line]

    run(scenario)


# --- jobs, and what has not ended ---------------------------------------------------------------


def targets_of(message: str) -> list[str]:
    return re.findall(r'<hx-partial hx-target="#([a-z-]+)"', data_of(message))


def test_a_job_is_followed_without_a_block_until_its_receipt_is_final(monkeypatch):
    monkeypatch.setattr(jobs_module, "TICK_S", 0.01)

    async def scenario():
        views = build_chain(2)
        key = views.add_job(500)
        async with node(views) as connect:
            html = await (await connect(f"/jobs/{key}")).next()
            address = re.search(r'hx-sse:connect="([^"]+)"', html)[1]
            assert "it is next" in html
            stream = await connect(address)
            assert await stream.next() == "id: 2\n\n"
            views.add_job(500, "running")
            message = await stream.next()
            assert targets_of(message) == ["status", "lede", "steps"]
            assert "runs on the miner" in message
            views.add_receipt(500)
            views.add_job(500, "completed")
            assert "waits for the next block" in await stream.next()
            views.seal()
            await views.announce()
            assert "is final in" in await stream.next()
            assert await stream.next() == END
            await stream.task

    run(scenario)


@pytest.mark.parametrize("state", ["failed", "cancelled"])
def test_the_page_of_a_job_that_is_over_is_not_live(state):
    async def scenario():
        views = build_chain(2)
        key = views.add_job(500, state)
        async with node(views) as connect:
            html = await (await connect(f"/jobs/{key}")).next()
            assert "hx-sse" not in html
            assert "htmx" not in html
            late = await connect(f"/_f/jobs/{key}/stream")
            assert state in [await late.next(), await late.next()][1]
            assert await late.next() == END
            polled = await connect(f"/_f/jobs/{key}")
            assert "hx-trigger" not in polled.headers

    run(scenario)


def test_what_is_pending_comes_and_goes_without_a_block(monkeypatch):
    monkeypatch.setattr(pending_module, "TICK_S", 0.01)

    async def scenario():
        views = build_chain(2)
        async with node(views) as connect:
            html = await (await connect("/pending")).next()
            assert html.count('class="blank"') == 18, "each table says that it is empty"
            assert html.count("<tr") == 2 + 20
            stream = await connect(re.search(r'hx-sse:connect="([^"]+)"', html)[1])
            await stream.next()
            views.add_job(500)
            message = await stream.next()
            assert targets_of(message) == ["status", "lede", "pending-jobs", "pending-receipts"]
            assert data_of(message).count("<tr") == 20
            assert "1 job waits for a miner, none run now" in data_of(message)
            views.add_job(500, "running")
            assert "No jobs wait for a miner, 1 runs now" in data_of(await stream.next())

    run(scenario)


def test_streams_of_all_pages_share_the_places_of_a_client():
    async def scenario():
        views = build_chain(2)
        key = views.add_job(500)
        async with node(views) as connect:
            paths = ["/_f/home/stream", "/_f/pending/stream", f"/_f/jobs/{key}/stream"] * 2
            streams = [await connect(path) for path in paths]
            assert [stream.status for stream in streams] == [200] * 4 + [204] * 2

    run(scenario)
