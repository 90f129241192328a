"""News of jobs and the text of running ones: nothing is missed, held too long, or without bound."""

import asyncio
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.errors import MarketError
from node.market import feed as feed_module
from node.market.feed import BLOCKS, PIECE_CHARS, JobFeed

JOB, OTHER = b"j" * 16, b"o" * 16
LONG_S = 20
TEXTS = st.text(max_size=40)


def run(scenario) -> None:
    async def bounded():
        async with asyncio.timeout(LONG_S):
            feed = JobFeed()
            feed.bind()
            await scenario(feed)

    asyncio.run(bounded())


async def settle() -> None:
    """Let what other calls have put into the loop run."""
    for _ in range(3):
        await asyncio.sleep(0)


@given(text=TEXTS, cuts=st.lists(st.tuples(st.integers(0, 45), st.integers(0, 45)), max_size=12))
def test_whatever_pieces_a_miner_repeats_or_skips_what_is_known_is_a_beginning_of_its_text(
    text, cuts
):
    feed = JobFeed()
    known = 0
    for first, last in cuts:
        piece = text[first:last]
        reached = feed.append(JOB, 1, offset=first, text=piece)
        assert reached == (max(known, first + len(piece)) if first <= known else known)
        known = reached
        assert feed.text(JOB, 1) == text[:known]
    assert feed.append(JOB, 1, offset=known, text=text[known:]) == len(text)
    assert feed.text(JOB, 1) == text


def test_text_that_is_told_by_the_letter_is_held_in_few_pieces():
    feed = JobFeed()
    for n in range(3 * PIECE_CHARS):
        feed.append(JOB, 1, offset=n, text="x")
    assert len(feed._texts[JOB]._pieces) <= 3
    assert feed.text(JOB, 1) == "x" * 3 * PIECE_CHARS


def test_text_of_another_attempt_is_not_shown_and_a_new_attempt_begins_anew():
    feed = JobFeed()
    assert feed.append(JOB, 1, offset=0, text="old") == 3
    assert feed.text(JOB, 2) == ""
    assert feed.append(JOB, 2, offset=3, text="gap") == 0
    assert feed.append(JOB, 2, offset=0, text="new!") == 4
    assert (feed.text(JOB, 1), feed.text(JOB, 2)) == ("", "new!")


def test_one_key_does_not_fill_the_room_for_text(monkeypatch):
    monkeypatch.setattr(feed_module, "MAX_TEXT_CHARS", 20)

    async def scenario(feed):
        feed.append(JOB, 1, offset=0, text="x" * 10, teller="k")
        with pytest.raises(MarketError):
            feed.append(OTHER, 1, offset=0, text="x", teller="k")
        assert feed.append(b"t" * 16, 1, offset=0, text="x" * 10, teller="other") == 10
        feed.end(JOB)
        await settle()
        assert feed.append(OTHER, 1, offset=0, text="x" * 10, teller="k") == 10

    run(scenario)


def test_one_job_and_all_jobs_together_have_a_bound_and_an_end_makes_room(monkeypatch):
    monkeypatch.setattr(feed_module, "MAX_JOB_TEXT_CHARS", 10)
    monkeypatch.setattr(feed_module, "MAX_TEXT_CHARS", 15)

    async def scenario(feed):
        feed.append(JOB, 1, offset=0, text="x" * 10)
        with pytest.raises(MarketError) as refused:
            feed.append(JOB, 1, offset=10, text="x")
        assert refused.value.code == "SYSTEM_OVERLOADED"
        assert feed.append(JOB, 1, offset=5, text="x" * 5) == 10, "what is known needs no room"
        feed.append(OTHER, 1, offset=0, text="x" * 5)
        with pytest.raises(MarketError):
            feed.append(OTHER, 1, offset=5, text="x")
        feed.append(JOB, 2, offset=0, text="")
        assert feed.append(OTHER, 1, offset=5, text="x" * 5) == 10, "an attempt that is gone"
        feed.end(OTHER)
        await settle()
        assert feed.text(OTHER, 1) == ""
        assert feed.append(JOB, 2, offset=0, text="x" * 10) == 10

    run(scenario)


def test_the_end_of_an_attempt_from_another_thread_also_drops_text_that_comes_just_before_it():
    async def scenario(feed):
        # The loop has read the job as running, the writer ends it, the loop adds the text.
        thread = threading.Thread(target=feed.end, args=(JOB,))
        thread.start()
        thread.join()
        feed.append(JOB, 1, offset=0, text="late")
        await settle()
        assert feed.text(JOB, 1) == ""
        assert feed._chars == 0

    run(scenario)


