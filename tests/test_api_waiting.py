"""Long polls and entity tags: an answer when there is news, and nothing twice."""

import asyncio
import gc

import pytest
from starlette.testclient import TestClient

from api.answers import Answer
from api.errors import RequestError
from api.requests import ANONYMOUS
from api.waiting import Places
from ledger.jobs import Caller, Job
from ledger.store.registry import revoke_key
from tests.api_node import run_job
from tests.market_story import tell_story


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_a_poll_is_answered_once_the_job_has_ended_and_not_before(tmp_path):
    async def scenario(story):
        await story.submit()
        poll = story.open.begin(f"{story.path}?wait=30", x_api_key=story.node.keys["client"])
        await story.claim()
        await story.tell(0, "Ray")
        await settle()
        assert not poll.task.done()
        await story.complete("Rayleigh.")
        await poll.start()
        assert poll.status == 200
        assert '"result":"Rayleigh."' in await poll.read_all()
        again = await story.open.get(f"{story.path}?wait=30")
        assert again.status == 200, "an ended job is not waited for"

    tell_story(tmp_path, scenario)


def test_a_poll_with_a_tag_is_answered_at_the_first_change(tmp_path):
    async def scenario(story):
        await story.submit()
        now = await story.open.get(story.path)
        poll = story.open.begin(f"{story.path}?wait=30", if_none_match=now.headers["etag"])
        await settle()
        assert not poll.task.done()
        await story.claim()
        await poll.start()
        assert poll.status == 200
        assert '"status":"running"' in await poll.read_all()
        stale = await story.open.get(f"{story.path}?wait=30", if_none_match=now.headers["etag"])
        assert stale.status == 200, "what differs already is news"

    tell_story(tmp_path, scenario)


@pytest.mark.parametrize("known", [True, False])
def test_at_the_end_of_the_time_a_poll_is_answered_as_it_is(tmp_path, known, monkeypatch):
    async def no_news(self, _timeout_s):
        return False  # as at the end of the node, which a poll takes like the end of its time

    monkeypatch.setattr("node.market.feed.JobWatch.wait", no_news)

    async def scenario(story):
        await story.submit()
        now = await story.open.get(story.path)
        headers = {"if_none_match": now.headers["etag"]} if known else {}
        answer = await story.open.get(f"{story.path}?wait=1", **headers)
        assert answer.status == (304 if known else 200)
        assert answer.headers["etag"] == now.headers["etag"]
        assert bool(answer.text) != known
        assert ("content-length" in answer.headers) != known

    tell_story(tmp_path, scenario)


def test_polls_are_answered_when_the_node_ends(tmp_path):
    async def scenario(story):
        await story.submit()
        poll = story.open.begin(f"{story.path}?wait=30")
        await settle()
        story.node.coordinator.close()
        assert (await poll.start()).status == 200
        assert (await story.open.get(f"{story.path}?wait=30")).status == 200

    tell_story(tmp_path, scenario)


@pytest.mark.parametrize("path", ["?wait=30", "/events"])
@pytest.mark.parametrize("is_running", [False, True])
def test_no_text_is_held_for_those_who_wait(tmp_path, path, is_running):
    prompt = "why is the sky blue " * 99

    def hold_prompt() -> list[object]:
        gc.collect()
        return [o for o in gc.get_objects() if isinstance(o, (Job, Answer)) and prompt in repr(o)]

    async def scenario(story):
        await story.submit(prompt)
        if is_running:
            await story.claim()
        before = hold_prompt()
        key = {"x_api_key": story.node.keys["client"]}
        waiting = story.open.begin(f"{story.path}{path}", **key)
        await settle()
        assert [each for each in hold_prompt() if all(each is not one for one in before)] == []
        assert not waiting.task.done()

    tell_story(tmp_path, scenario)


def test_a_poll_whose_client_has_left_gives_its_place_back(tmp_path):
    async def scenario(story):
        await story.submit()
        for _ in range(3):
            poll = story.open.begin(f"{story.path}?wait=30", x_api_key=story.node.keys["client"])
            await settle()
            await poll.hang_up()
        assert story.node.coordinator.feed.waiting == 0

    tell_story(tmp_path, scenario, max_waiting=1)


@pytest.mark.parametrize("path", ["", "/events"])
def test_those_who_wait_are_bounded_and_strangers_do_not_take_the_places_of_others(tmp_path, path):
    async def scenario(story):
        await story.submit()
        key = {"x_api_key": story.node.keys["client"]}
        waiting = [story.open.begin(f"{story.path}{path}?wait=30")]
        await settle()
        refused = await story.open.get(f"{story.path}{path}?wait=30")
        assert (refused.status, refused.headers["retry-after"]) == (503, "2")
        assert "SYSTEM_OVERLOADED" in refused.text
        waiting += [story.open.begin(f"{story.path}{path}?wait=30", **key) for _ in range(2)]
        await settle()
        assert (await story.open.get(f"{story.path}{path}?wait=30", **key)).status == 503
        assert (await story.open.get(story.path)).status == 200, "who does not wait needs none"
        for one in waiting:
            await one.hang_up()
        again = story.open.begin(f"{story.path}{path}?wait=30")
        await settle()
        assert not again.task.done()

    tell_story(tmp_path, scenario, max_waiting=4)


