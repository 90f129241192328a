"""The writer's batches: how often works run, and how replies are brought."""

import pytest

from ledger.errors import MarketError
from ledger.store.database import Database
from tests.test_database import held, insert, migrations, names

TIMEOUT_S = 30


@pytest.fixture
def database(tmp_path):
    database = Database(tmp_path / "test.db", migrations)
    yield database
    database.close()


def count_runs(database, work) -> int:
    """How often a work runs that shares its batch with `work`, which is refused."""
    runs = []

    def counted(connection):
        runs.append(1)
        insert("counted")(connection)

    with held(database):
        first, refused = database.write(counted), database.write(work)
    first.result(TIMEOUT_S)
    with pytest.raises(MarketError):
        refused.result(TIMEOUT_S)
    assert names(database.path) == ["counted"]
    return len(runs)


def refuse(_connection):
    raise MarketError("JOB_ALREADY_CLAIMED", "taken")


def refuse_half_done(connection):
    insert("gone")(connection)
    refuse(connection)


def test_a_refusal_that_changed_nothing_costs_the_others_nothing(database):
    assert count_runs(database, refuse) == 1


def test_a_refusal_that_changed_something_has_its_batch_done_again(database):
    assert count_runs(database, refuse_half_done) == 2


def test_a_later_batch_needs_no_savepoints_again(database):
    assert count_runs(database, refuse_half_done) == 2
    statements = []
    database.write(lambda c: c.set_trace_callback(statements.append)).result(TIMEOUT_S)
    database.write(insert("a")).result(TIMEOUT_S)
    database.write(lambda c: c.set_trace_callback(None)).result(TIMEOUT_S)
    assert not [statement for statement in statements if "SAVEPOINT" in statement]


# --- replies by post ----------------------------------------------------------------------------


def settle(database):
    """Return once the replies of earlier batches were posted."""
    database.write(lambda _: None).result(TIMEOUT_S)


def test_replies_of_one_batch_come_in_one_letter_after_the_commit(database):
    letters, seen = [], []

    def post(function, letter):
        seen.append(names(database.path))
        letters.append(lambda: function(letter))

    replies = []
    with held(database):
        for work in (insert("a"), refuse, insert("b")):
            database.send(work, lambda *reply: replies.append(reply), post)
    settle(database)
    assert seen == [["a", "b"]]
    assert replies == []  # nothing is told but by post
    letters[0]()
    assert [type(error) for _, error in replies] == [type(None), MarketError, type(None)]


def test_each_place_gets_a_letter_of_its_own(database):
    letters = []

    def left(_, letter):
        letters.append(("left", len(letter)))

    def right(_, letter):
        letters.append(("right", len(letter)))

    with held(database):
        for post in (left, right, left):
            database.send(lambda _: None, lambda *_: None, post)
    settle(database)
    assert letters == [("left", 2), ("right", 1)]


def test_a_reply_that_fails_keeps_no_other_from_its_own(database, caplog):
    heard = []

    def fail(_result, _error):
        raise ValueError("a bug")

    def call(function, letter):
        function(letter)

    with held(database):
        database.send(insert("a"), fail, call)
        database.send(insert("b"), lambda *reply: heard.append(reply), call)
    settle(database)
    assert len(heard) == 1
    assert "what follows a write failed" in caplog.text


def test_a_loop_that_has_closed_does_not_end_the_writer(database):
    def closed(_function, _letter):
        raise RuntimeError("Event loop is closed")

    with held(database):
        database.send(insert("a"), lambda *_: None, closed)
    database.write(insert("b")).result(TIMEOUT_S)
    assert names(database.path) == ["a", "b"]