@pytest.mark.parametrize("news", ["note", "end"])
def test_news_from_another_thread_wakes_exactly_who_waits_for_that_job(news):
    async def scenario(feed):
        with feed.watch(JOB) as mine, feed.watch(JOB) as also, feed.watch(OTHER) as others:
            waiting = [asyncio.create_task(watch.wait(LONG_S)) for watch in (mine, also, others)]
            await settle()
            thread = threading.Thread(target=getattr(feed, news), args=(JOB,))
            thread.start()
            assert await waiting[0]
            assert await waiting[1]
            await settle()
            assert not waiting[2].done()
            feed.close()
            assert not await waiting[2]
            thread.join()

    run(scenario)


def test_news_between_two_waits_is_kept_and_only_once():
    async def scenario(feed):
        with feed.watch(JOB) as watch:
            feed.note(JOB)
            feed.note(JOB)
            await settle()
            waiting = asyncio.create_task(watch.wait(LONG_S))
            assert await waiting
            again = asyncio.create_task(watch.wait(LONG_S))
            await settle()
            assert not again.done()
            again.cancel()

    run(scenario)


def test_text_alone_wakes_only_who_wants_it():
    async def scenario(feed):
        with feed.watch(JOB, text=True) as reader, feed.watch(JOB) as other:
            both = [asyncio.create_task(watch.wait(LONG_S)) for watch in (reader, other)]
            await settle()
            feed.append(JOB, 1, offset=0, text="a")
            assert await both[0]
            assert not both[1].done()
            feed.append(JOB, 1, offset=0, text="a")
            with_nothing_new = asyncio.create_task(reader.wait(LONG_S))
            await settle()
            assert not with_nothing_new.done()
            feed.note(JOB)
            assert await both[1]
            await with_nothing_new

    run(scenario)


def test_blocks_wake_who_waits_for_them_and_no_jobs():
    async def scenario(feed):
        with feed.watch(BLOCKS) as block, feed.watch(JOB) as job:
            both = [asyncio.create_task(watch.wait(LONG_S)) for watch in (block, job)]
            await settle()
            feed.note(BLOCKS)
            assert await both[0]
            assert not both[1].done()
            both[1].cancel()

    run(scenario)


def test_nobody_waits_at_the_end_or_after_it_and_nothing_is_left_of_who_has_left():
    async def scenario(feed):
        with feed.watch(JOB) as watch:
            waiting = asyncio.create_task(watch.wait(LONG_S))
            await settle()
            assert feed.waiting == 1
            feed.close()
            assert not await waiting
        with feed.watch(JOB) as late:
            assert not await late.wait(LONG_S)
        assert (feed.waiting, feed._watches) == (0, {})

    run(scenario)


def test_the_time_of_a_wait_is_over_without_news():
    async def scenario(feed):
        with feed.watch(JOB) as watch:
            assert await watch.wait(0)
            assert await watch.wait(-1)

    run(scenario)


async def hear(feed: JobFeed, watch, timeout_s: float) -> None:
    """Wait for news that come at once."""
    waiting = asyncio.create_task(watch.wait(timeout_s))
    await settle()
    assert not waiting.done()
    feed.note(JOB)
    assert await waiting


def test_a_wait_may_be_shorter_than_the_one_before():
    async def scenario(feed):
        with feed.watch(JOB) as watch:
            await hear(feed, watch, 3_600)
            assert await watch.wait(0.01)

    run(scenario)


def test_a_wait_may_be_longer_than_the_one_before():
    async def scenario(feed):
        now = asyncio.get_running_loop().time
        with feed.watch(JOB) as watch:
            await hear(feed, watch, 0.05)
            began = now()
            assert await watch.wait(0.2)
            assert now() >= began + 0.2

    run(scenario)


def test_who_waits_no_more_leaves_no_timer():
    async def scenario(feed):
        with feed.watch(JOB) as watch:
            await hear(feed, watch, 3_600)
            timer = watch._timer
        assert timer.cancelled()

    run(scenario)


def test_news_after_the_loop_has_closed_is_nobodys():
    feed = JobFeed()

    async def bind():
        feed.bind()

    asyncio.run(bind())
    feed.end(JOB)
    feed.note(JOB)
