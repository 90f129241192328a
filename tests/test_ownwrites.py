"""Commits of ours that changed nothing of interest leave a file as it was; all others do not."""

import sys

import pytest

from ledger.store.ownwrites import WatchedState


class Header:
    """The header of a WAL's index, as commits of any process change it."""

    def __init__(self, commits: int = 7) -> None:
        self.commits = commits
        self.other = 0

    def read(self) -> bytes:
        count = (self.commits % (1 << 32)).to_bytes(4, sys.byteorder)
        return bytes(8) + count + self.other.to_bytes(4, "big") + bytes(32)

    def commit(self) -> None:
        self.commits += 1
        self.other += 1


@pytest.fixture(params=[7, (1 << 32) - 2], ids=["", "the count begins anew"])
def header(request):
    return Header(request.param)


@pytest.fixture
def state(header):
    return WatchedState(header)


def commit(state, header, *, is_harmless=True):
    state.begin_commit(is_harmless=is_harmless)
    header.commit()
    state.end_commit()


def test_harmless_commits_leave_it_as_it_was_at_every_moment(state, header):
    seen = {state.read()}
    for _ in range(3):
        state.begin_commit(is_harmless=True)
        seen.add(state.read())
        header.commit()
        seen.add(state.read())
        state.end_commit()
        seen.add(state.read())
    assert len(seen) == 1


def test_any_other_commit_changes_it_for_good(state, header):
    seen = [state.read()]
    for step in ("harmful", "another's", "harmful", "another's"):
        commit(state, header)
        assert state.read() == seen[-1]
        if step == "harmful":
            commit(state, header, is_harmless=False)
        else:
            header.commit()
        assert state.read() not in seen
        seen.append(state.read())


def test_a_commit_of_another_right_after_ours_is_not_taken_for_ours(state, header):
    before = state.read()
    state.begin_commit(is_harmless=True)
    header.commit()
    header.commit()
    assert state.read() != before
    state.end_commit()
    after = state.read()
    assert after != before
    commit(state, header)
    assert state.read() == after


def test_a_commit_that_failed_leaves_room_for_that_of_another(state, header):
    before = state.read()
    state.begin_commit(is_harmless=True)
    state.forget()
    header.commit()
    assert state.read() != before


def test_a_log_that_begins_anew_is_another_state(state, header):
    before = state.read()
    commit(state, header)
    header.other += 1
    assert state.read() != before