async def revoke(story, role: str) -> None:
    prefix = story.node.keys[role].split("_")[1]
    await asyncio.wrap_future(story.node._store.write(lambda c: revoke_key(c, prefix, 1)))


def test_a_key_that_is_revoked_learns_nothing_more_of_what_it_waits_for(tmp_path, monkeypatch):
    monkeypatch.setattr("api.access.RECHECK_S", 0)

    async def scenario(story):
        await story.submit()
        poll = story.open.begin(f"{story.path}?wait=30", x_api_key=story.node.keys["client"])
        stream = await story.events()
        await story.claim()
        await story.tell(0, "Ray")
        while "Ray" not in stream.text:
            assert await stream.read()
        await revoke(story, "client")
        await story.tell(3, "leigh.")
        assert "leigh" not in await stream.read_all()
        await story.complete("Rayleigh.")
        await poll.start()
        assert poll.status == 401
        assert "AUTH_INVALID_KEY" in await poll.read_all()

    tell_story(tmp_path, scenario)


def test_nobody_alone_takes_the_places_of_all_others():
    places = Places(8)
    key = Caller(key="k", client="c", role="client")
    free = [places.take(key, "k") for _ in range(4)]
    with pytest.raises(RequestError, check=lambda error: error.code == "SYSTEM_OVERLOADED"):
        places.take(key, "k")
    other = Caller(key="other", client="c", role="client")
    free += [places.take(other, "other")]
    for one in free:
        one()
    free = [places.take(ANONYMOUS, address) for address in ("a", "a", "b")]
    with pytest.raises(RequestError):
        places.take(ANONYMOUS, "a")
    free += [places.take(ANONYMOUS, "b")]
    with pytest.raises(RequestError):
        places.take(ANONYMOUS, "c")
    assert places.taken == 4
    free[0]()
    places.take(ANONYMOUS, "a")


def test_head_requests_for_events_take_no_place(tmp_path):
    async def scenario(story):
        await story.submit()
        for _ in range(4):
            answer = await story.open.get(f"{story.path}/events", method="HEAD")
            assert answer.status == 200
            await answer.task

    tell_story(tmp_path, scenario, max_waiting=2)


# --- entity tags --------------------------------------------------------------------------------


def tag(client: TestClient, path: str, **headers: str) -> str:
    answer = client.get(path, headers=headers)
    assert answer.status_code == 200
    return answer.headers["etag"]


def test_the_tag_of_a_job_covers_its_state_and_what_this_caller_may_read(node):
    with node.client("strict") as client:
        keys = {role: {"X-Api-Key": key} for role, key in node.keys.items()}
        job = client.post("/v1/jobs", json={"prompt": "p"}, headers=keys["client"]).json()
        path = f"/v1/jobs/{job['job_id']}"
        stranger, owner = tag(client, path), tag(client, path, **keys["client"])
        assert stranger != owner == tag(client, path, **keys["admin"])
        crossed = client.get(path, headers=keys["client"] | {"If-None-Match": stranger})
        assert (crossed.status_code, crossed.json()["prompt"]) == (200, "p")
        client.post(f"{path}/cancel", headers=keys["client"])
        assert tag(client, path) != stranger
        assert tag(client, path, **keys["client"]) != owner


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ("{tag}", 304),
        ("W/{tag}", 304),
        ('"other", {tag}', 304),
        ("*", 304),
        ('"other"', 200),
        ("{tag}x", 304),
        ("", 200),
        ("nonsense", 200),
        ('"', 200),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_what_the_client_has_is_not_sent_again(node, given, status, method):
    with node.client() as client:
        job, receipt = run_job(client, node)
        for path in (
            f"/v1/jobs/{job['job_id']}",
            f"/v1/receipts/{receipt['receipt_id']}",
            "/v1/genesis",
        ):
            name = tag(client, path)
            answer = client.request(method, path, headers={"If-None-Match": given.format(tag=name)})
            assert answer.status_code == status
            assert answer.headers["etag"] == name
            assert bool(answer.content) == (status == 200 and method == "GET")


def test_the_tag_of_a_receipt_changes_when_it_becomes_final_and_its_proof_is_for_ever(node):
    with node.client() as client:
        _, receipt = run_job(client, node)
        path = f"/v1/receipts/{receipt['receipt_id']}"
        pending = tag(client, path)
        assert client.get(f"{path}/proof").headers["cache-control"] == "no-store"
        node.start_sealing()
        node.wait_final(1)
        assert tag(client, path) != pending
        assert client.get(path).headers["cache-control"] == "no-cache"
        proof = client.get(f"{path}/proof")
        assert "immutable" in proof.headers["cache-control"]
        again = client.get(f"{path}/proof", headers={"If-None-Match": proof.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")


def test_a_private_answer_is_kept_by_no_cache(node):
    with node.client() as client:
        job, _ = run_job(client, node)
        assert client.get(f"/v1/jobs/{job['job_id']}").headers["cache-control"] == "no-store"
