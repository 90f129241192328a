"""`aitbc checkpoint` and `aitbc witness` against a node over HTTP, honest or not."""

import asyncio
import contextlib
import gzip
import time
from collections.abc import Callable
from functools import partial

import pytest
from click.testing import CliRunner
from starlette.applications import Starlette
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from api.app import build_api
from api.resource import ApiSettings
from ledger import merkle
from ledger.checkpoint import (
    Checkpoint,
    build_origin,
    read_checkpoint,
    sign_checkpoint,
)
from ledger.encoding import encode
from ledger.errors import InvalidNoteError
from ledger.note import MAX_NOTE_BYTES
from ledger.store.chain import ChainStore
from ledger.views import TreeViews
from node import follower as follower_module
from node import restclient
from node.checkpoints import CheckpointSigner
from node.cli import cli
from node.datadir import DataDirectory, load_key
from node.follower import open_follower, prepare_follower
from node.restclient import RequestFailedError, RestClient
from node.witness import WitnessThread, open_identity
from tests.api_server import serve
from tests.builders import Chain, build_chain, build_key, build_members, build_receipt
from tests.caller import Caller
from tests.live import LiveFollower, LiveNode
from tests.node_settings import build_settings

CHAIN = build_chain(1, blocks=[3, 2])
LOG = CHAIN.members[0]
ORIGIN = build_origin(CHAIN.genesis)
CHUNKS = 2 * MAX_NOTE_BYTES // 4096


def aitbc(*arguments):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


class Publisher:
    """A node's public face over a chain: `/checkpoint`, `/v1/consistency` and `/v1/genesis`."""

    def __init__(self, path, chain: Chain = CHAIN) -> None:
        self.store = ChainStore(path, chain.genesis)
        self.chain = chain
        self.tree = TreeViews(self.store)
        self.signer = CheckpointSigner(self.tree, chain.genesis, LOG)
        self.checkpoint = self.signer.newest
        self.follow()

    def follow(self) -> None:
        """Take the blocks that the chain has more."""
        for height in range(self.store.tip().height, len(self.chain.blocks)):
            block, certificate = self.chain.blocks[height], self.chain.certificates[height]
            self.store.append(block, certificate).result()

    @contextlib.contextmanager
    def serve(self):
        routes = build_api(
            None,
            None,
            ApiSettings(mode="dev", version="0", default_model="m"),
            tree=self.tree,
            checkpoint=lambda: self.checkpoint(),
            genesis=encode(self.chain.genesis),
            clock_ms=lambda: 0,
            make_request_id=lambda: "id",
        )
        with serve(Starlette(routes=routes)) as port:
            yield f"http://127.0.0.1:{port}"


@pytest.fixture
def publisher(tmp_path):
    publisher = Publisher(tmp_path / "ledger.db", build_chain(1, blocks=[3, 2]))
    yield publisher
    publisher.store.close()


@pytest.fixture
def url(publisher):
    with publisher.serve() as url:
        yield url


@pytest.fixture
def genesis(tmp_path):
    path = tmp_path / "genesis.json"
    path.write_bytes(encode(CHAIN.genesis) + b"\n")
    return path


def publish(at: int, chain: Chain = CHAIN, **changes) -> bytes:
    root = merkle.compute_root(at, chain.read)
    fields = {"origin": ORIGIN, "size": at, "root": root} | changes
    return sign_checkpoint(Checkpoint(**fields), LOG)


