"""Several front-ends on one PostgreSQL, as processes: what one knows all know, nothing is lost."""

import contextlib
import threading
import time

import httpx2
import pytest

from ledger.block import hash_genesis
from ledger.errors import StoreError
from ledger.store import jobs as job_store
from ledger.store.database import open_reader
from ledger.store.market import open_market
from node.config import choose_role
from node.opening import open_own_market
from tests.live import LiveFrontEnd, LiveNode
from tests.node_settings import build_settings
from tests.postgres import PostgresServer
from tests.test_cli import one_line, run_node
from tests.test_market_store import build_job

MINERS, JOBS, CLIENTS = 16, 96, 2
TIMEOUT_S = 60
PATIENCE_S = 0.05
WAIT_S = 25


class Stage:
    """An authority, two front-ends, and callers who turn to the other one when theirs is gone."""

    def __init__(self, root, server, stack):
        self.server, self._stack = server, stack
        database = server.url()
        self.authority = LiveNode(root / "authority", "--database", database)
        roles = ("client", "miner")
        self.keys = {role: self.authority.create_key(role, database=database) for role in roles}
        stack.callback(self.authority.kill)
        self.authority.start()
        self.fronts = [LiveFrontEnd(root / f"api-{n}", self.authority, database) for n in range(2)]
        for front in self.fronts:
            stack.callback(front.kill)
            front.start()

    def caller(self, role, place=0):
        caller = FrontEndCaller([front.url for front in self.fronts], self.keys[role], place)
        self._stack.callback(caller.http.close)
        return caller


class FrontEndCaller:
    """Asks one front-end; what a lost connection leaves open it asks the next one again."""

    def __init__(self, urls, key, place):
        self._urls, self._place = urls, place
        self.http = httpx2.Client(headers={"X-Api-Key": key}, trust_env=False, timeout=30)

    def ask(self, method, path, body=None, **headers):
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            url = self._urls[self._place % len(self._urls)]
            with contextlib.suppress(httpx2.TransportError):
                answer = self.http.request(method, url + path, json=body, headers=headers)
                if answer.status_code < 500:
                    return answer
            assert time.monotonic() < deadline, f"nobody answers {method} {path}"
            self._place += 1
            time.sleep(PATIENCE_S)  # nothing tells when a process is gone


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    with contextlib.ExitStack() as stack:
        server = PostgresServer()
        stack.callback(server.remove)
        yield Stage(tmp_path_factory.mktemp("frontends"), server, stack)


def await_that(is_so):
    deadline = time.monotonic() + TIMEOUT_S
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(PATIENCE_S)


def in_background(function, *args):
    """Start a thread; returns what ends it and gives what `function` returned."""
    results = []
    thread = threading.Thread(target=lambda: results.append(function(*args)))
    thread.start()

    def join():
        thread.join(TIMEOUT_S)
        return results[0]

    return join


def test_who_waits_at_one_front_end_hears_what_happens_at_another(stage):
    miner, client = stage.caller("miner", 0), stage.caller("client", 0)
    other_miner, other_client = stage.caller("miner", 1), stage.caller("client", 1)
    body = {"miner_id": "m"}
    miner.ask("POST", "/v1/miners/register", {**body, "capabilities": ["*"]})
    began = time.monotonic()
    poll = in_background(other_miner.ask, "GET", f"/v1/jobs/available?miner_id=m&wait={WAIT_S}")
    job = client.ask("POST", "/v1/jobs", {"prompt": "p"}).json()["job_id"]
    assert poll().json()["job_id"] == job
    wait = in_background(other_client.ask, "GET", f"/v1/jobs/{job}?wait={WAIT_S}")
    miner.ask("POST", f"/v1/jobs/{job}/claim", body)
    miner.ask("POST", f"/v1/jobs/{job}/complete", {**body, "result": "r"})
    ended = wait().json()
    assert (ended["status"], ended["result"]) == ("completed", "r")
    assert time.monotonic() - began < WAIT_S


def work(caller, name, is_over, completed):
    """One miner: poll, claim, complete, until all is done."""
    body = {"miner_id": name}
    caller.ask("POST", "/v1/miners/register", {**body, "capabilities": ["*"]})
    while not is_over.is_set():
        found = caller.ask("GET", f"/v1/jobs/available?miner_id={name}&wait=1")
        if found.json() is None:
            continue
        job = found.json()["job_id"]
        if caller.ask("POST", f"/v1/jobs/{job}/claim", body).status_code == 200:
            done = caller.ask("POST", f"/v1/jobs/{job}/complete", {**body, "result": name})
            if done.status_code == 200:
                completed.append((job, done.json()["receipt_id"]))


def submit(caller, number):
    """One client, who repeats what it isn't sure of under the same key; returns its jobs."""
    jobs = []
    while len(jobs) < JOBS // CLIENTS:
        repeat = {"Idempotency-Key": f"{number}-{len(jobs)}"}
        answer = caller.ask("POST", "/v1/jobs", {"prompt": "p"}, **repeat)
        if answer.status_code == 429:  # as many wait as the key may have
            time.sleep(PATIENCE_S)
            continue
        assert answer.is_success, answer.text
        jobs.append(answer.json()["job_id"])
    return jobs


