"""What the old system was seen to do wrong, each shown not to happen through the REST face."""

import subprocess
import sys
import threading
from collections import Counter
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from ledger.block import build_genesis_tip
from ledger.encoding import encode
from ledger.errors import StoreError
from ledger.store.fsck import verify_chain
from node.datadir import create_data_directory
from tests.api_node import MINER_KEY, build_registration, run_job, sign_report
from tests.builders import Chain, build_certificate, build_chain, build_key, build_receipt
from tests.caller import Caller
from tests.crawler import Skeleton, crawl
from tests.live import GENESIS_TIME_MS, ROOT, LiveFollower, LiveNode
from tests.sync_peer import ScriptedPeer, build_frame

VERIFIER = ROOT / "scripts/verify_receipt.py"
TIMEOUT_S = 60
MAX_WAITS = 30


@pytest.fixture
def strict(node):
    """Strict mode; every request says itself with which key."""
    with node.client("strict") as client:
        yield client


def keyed(node, role):
    return {"X-Api-Key": node.keys[role]}


def claim(client, node, *, miner="m1", prompt="Why?", **fields):
    """A job that `miner` runs, with the node's client and miner keys; returns its path."""
    body = {"miner_id": miner, "capabilities": ["*"]}
    client.post("/v1/miners/register", json=body, headers=keyed(node, "miner"))
    order = {"prompt": prompt}
    job = client.post("/v1/jobs", json=order, headers=keyed(node, "client")).json()
    place = f"/v1/jobs/{job['job_id']}"
    taken = client.post(
        f"{place}/claim", json={"miner_id": miner, **fields}, headers=keyed(node, "miner")
    )
    assert taken.status_code == 200, taken.text
    return place


def refused(answer, status, code):
    assert (answer.status_code, answer.json()["error_code"]) == (status, code), answer.text


# --- who is paid, and for what -----------------------------------------------------------------


def test_any_key_holder_completes_any_job_under_any_name_with_any_price(strict, node):
    place = claim(strict, node)
    done = {"miner_id": "m1", "result": "r", "price": 1e6, "price_micros": 10**12, "client": "x"}
    stranger = {"X-Api-Key": node.create_key("miner")}

    def complete(headers, **changes):
        return strict.post(f"{place}/complete", json={**done, **changes}, headers=headers)

    refused(complete({}), 401, "AUTH_MISSING_KEY")
    refused(complete(keyed(node, "client")), 403, "AUTH_INSUFFICIENT_SCOPE")
    refused(complete(stranger), 403, "AUTH_INSUFFICIENT_SCOPE")
    other = {"miner_id": "m2", "capabilities": ["*"]}
    strict.post("/v1/miners/register", json=other, headers=stranger)
    refused(complete(stranger, miner_id="m2"), 409, "JOB_LEASE_LOST")
    refused(complete(keyed(node, "miner"), miner_id="m2"), 403, "AUTH_INSUFFICIENT_SCOPE")
    node.now_ms += 2_000
    receipt = complete(keyed(node, "miner")).json()
    assert (receipt["units"], receipt["price"]) == (2, 0.001), "the coordinator's clock and price"
    assert (receipt["provider"], receipt["client"] != "x") == ("m1", True)


def test_more_units_are_billed_than_a_job_can_have(strict, node):
    place = claim(strict, node)
    report = {"miner_id": "m1", "result": "r", "unit_type": "tokens", "units": 10**9}
    report |= {"prompt_tokens": 1, "completion_tokens": 10**9 - 1}
    answer = strict.post(f"{place}/complete", json=report, headers=keyed(node, "miner"))
    refused(answer, 400, "VALIDATION_FAILED")
    assert answer.json()["errors"][0]["path"] == "completion_tokens"
    assert strict.get("/v1/receipts").json() == []


def test_a_second_result_overwrites_and_signs_a_second_receipt(strict, node):
    place = claim(strict, node)

    def complete(result):
        body = {"miner_id": "m1", "result": result}
        return strict.post(f"{place}/complete", json=body, headers=keyed(node, "miner"))

    first = complete("one").json()
    refused(complete("another"), 409, "JOB_RESULT_CONFLICT")
    assert complete("one").json() == first
    assert strict.get("/v1/receipts").json() == [first]
    assert strict.get(place, headers=keyed(node, "client")).json()["result"] == "one"


def test_results_are_accepted_for_cancelled_jobs(strict, node):
    place = claim(strict, node)
    strict.post(f"{place}/cancel", headers=keyed(node, "client")).raise_for_status()
    body = {"miner_id": "m1", "result": "r"}
    answer = strict.post(f"{place}/complete", json=body, headers=keyed(node, "miner"))
    refused(answer, 409, "JOB_ALREADY_CANCELLED")
    assert strict.get("/v1/receipts").json() == []


