"""Who is silent, and who is only thought to be."""

from consensus.presence import SILENT_MS, Presence
from tests.builders import build_authority_set, build_members

MEMBERS = build_members(4)
SET = build_authority_set(MEMBERS)
OWN = MEMBERS[0].account


def list_silent(presence: Presence, now_ms: int) -> set[int]:
    return set(presence.list_silent(SET, OWN, now_ms=now_ms))


def test_nobody_is_silent_before_ten_seconds_of_waiting_for_it():
    presence = Presence()
    assert list_silent(presence, 1_000) == set()
    for member in (1, 2):
        presence.hear(MEMBERS[member].account, now_ms=9_000)
    assert list_silent(presence, 1_000 + SILENT_MS - 1) == set()
    assert list_silent(presence, 1_000 + SILENT_MS) == {3}


def test_a_silent_member_that_speaks_again_is_not_silent():
    presence = Presence()
    list_silent(presence, 0)
    for member in (1, 2):
        presence.hear(MEMBERS[member].account, now_ms=SILENT_MS)
    assert list_silent(presence, SILENT_MS) == {3}
    presence.hear(MEMBERS[3].account, now_ms=SILENT_MS)
    assert list_silent(presence, SILENT_MS) == set()


def test_whoever_hears_less_than_a_quorum_blames_nobody():
    presence = Presence()
    list_silent(presence, 0)
    presence.hear(MEMBERS[1].account, now_ms=SILENT_MS)
    assert list_silent(presence, SILENT_MS) == set()  # two of four were heard, itself included
    presence.hear(MEMBERS[2].account, now_ms=SILENT_MS)
    assert list_silent(presence, SILENT_MS) == {3}


def test_a_new_member_has_ten_seconds_from_its_first_height():
    presence, bigger = Presence(), build_authority_set([*MEMBERS, *build_members(2, epoch=9)[1:]])
    list_silent(presence, 0)
    for member in (1, 2, 3):
        presence.hear(MEMBERS[member].account, now_ms=SILENT_MS)
    assert presence.list_silent(bigger, OWN, now_ms=SILENT_MS) == frozenset()
    for member in (1, 2, 3):
        presence.hear(MEMBERS[member].account, now_ms=2 * SILENT_MS)
    assert presence.list_silent(bigger, OWN, now_ms=2 * SILENT_MS) == {4}


def test_accounts_that_are_no_members_are_forgotten():
    presence = Presence()
    for number in range(100):
        presence.hear(f"stranger {number}", now_ms=0)
    list_silent(presence, 0)
    assert set(presence._heard_ms) == {member.account for member in MEMBERS}


def test_a_network_of_one_has_no_silent_members():
    alone = build_authority_set(MEMBERS[:1])
    assert Presence().list_silent(alone, OWN, now_ms=10**9) == frozenset()
