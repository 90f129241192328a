"""A signal reaches everybody who waits, from whatever thread it is fired."""

import asyncio
import threading

from node.signal import Signal

LONG_S = 20


def fire_here(signal: Signal) -> None:
    signal.fire()


def fire_elsewhere(signal: Signal) -> None:
    thread = threading.Thread(target=signal.fire)
    thread.start()
    thread.join()


async def _meet(fire, waiters: int) -> list[float]:
    """Return how long each waited, in s; a signal that is fired before is none for them."""
    signal, loop = Signal(), asyncio.get_running_loop()
    signal.bind()
    fire(signal)
    await asyncio.sleep(0)
    began = loop.time()
    tasks = [asyncio.ensure_future(signal.wait(LONG_S)) for _ in range(waiters)]
    await asyncio.sleep(0)
    assert signal.waiting == waiters
    assert not any(task.done() for task in tasks)
    fire(signal)
    await asyncio.gather(*tasks)
    assert signal.waiting == 0
    return [loop.time() - began for _ in tasks]


def test_all_who_wait_are_woken_from_any_thread_and_the_past_wakes_nobody():
    for fire in (fire_here, fire_elsewhere):
        for waiters in (1, 3):
            assert max(asyncio.run(_meet(fire, waiters))) < LONG_S


def test_without_a_loop_nobody_is_woken_and_nothing_fails():
    fire_here(Signal())
    fire_elsewhere(Signal())