def test_a_checkpoint_is_shown_in_words_and_kept(publisher, url, genesis, tmp_path):
    kept = tmp_path / "kept"
    result = aitbc("checkpoint", "--url", url, "--genesis", genesis, "--save", kept)
    assert result.exit_code == 0, result.output
    root = merkle.compute_root(5, CHAIN.read).hex()
    assert result.stdout.splitlines() == [
        f"{ORIGIN}: 5 transactions under root {root}",
        f"  signed by        {LOG.account} authority 0",
        "  final            a quorum of the authorities certified the block that ends there",
    ]
    assert kept.read_bytes() == publish(5)

    publisher.chain.append(build_receipt(CHAIN.genesis, 50))
    publisher.follow()
    result = aitbc(
        *("checkpoint", "--url", url, "--genesis", genesis, "--since", kept, "--save", kept)
    )
    assert result.exit_code == 0, result.output
    assert "  extends          your checkpoint of 5 leaves, by 1" in result.stdout
    assert read_checkpoint(kept.read_bytes()).size == 6


def test_without_a_genesis_of_ones_own_it_says_what_is_not_proved(url):
    result = aitbc("checkpoint", "--url", url)
    assert result.exit_code == 0, result.output
    assert "Not proved: that this is your network" in result.stdout


def test_a_changed_set_of_authorities_is_followed_from_genesis(publisher, url, genesis):
    """The node's own key has left, and its signature counts only as long as it may sign."""
    publisher.chain.change_authorities(build_members(4, epoch=1))
    publisher.follow()
    result = aitbc("checkpoint", "--url", url, "--genesis", genesis)
    assert result.exit_code == 0, result.output
    publisher.chain.change_authorities([build_key("newcomer")])
    publisher.follow()
    result = aitbc("checkpoint", "--url", url, "--genesis", genesis)
    assert result.exit_code == 0, result.output  # authority 0 is a member until the next block
    publisher.chain.append(build_receipt(CHAIN.genesis, 60))
    publisher.follow()
    assert "nobody signed it" in refused("--url", url, "--genesis", genesis)


def test_the_empty_tree_has_a_checkpoint_too(tmp_path, genesis):
    publisher = Publisher(tmp_path / "empty.db", build_chain(1))
    with contextlib.closing(publisher.store), publisher.serve() as url:
        result = aitbc("checkpoint", "--url", url, "--genesis", genesis)
    assert result.exit_code == 0, result.output
    assert "0 transactions" in result.stdout


def refused(*arguments) -> str:
    result = aitbc("checkpoint", *arguments)
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    return result.stderr


def test_a_node_that_rewrote_history_is_refused(publisher, url, genesis, tmp_path):
    """Signed, certified, larger: only the note that was kept tells."""
    other = build_chain(1, blocks=[2])
    other.append(build_receipt(CHAIN.genesis, 77))
    kept = tmp_path / "kept"
    kept.write_bytes(publish(3, other))
    message = refused("--url", url, "--genesis", genesis, "--since", kept)
    assert "consistency proof" in message


def test_a_node_that_lost_history_is_refused(url, genesis, tmp_path):
    kept = tmp_path / "kept"
    kept.write_bytes(publish(5, size=9))
    message = refused("--url", url, "--genesis", genesis, "--since", kept)
    assert "has lost history" in message


def test_a_kept_note_of_another_network_is_refused(url, genesis, tmp_path):
    kept = tmp_path / "kept"
    kept.write_bytes(publish(3, origin="aitbc/other/0123456789abcdef"))
    assert "the kept checkpoint is of" in refused(
        *("--url", url, "--genesis", genesis, "--since", kept)
    )


LIES = {
    "another root": (publish(5, root=bytes(32)), "consistency proof"),
    "another log": (publish(5, origin="aitbc/x/0123456789abcdef"), "another log"),
    "a head within a block": (publish(4), "no final block"),
    "more than there is": (publish(5, size=6), "404"),
    "no note": (b"<html>", "note: expected"),
    "not by an authority": (
        sign_checkpoint(
            Checkpoint(origin=ORIGIN, size=5, root=merkle.compute_root(5, CHAIN.read)),
            build_key("stranger"),
        ),
        "nobody signed it",
    ),
    "a broken signature": (publish(5).replace(b"5\n", b"3\n", 1), "consistency proof"),
    "a large note": (b"a" * (MAX_NOTE_BYTES + 1), f"at most {MAX_NOTE_BYTES} bytes"),
}