def test_failures_are_paid(strict, node):
    place = claim(strict, node)
    node.now_ms += 60_000
    body = {"miner_id": "m1", "reason": "out of memory", "retryable": False}
    answer = strict.post(f"{place}/fail", json=body, headers=keyed(node, "miner")).json()
    assert answer["status"] == "failed"
    assert "receipt_id" not in answer
    late = {"miner_id": "m1", "result": "r"}
    refused(
        strict.post(f"{place}/complete", json=late, headers=keyed(node, "miner")),
        409,
        "JOB_ALREADY_COMPLETED",
    )
    assert strict.get("/v1/receipts").json() == []
    account = f"/v1/accounts/{answer['client']}/statement"
    assert strict.get(account).json()["totals"]["spent"]["price_micros"] == 0


# --- who gets a job ----------------------------------------------------------------------------


@contextmanager
def second_server(node):
    """The second of two processes that serve one node.db; see tests/second_server.py."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.second_server", str(node.data.root)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process.stdout.readline().strip().rsplit(" ", 1)[-1]
    finally:
        process.stdin.close()
        assert process.wait(TIMEOUT_S) == 0
        process.stdout.close()


class Poller(threading.Thread):
    """A miner that asks both servers in turn, and hands in where it did not claim."""

    def __init__(self, urls, number, start):
        super().__init__()
        self.urls, self.miner, self.start_together = urls, f"poller-{number}", start
        self.claimed, self.receipts, self.lost = [], [], 0
        self.problem = None

    def run(self):
        try:
            with Caller(self.urls[0]) as first, Caller(self.urls[1]) as second:
                first.post("/v1/miners/register", miner_id=self.miner, capabilities=["*"])
                self.start_together.wait(TIMEOUT_S)
                self._work([first, second])
        except Exception as error:
            self.problem = error

    def _work(self, servers):
        while True:
            servers.reverse()
            job = servers[0].get(f"/v1/jobs/available?miner_id={self.miner}").json()
            if job is None:
                return
            place = f"/v1/jobs/{job['job_id']}"
            taken = servers[0].post(f"{place}/claim", miner_id=self.miner)
            if taken.status_code == 409:
                self.lost += 1
                continue
            taken.raise_for_status()
            self.claimed.append(job["job_id"])
            done = servers[1].post(f"{place}/complete", miner_id=self.miner, result="r")
            self.receipts.append(done.raise_for_status().json()["receipt_id"])


def test_two_server_workers_hand_one_job_to_two_pollers(tmp_path):
    jobs, pollers = 168, 8
    node = LiveNode(tmp_path / "data", "--max-pending-per-key", str(jobs))
    key = node.create_key("client")
    node.start()
    try:
        with Caller(node.url, key) as client, second_server(node) as other:
            made = {client.post("/v1/jobs", prompt="p").json()["job_id"] for _ in range(jobs)}
            together = threading.Barrier(pollers)
            threads = [Poller((node.url, other), n, together) for n in range(pollers)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(TIMEOUT_S)
            assert [thread.problem for thread in threads] == [None] * pollers
    finally:
        node.stop()
    claims = Counter(job for thread in threads for job in thread.claimed)
    assert claims.keys() == made
    assert set(claims.values()) == {1}
    assert len({r for thread in threads for r in thread.receipts}) == jobs
    assert sum(thread.lost for thread in threads) > 0, "there was no race"


def test_a_dead_miner_starves_the_queue(node):
    with node.client("dev", "admin") as client:
        held = claim(client, node, miner="dead", heartbeat=True).rpartition("/")[2]
        alive = {"miner_id": "alive", "capabilities": ["*"]}
        client.post("/v1/miners/register", json=alive)
        order, owner = {"prompt": "Next?"}, keyed(node, "client")
        waiting = client.post("/v1/jobs", json=order, headers=owner).json()["job_id"]

        def offered(miner):
            return client.get(f"/v1/jobs/available?miner_id={miner}").json()["job_id"]

        assert offered("alive") == waiting, "while the dead miner holds another"
        for attempt in (1, 2):
            node.now_ms += 60_000
            client.portal.call(node.coordinator.sweep)
            assert client.get(f"/v1/jobs/{held}").json()["attempt"] == attempt
            assert offered("alive") == held, "the head of its key's queue"
            assert offered("dead") == waiting, "who lost a job gets it last"
            body = {"miner_id": "dead", "heartbeat": True}
            client.post(f"/v1/jobs/{held}/claim", json=body).raise_for_status()
        node.now_ms += 60_000
        client.portal.call(node.coordinator.sweep)
        job = client.get(f"/v1/jobs/{held}").json()
        assert (job["status"], job["status_reason"]) == ("failed", "max_attempts")
        assert offered("alive") == waiting


# --- what is signed, and who sees it -----------------------------------------------------------


def verify(node, client, receipt_id, folder):
    bundle, genesis = folder / f"{receipt_id}.json", folder / "genesis.json"
    bundle.write_bytes(client.get(f"/v1/receipts/{receipt_id}/proof").content)
    genesis.write_bytes(encode(node.genesis))
    return subprocess.run(
        [sys.executable, str(VERIFIER), str(bundle), "--genesis", str(genesis)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )


def test_every_receipt_fails_its_own_verifier_because_fields_are_added_after_signing(
    node, tmp_path
):
    with node.client("dev", "admin") as client:
        _, unsigned = run_job(client, node, miner="m1")
        client.post("/v1/miners/register", json=build_registration(node, "m2", MINER_KEY))
        place = f"/v1/jobs/{client.post('/v1/jobs', json={'prompt': 'p'}).json()['job_id']}"
        told = client.post(f"{place}/claim", json={"miner_id": "m2"}).json()
        report = sign_report(told, MINER_KEY, miner="m2", result="r", completed_at_ms=node.now_ms)
        signed = client.post(f"{place}/complete", json=report).json()
        node.start_sealing()
        node.wait_final(1)
        for receipt in (unsigned, signed):
            result = verify(node, client, receipt["receipt_id"], tmp_path)
            assert result.returncode == 0, result.stdout + result.stderr


def test_prompts_and_results_are_public(tmp_path):
    node = LiveNode(tmp_path / "data", "--mode", "strict")
    admin = node.create_key("admin")
    other = node.create_key("client")
    node.start()
    try:
        secrets = ("a very private prompt", "a very private result")
        with Caller(node.url, admin) as caller:
            caller.post("/v1/miners/register", miner_id="m1", capabilities=["*"])
            job = caller.post("/v1/jobs", prompt=secrets[0]).json()["job_id"]
            caller.post(f"/v1/jobs/{job}/claim", miner_id="m1")
            done = caller.post(f"/v1/jobs/{job}/complete", miner_id="m1", result=secrets[1]).json()
            caller.wait_for_block(1)
            owned = caller.get(f"/v1/jobs/{job}").json()
            assert (owned["prompt"], owned["result"]) == secrets
        receipt = f"/receipts/{done['receipt_id']}"
        public = [f"/v1/jobs/{job}", "/v1/jobs", f"/v1{receipt}", f"/v1{receipt}/proof", receipt]
        public += ["/", "/blocks/1", "/receipts", "/network", "/explorer/transactions"]
        public += [f"/search?q={job}", "/p2p/blocks?from=1", "/tile/entries/000.p/1"]
        for key in ("", other):
            with Caller(node.url, key) as reader:
                for path in public:
                    answer = reader.get(path)
                    assert answer.status_code in {200, 303}, path
                    assert not [secret for secret in secrets if secret in answer.text], path
    finally:
        node.stop()
    for name in ("ledger.db", "node.log"):
        stored = (node.data.root / name).read_bytes()
        assert not [secret for secret in secrets if secret.encode() in stored], name


# --- what a chain is ---------------------------------------------------------------------------


def forge(genesis, members, voters):
    """A peer's chain of one block that these keys made and certified."""
    chain = Chain(genesis=genesis, members=members, tip=build_genesis_tip(genesis))
    block = chain.append(build_receipt(genesis))
    return chain, build_frame(block, build_certificate(block.header, voters))


