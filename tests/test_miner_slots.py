"""Who gets which slot, and that the books of the cache stay true."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miner.engine.slots import Slots, common_prefix

MIN_SHARED = 8

LONG = list(range(100, 120))


def take(slots: Slots, prompt, owner=""):
    lot = slots.take(prompt, owner)
    slots.tokens(lot.slot)[:] = prompt[:-1]
    return lot.slot


def test_a_newcomer_gets_a_slot_next_to_those_in_use():
    slots = Slots(8, least_shared=MIN_SHARED)
    taken = [take(slots, [1, 2])]
    for _ in range(7):
        taken.append(take(slots, [1, 2]))
        assert sorted(taken) == list(range(min(taken), max(taken) + 1))
    assert not slots.is_free()


def test_a_hole_between_those_in_use_is_filled_first():
    slots = Slots(8, least_shared=MIN_SHARED)
    taken = sorted(take(slots, [1, 2]) for _ in range(4))
    slots.free(taken[1])
    assert take(slots, [1, 2]) == taken[1]


def test_the_slot_that_was_not_used_for_longest_is_taken_first():
    slots = Slots(4, least_shared=MIN_SHARED)
    order = []
    for _ in range(8):
        order.append(take(slots, [1, 2]))
        slots.free(order[-1])
    assert order[:4] == order[4:]
    assert sorted(order[:4]) == [0, 1, 2, 3]


def test_a_conversation_goes_on_in_its_own_slot():
    slots = Slots(4, least_shared=MIN_SHARED)
    first = take(slots, LONG)
    slots.free(first)
    lot = slots.take([*LONG, 7, 8], "")
    assert (lot.slot, lot.source, lot.shared) == (first, first, len(LONG) - 1)


def test_a_long_text_is_not_overwritten_for_a_short_common_beginning():
    slots = Slots(4, least_shared=MIN_SHARED)
    first = take(slots, LONG)
    slots.free(first)
    lot = slots.take([*LONG[:MIN_SHARED], 7, 8], "")
    assert lot.slot != first
    assert (lot.source, lot.shared) == (first, MIN_SHARED)


def test_what_another_slot_got_meanwhile_is_shared_within_one_owner():
    slots = Slots(4, least_shared=MIN_SHARED)
    first, second = slots.take(LONG, "anna").slot, slots.take([*LONG, 1], "anna").slot
    other = slots.take(LONG, "bert").slot
    assert slots.share_more(second, [*LONG, 1]) is None
    slots.tokens(first)[:] = LONG[:-1]
    assert slots.share_more(other, LONG) is None
    lot = slots.share_more(second, [*LONG, 1])
    assert (lot.slot, lot.source, lot.shared) == (second, first, len(LONG) - 1)
    assert slots.tokens(second) == LONG[:-1]
    assert slots.share_more(second, [*LONG, 1]) is None, "once is enough"


def test_a_slot_that_is_forgotten_is_not_shared():
    slots = Slots(2, least_shared=MIN_SHARED)
    slots.forget(take(slots, LONG))
    assert slots.take(LONG, "").shared == 0


@pytest.mark.parametrize(
    ("first", "second", "length"),
    [([], [1], 0), ([1, 2], [1, 2], 2), ([1, 2, 3], [1, 2], 2), ([1, 3], [1, 2], 1)],
)
def test_a_common_prefix_ends_at_the_first_difference(first, second, length):
    assert common_prefix(first, second) == length


@given(data=st.data())
def test_moves_leave_no_hole_between_those_that_are_stepped(data):
    slots, cache, busy = Slots(6, least_shared=MIN_SHARED), [None] * 6, {}
    for number in range(data.draw(st.integers(1, 25))):
        if busy and (len(busy) == 6 or data.draw(st.booleans())):
            gone = data.draw(st.sampled_from(sorted(busy)))
            slots.free(busy.pop(gone))
        else:
            slot = take(slots, [number] * data.draw(st.integers(2, 9)))
            busy[number], cache[slot] = slot, number
        by_slot = {slot: number for number, slot in busy.items()}
        for source, target in slots.fill_holes(sorted(by_slot)):
            cache[target] = cache[source]
            number_moved = by_slot.pop(source)
            by_slot[target] = number_moved
            busy[number_moved] = target
        held = sorted(by_slot)
        assert not held or held == list(range(held[0], held[-1] + 1))
        assert all(cache[slot] == number for slot, number in by_slot.items())
        assert all(slots.tokens(slot)[0] == number for slot, number in by_slot.items())