@pytest.mark.parametrize(("lie", "reason"), LIES.values(), ids=LIES.keys())
def test_a_node_that_lies_is_refused(publisher, url, genesis, lie, reason):
    publisher.checkpoint = lambda: lie
    assert reason in refused("--url", url, "--genesis", genesis)


def test_another_genesis_is_refused(url, tmp_path):
    other = tmp_path / "other.json"
    other.write_bytes(encode(build_chain(1, max_block_transactions=7).genesis))
    assert "another network" in refused("--url", url, "--genesis", other)


def test_a_key_that_did_not_sign_is_missed(url, genesis):
    result = aitbc("checkpoint", "--url", url, "--genesis", genesis, "--key", LOG.account)
    assert result.exit_code == 0, result.output
    stranger = build_key("stranger").account
    message = refused("--url", url, "--genesis", genesis, "--key", stranger)
    assert "nobody signed it" in message
    message = refused(
        *("--url", url, "--genesis", genesis, "--key", LOG.account, "--key", stranger)
    )
    assert f"{stranger} has not signed it" in message
    message = refused("--url", url, "--genesis", genesis, "--witness", stranger)
    assert f"{stranger} has not signed it" in message


@pytest.mark.parametrize(
    "arguments",
    [
        ("--genesis", "missing"),
        ("--genesis", "malformed"),
        ("--since", "missing"),
        ("--since", "malformed"),
        ("--witness", "ait1"),
        ("--save", "missing/below"),
    ],
    ids=" ".join,
)
def test_a_file_of_ones_own_that_is_missing_or_malformed_is_status_2(url, tmp_path, arguments):
    (tmp_path / "malformed").write_bytes(b"{}\n")
    option, value = arguments
    value = value if option == "--witness" else tmp_path / value
    result = aitbc("checkpoint", "--url", url, option, value)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("Error: ")


def test_nobody_at_the_address_is_status_1():
    assert "is the node running there?" in refused("--url", "http://127.0.0.1:1")
    for no_address in ("http://[::1", "nowhere"):
        assert "expected an address like" in refused("--url", no_address)


# --- a node that answers what it likes ----------------------------------------------------------


@contextlib.contextmanager
def hostile(answer):
    async def show(_request):
        return answer()

    with (
        serve(Starlette(routes=[Route("/checkpoint", show)])) as port,
        RestClient(f"http://127.0.0.1:{port}/") as client,
    ):
        yield client


async def drip():
    for _ in range(CHUNKS):
        yield b"a" * 4096
        await asyncio.sleep(0)


def test_an_answer_that_is_too_long_or_too_slow_is_left(monkeypatch):
    with (
        hostile(lambda: StreamingResponse(drip())) as client,
        pytest.raises(RequestFailedError, match="at most"),
    ):
        client.checkpoint()
    monkeypatch.setattr(restclient, "MAX_ANSWER_S", -1.0)
    with (
        hostile(lambda: StreamingResponse(drip())) as client,
        pytest.raises(RequestFailedError, match="took over"),
    ):
        client.checkpoint()


def test_a_compressed_answer_is_not_taken_apart():
    bomb = gzip.compress(bytes(10 * MAX_NOTE_BYTES))
    with hostile(lambda: Response(bomb, headers={"Content-Encoding": "gzip"})) as client:
        assert client.checkpoint() == bomb


@pytest.mark.parametrize("status", [204, 301, 404, 500])
def test_any_answer_but_200_is_none_and_shown_harmlessly(status):
    headers = {"Location": "http://127.0.0.1:1/"}
    body = b"" if status == 204 else b"\x1b[2J\xff" + b"x" * 1000
    with (
        hostile(lambda: Response(body, status, headers)) as client,
        pytest.raises(RequestFailedError) as caught,
    ):
        client.checkpoint()
    assert f": {status}: " in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


# --- a witness as a process -----------------------------------------------------------------------