@pytest.mark.parametrize("who", ["proposes and votes", "votes"])
def test_a_forged_block_from_a_random_key_is_accepted(tmp_path, who):
    honest = build_chain()
    forger = [build_key("a random key")]
    members = forger if who == "proposes and votes" else honest.members
    chain, frame = forge(honest.genesis, members, forger)
    genesis = tmp_path / "genesis.json"
    genesis.write_bytes(encode(honest.genesis) + b"\n")
    with ScriptedPeer(chain, lambda first: frame) as peer:
        source = SimpleNamespace(url=peer.url, data=SimpleNamespace(genesis=genesis))
        follower = LiveFollower(tmp_path / "follower", source)
        follower.start()
        try:
            with Caller(follower.url) as caller:
                sync = wait_until(caller, "stalled")
                assert sync["last_error"]
                assert caller.get("/health").json()["height"] == 0
                assert caller.get("/v1/receipts").json() == []
            assert peer.asked[0] == 1
        finally:
            follower.stop()


def wait_until(caller, state):
    """Return what a follower says of its sync once it says so; each wait is for the next block."""
    for _ in range(MAX_WAITS):
        health = caller.get("/health").json()
        if health["sync"]["state"] == state:
            return health["sync"]
        caller.get(f"/p2p/blocks?from={health['height'] + 1}&limit=1&wait_ms=500")
    raise AssertionError(health)