def test_a_front_end_that_is_killed_loses_no_job_and_each_job_has_one_receipt(stage):
    """16 miners and two clients on two front-ends, one of which is killed half-way."""
    is_over, completed = threading.Event(), []
    clients = [in_background(submit, stage.caller("client", n), n) for n in range(CLIENTS)]
    miners = [
        in_background(work, stage.caller("miner", n), f"miner-{n}", is_over, completed)
        for n in range(MINERS)
    ]
    try:
        await_that(lambda: len(completed) >= JOBS // 3)
        stage.fronts[0].kill()
        submitted = [job for join in clients for job in join()]
        client = stage.caller("client", 1)
        ended = {
            job: client.ask("GET", f"/v1/jobs/{job}?wait={WAIT_S}").json() for job in submitted
        }
    finally:
        is_over.set()
        for join in miners:
            join()
        stage.fronts[0].start()
    assert len(ended) == JOBS
    assert {job["status"] for job in ended.values()} == {"completed"}
    assert all(ended[job]["receipt_id"] == receipt for job, receipt in completed)
    receipts = {job["receipt_id"] for job in ended.values()}
    await_that(lambda: receipts <= {receipt for receipt, _ in list_receipts(stage)})
    stored = [job for _, job in list_receipts(stage)]
    assert all(stored.count(job) == 1 for job in ended)


def list_receipts(stage):
    """What the authority's ledger holds, as (receipt, job)."""
    with contextlib.closing(open_reader(stage.authority.data.ledger)) as ledger:
        rows = ledger.execute("SELECT receipt_id, job_id FROM receipts").fetchall()
    return [tuple(row) for row in rows]


def test_front_ends_whose_database_is_away_say_so_and_come_back(stage):
    url = stage.fronts[1].url
    job = stage.caller("client").ask("POST", "/v1/jobs", {"prompt": "p"}).json()["job_id"]
    http = stage.caller("client").http
    stage.server.stop()
    try:
        await_that(lambda: http.get(f"{url}/health/ready").status_code == 503)
        for path in ("/health/ready", f"/v1/jobs/{job}"):
            refused = http.get(url + path)
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "2")
        assert http.get(f"{url}/").status_code == 503
    finally:
        stage.server.start()
    for node in (*stage.fronts, stage.authority):
        await_that(lambda u=node.url: http.get(f"{u}/health/ready").status_code == 200)
        assert http.get(f"{node.url}/v1/jobs/{job}").json()["status"] == "pending"
    assert stage.authority.stop() == 0
    stage.authority.start()


# --- roles ---------------------------------------------------------------------------------------

DATABASE = "postgresql://u:correct-horse@127.0.0.1:1/n"


@pytest.mark.parametrize(
    ("options", "role"),
    [
        ({}, "authority"),
        ({"follow": ("http://a",)}, "follower"),
        ({"role": "authority", "database": DATABASE}, "authority"),
    ],
)
def test_a_role_follows_from_the_options(options, role):
    assert choose_role(build_settings(**options)) == role


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"role": "api"}, "--role api needs --follow"),
        ({"role": "api", "follow": ("http://a",)}, "--role api needs --database"),
        (
            {"role": "api", "follow": ("http://a",), "database": DATABASE},
            "--role api needs --coordinator-key",
        ),
        ({"role": "follower"}, "--role follower needs --follow"),
        ({"role": "authority", "follow": ("http://a",)}, "--follow is not for --role authority"),
        ({"follow": ("http://a",), "database": DATABASE}, "--database is not for --role follower"),
    ],
)
def test_options_that_do_not_fit_a_role_are_refused(options, reason):
    with pytest.raises(StoreError, match=reason):
        choose_role(build_settings(**options))


def test_settings_do_not_show_the_database():
    assert "correct-horse" not in repr(build_settings(database=DATABASE))


def test_a_node_whose_file_holds_work_is_not_moved_to_a_database(tmp_path):
    node = LiveNode(tmp_path / "a")
    genesis_hash = hash_genesis(node.data.load_genesis())
    with contextlib.closing(open_market(node.data.market, genesis_hash)) as store:
        store.write(lambda c: job_store.insert_job(c, build_job(1))).result()
    with pytest.raises(StoreError, match="run this node without it until nothing is pending"):
        open_own_market(node.data, DATABASE, genesis_hash)


def test_a_database_that_cannot_be_reached_is_named_without_its_password(tmp_path):
    node = LiveNode(tmp_path / "a")
    done = run_node("--data", str(node.data.root), "--port", "0", "--database", DATABASE)
    assert "n on 127.0.0.1: cannot be opened" in one_line(done)
    assert "correct-horse" not in done.stdout + done.stderr