def test_a_witness_follows_a_live_node_and_its_note_satisfies_the_user(tmp_path):
    """Two processes; the witness is stopped, and started again with its directory alone."""
    node = LiveNode(tmp_path / "node", "--mode", "dev")
    key = node.create_key("admin")
    node.start()
    witness = LiveWitness(tmp_path / "witness", node)
    try:
        with Caller(node.url, key) as coordinator:
            coordinator.finish_job()
            coordinator.wait_for_block(1)
            witness.start()
            account = load_key(witness.data.witness_key)[0].account
            genesis = node.data.genesis
            wait_for_cosignature(witness, size=1)
            coordinator.finish_job()
            wait_for_cosignature(witness, size=2)
            assert witness.stop() == 0
            coordinator.finish_job()
            coordinator.wait_for_block(3)
            witness.run_as_it_stands()
            wait_for_cosignature(witness, size=3)
        result = aitbc(
            *("checkpoint", "--url", witness.url, "--genesis", genesis, "--witness", account)
        )
        assert result.exit_code == 0, result.output
        assert ": 3 transactions under root" in result.stdout
        assert f"co-signed by     {account} at 20" in result.stdout
        assert aitbc("checkpoint", "--url", node.url, "--genesis", genesis).exit_code == 0
    finally:
        witness.kill()
        node.kill()


def test_a_witness_begins_a_round_with_every_block_that_it_stores(tmp_path, monkeypatch):
    """Its first round finds nothing verified, and the next one by the clock is far away."""
    rounds = partial(WitnessThread, interval_s=3600)
    monkeypatch.setattr(follower_module, "WitnessThread", rounds)
    node = LiveNode(tmp_path / "node", "--mode", "dev")
    key = node.create_key("admin")
    data = DataDirectory(tmp_path / "witness")
    try:
        node.start()
        prepare_follower(data, sources=[node.url], genesis=node.data.genesis)
        open_identity(data)[1].close()
        settings = build_settings(data=data.root, follow=(node.url,))
        with (
            open_follower(settings, stop=lambda: None) as follower,
            TestClient(follower.app, base_url="http://127.0.0.1") as client,
            Caller(node.url, key) as coordinator,
        ):
            for height in (1, 2):
                coordinator.finish_job()
                coordinator.wait_for_block(height)
                deadline = time.monotonic() + 60
                while client.get("/health").json()["height"] < height:
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
                wait_for_size(lambda: client.get("/checkpoint").content, size=height)
            follower.begin_shutdown()
        assert follower.failure is None
    finally:
        node.kill()


class LiveWitness(LiveFollower):
    """`python -m node witness --follow …`, and later `run`."""

    command = "witness"

    def run_as_it_stands(self) -> None:
        self.command = "run"
        self.forget_arguments()
        self.start()


def wait_for_cosignature(witness: LiveWitness, *, size: int) -> None:
    with RestClient(witness.url) as client:
        wait_for_size(client.checkpoint, size=size)


def wait_for_size(fetch: Callable[[], bytes], *, size: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(RequestFailedError, InvalidNoteError):
            if read_checkpoint(fetch()).size == size:
                return
        time.sleep(0.05)
    raise AssertionError(f"no co-signed checkpoint of {size} leaves")


def test_a_witness_without_anything_to_follow_says_so(tmp_path):
    result = aitbc("witness", "--data", tmp_path / "witness")
    assert result.exit_code == 1
    assert "give --follow URL" in result.stderr
    assert not (tmp_path / "witness").exists()


def test_a_follower_that_is_no_witness_has_no_checkpoint(tmp_path):
    node = LiveNode(tmp_path / "node")
    node.start()
    follower = LiveFollower(tmp_path / "follower", node)
    try:
        follower.start()
        with RestClient(follower.url) as client, pytest.raises(RequestFailedError, match="404"):
            client.checkpoint()
    finally:
        follower.kill()
        node.kill()
