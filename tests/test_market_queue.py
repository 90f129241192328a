"""Keys take turns in the queue; within a key the oldest job is first; nobody starves."""

import itertools
from collections import Counter

import pytest

from ledger.block import hash_genesis
from ledger.jobs import Job, normalize_model
from ledger.store import jobs as job_store
from ledger.store import lists, queue
from tests.builders import CREATED_MS, build_genesis
from tests.test_market_store import build_job, build_miner

GENESIS_HASH = hash_genesis(build_genesis())
ANY, A, B = build_miner("any", "*"), build_miner("a", "a"), build_miner("b", "b")
BOTH = build_miner("both", "a", "b")


class Queue:
    """A queue without clocks and leases."""

    def __init__(self, store) -> None:
        self.store = store
        self.numbers = itertools.count()

    def write(self, function, *args, **options):
        return self.store.write(lambda c: function(c, *args, **options)).result()

    def submit(self, owner: str, model: str = "a") -> Job:
        job = build_job(next(self.numbers), owner=owner, model=model)
        self.write(job_store.insert_job, job)
        return job

    def find(self, miner=ANY) -> Job | None:
        return queue.find_available(self.store.reader, miner)

    def take(self, miner=ANY) -> Job | None:
        """Claim what is offered."""
        job = self.find(miner)
        if job is not None:
            self.claim(job, miner)
        return job

    def claim(self, job: Job, miner=ANY) -> None:
        self.write(queue.take_turn, job, miner)
        self.write(
            job_store.claim_job,
            job,
            miner_id=miner.miner_id,
            provider=miner.miner_id,
            claimed_by="key",
            now_ms=CREATED_MS,
            lease_expires_at_ms=CREATED_MS + 1,
            heartbeat=False,
        )

    def lose(self, job: Job) -> None:
        held = job_store.load_job(self.store.reader, job.id)
        self.write(job_store.requeue_job, held, reason="requeued")

    def cancel(self, job: Job) -> None:
        self.write(
            job_store.end_job, job, state="cancelled", reason="cancelled_by_client", now_ms=9
        )

    def ahead(self, job: Job) -> int:
        return queue.count_ahead(self.store.reader, job)

    def take_all(self, miner=ANY) -> list[Job]:
        return list(iter(lambda: self.take(miner), None))


@pytest.fixture
def waiting(tmp_path, open_store):
    store = open_store(tmp_path / "node.db", GENESIS_HASH)
    yield Queue(store)
    store.close()


def owners(jobs) -> str:
    return "".join(job.owner for job in jobs)


def test_one_key_alone_is_served_in_the_order_of_submission(waiting):
    jobs = [waiting.submit("x", model) for model in "abbaab"]
    assert [job.id for job in waiting.take_all(BOTH)] == [job.id for job in jobs]


def test_a_key_with_many_jobs_does_not_keep_others_waiting(waiting):
    many = [waiting.submit("x") for _ in range(6)]
    few = [waiting.submit("y"), waiting.submit("z"), waiting.submit("y")]
    taken = waiting.take_all(A)
    assert owners(taken) == "xyzxyxxxx"
    assert [job.id for job in taken if job.owner == "x"] == [job.id for job in many]
    assert [job.id for job in taken if job.owner == "y"] == [few[0].id, few[2].id]


@pytest.mark.parametrize("miner", [ANY, A, BOTH], ids=lambda miner: miner.miner_id)
def test_a_key_that_always_comes_again_does_not_pass_one_that_waits(waiting, miner):
    """Its row in the queue is gone each time its one job is taken, but its turn is not."""
    for _ in range(5):
        waiting.submit("x")
    taken = []
    for _ in range(8):
        waiting.submit("y")
        taken.append(waiting.take(miner))
    assert owners(taken[:8]) in {"xyxyxyxy", "yxyxyxyx"}


def test_many_models_give_a_key_no_more_turns(waiting):
    for model in "abcdefgh":
        waiting.submit("x", model)
    for _ in range(4):
        waiting.submit("y", "a")
    assert owners(waiting.take_all()[:8]) == "xyxyxyxy"


def test_turns_for_one_model_do_not_cost_those_for_another(waiting):
    """A key that is served all the time elsewhere still gets its turn here."""
    waiting.submit("x", "a")
    for _ in range(3):
        waiting.submit("y", "a")
    assert waiting.take(A).owner == "x"
    waiting.submit("x", "a")
    for _ in range(5):
        waiting.submit("x", "b")
        assert waiting.take(B).owner == "x"
    assert [waiting.take(A).owner for _ in range(2)] == ["y", "x"]


def test_nobody_starves_whatever_others_submit_and_miners_serve(waiting):
    """Between two jobs of one key, every other key gets as many as there are kinds of miners."""
    patient = waiting.submit("p", "a")
    miners = (A, B, BOTH, ANY)
    served = Counter()
    for number in range(40):
        for owner in ("x", "y"):
            waiting.submit(owner, "ab"[number % 2])
        job = waiting.take(miners[number % 4])
        served[job.owner] += 1
        if job.id == patient.id:
            break
    else:
        pytest.fail("starved")
    assert max(served["x"], served["y"]) <= 2


def test_a_requeued_job_is_first_in_its_key_and_last_for_the_miner_that_lost_it(waiting):
    first = waiting.submit("x")
    second = waiting.submit("x")
    assert waiting.take(A).id == first.id
    waiting.lose(first)
    assert waiting.find(BOTH).id == first.id
    assert waiting.find(A).id == second.id
    other = waiting.submit("y")
    waiting.cancel(second)
    assert waiting.take(A).id == other.id
    assert waiting.find(A).id == first.id  # rather than nothing


def test_the_position_in_the_queue_is_how_many_are_taken_first(waiting):
    jobs = [waiting.submit(owner) for owner in "xxxyzzxyz"]
    waiting.take(A)
    waiting.take(A)
    left = {job.id: waiting.ahead(job) for job in jobs if job_is_pending(waiting, job)}
    for expected, job in enumerate(waiting.take_all(A)):
        assert left[job.id] == expected
    assert waiting.ahead(jobs[0]) == 0


def job_is_pending(waiting, job) -> bool:
    return job_store.load_job(waiting.store.reader, job.id).state == "pending"


def test_rows_and_counts_follow_every_transition(waiting):
    jobs = [waiting.submit(owner, model) for owner, model in itertools.product("xy", "ab" * 3)]
    for job in jobs[::2]:
        waiting.claim(job)
    waiting.lose(jobs[0])
    waiting.cancel(jobs[1])
    waiting.cancel(job_store.load_job(waiting.store.reader, jobs[2].id))
    check_counts(waiting)
    waiting.take_all()
    check_counts(waiting)
    assert waiting.store.reader.execute("SELECT count(*) FROM queues").fetchone()[0] == 0


def check_counts(waiting) -> None:
    reader = waiting.store.reader
    rows = reader.execute("SELECT owner, model, state FROM jobs").fetchall()
    for state in ("pending", "running", "cancelled"):
        for owner in ("x", "y"):
            expected = sum((row[0], row[2]) == (owner, state) for row in rows)
            assert lists.count_jobs(reader, owner=owner, state=state) == expected
        assert lists.count_jobs(reader, state=state) == sum(row[2] == state for row in rows)
    pending = Counter((row[0], normalize_model(row[1])) for row in rows if row[2] == "pending")
    stored = reader.execute("SELECT owner, model_key, pending FROM queues")
    assert {(row[0], row[1]): row[2] for row in stored} == pending