def test_a_follower_is_in_sync_with_400_of_400_transactions_not_replayed(tmp_path):
    node = LiveNode(tmp_path / "node")
    node.key = node.create_key("admin")
    node.start()
    follower = LiveFollower(tmp_path / "follower", node)
    try:
        with Caller(node.url, node.key) as caller:
            receipts = [caller.finish_job() for _ in range(400)]
            height = wait_until_all_final(caller, len(receipts))
            tip = caller.get(f"/blocks/{height}.json").json()
            follower.start()
            with Caller(follower.url) as reader:
                reader.wait_for_block(height)
                assert wait_until(reader, "idle")["height"] == height
                assert reader.get("/explorer/stats").json()["total_receipts"] == 400
                assert reader.get(f"/blocks/{height}.json").json() == tip
                states = {reader.get(f"/v1/receipts/{r}").json()["status"] for r in receipts}
                assert states == {"final"}
    finally:
        node.stop()
        follower.stop()
    genesis = node.data.load_genesis()
    tips = [verify_chain(n.data.ledger, genesis, lambda *_: None) for n in (node, follower)]
    assert tips[0] == tips[1]
    assert tips[0].tree_size == 400


def wait_until_all_final(caller, count):
    """Return the height at which all receipts are on the chain."""
    for _ in range(MAX_WAITS):
        height = caller.get("/health").json()["height"]
        if caller.get("/explorer/stats").json()["total_receipts"] == count:
            return height
        caller.wait_for_block(height + 1)
    raise AssertionError("receipts are still pending")


# --- what a page shows -------------------------------------------------------------------------

MARKUP = "<x-hostile onmouseover=alert(1)>\"'</script><script>alert(2)</script>"


class HostileNode(LiveNode):
    """An authority whose name is markup."""

    def _prepare(self, root):
        return create_data_directory(
            root, network="aitbc-test", name=MARKUP[:64], now_ms=GENESIS_TIME_MS
        )


class Recorder:
    """Keeps what a crawl was answered."""

    def __init__(self, caller):
        self._caller, self.pages = caller, {}

    def get(self, path):
        answer = self._caller.get(path)
        self.pages[path] = answer
        return answer


def test_stored_xss_through_chain_data(tmp_path):
    node = HostileNode(tmp_path / "data")
    with pytest.raises(StoreError):
        node.create_key("client", MARKUP)
    key = node.create_key("admin")
    node.start()
    try:
        with Caller(node.url, key) as caller:
            named = caller.post("/v1/miners/register", miner_id=MARKUP, capabilities=["*"])
            refused(named, 400, "VALIDATION_FAILED")
            miner = {"miner_id": "m1", "capabilities": [MARKUP], "gpu_info": {"name": MARKUP}}
            caller.post("/v1/miners/register", **miner).raise_for_status()
            job = caller.post("/v1/jobs", prompt=MARKUP, model=MARKUP).json()["job_id"]
            caller.post(f"/v1/jobs/{job}/claim", miner_id="m1").raise_for_status()
            done = {"miner_id": "m1", "result": MARKUP}
            caller.post(f"/v1/jobs/{job}/complete", **done).raise_for_status()
            caller.wait_for_block(1)
            recorder = Recorder(caller)
            crawl(recorder, "", ["/", f"/search?q={MARKUP}", "/blocks/1", "/network"])
    finally:
        node.stop()
    pages = {
        path: answer
        for path, answer in recorder.pages.items()
        if answer.headers.get("content-type", "").startswith("text/html")
    }
    for path, answer in pages.items():
        skeleton = Skeleton(answer.text)
        names = {tag for tag, _ in skeleton.tags}
        attributes = {name for _, given in skeleton.tags for name in given}
        assert "x-hostile" not in names, path
        assert not [name for name in attributes if name.startswith("on")], path
        assert "alert(2)" not in scripts(answer.text), path
        assert "'unsafe-inline'" not in answer.headers["content-security-policy"], path
    shown = [path for path, answer in pages.items() if "x-hostile" in answer.text]
    assert len(shown) >= 3, "the names are shown, as text"


def scripts(html):
    """What a page would run that stands in it."""
    return "".join(part.split("</script>")[0] for part in html.split("<script")[1:])
