"""Catching up: all is verified, nothing else is stored, and it goes on wherever it stopped."""

import asyncio
import contextlib
import itertools
import socket
import threading
from concurrent.futures import Future, ThreadPoolExecutor

import msgspec
import pytest

from ledger.block import Block, hash_header
from ledger.errors import StoreError
from ledger.store.chain import ChainStore
from ledger.store.fsck import verify_chain
from ledger.store.writequeue import DatabaseBusyError
from ledger.transaction import build_transaction, sign_payload
from node.p2p import frames as frame_module
from node.p2p.address import PeerError, parse_url
from node.p2p.frames import GENESIS_HEADER, HEIGHT_HEADER, LENGTH_BYTES
from node.sync import Syncer, pipeline, source
from node.sync.source import SyncSource
from tests.builders import (
    Chain,
    build_certificate,
    build_chain,
    build_key,
    build_members,
    build_receipt,
)
from tests.sync_peer import (
    ScriptedPeer,
    Watch,
    build_frame,
    build_frames,
    catch_up,
    serve_chain,
)

CHAIN = build_chain(4, blocks=(1, 3, 2, 5, 1))
FRAMES = build_frames(CHAIN)
STREAM = b"".join(FRAMES)
HEIGHT = CHAIN.tip.height
UNREACHABLE = "http://127.0.0.1:9"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.db"


@pytest.fixture
def store(path):
    store = ChainStore(path, CHAIN.genesis)
    yield store
    store.close()


def check(store: ChainStore, chain: Chain, height: int) -> None:
    """The file holds the first blocks of a chain, and everything in it verifies."""
    tip = verify_chain(store.database.path, chain.genesis, lambda _height, _last: None)
    assert tip == store.tip()
    expected = chain.blocks[height - 1].hash if height else chain.tip.genesis_hash
    assert (tip.height, tip.hash) == (height, expected)


def frames_of(*blocks: Block, members=None, **certificate) -> bytes:
    """Frames of blocks that are certified as a test wants."""
    return b"".join(
        build_frame(b, build_certificate(b.header, members or CHAIN.members, **certificate))
        for b in blocks
    )


def reseal(block: Block, *, transactions=None, **changes) -> Block:
    """A block with other fields, and the hash that fits them."""
    header = msgspec.structs.replace(block.header, **changes)
    return Block(
        hash=hash_header(header),
        header=header,
        transactions=block.transactions if transactions is None else tuple(transactions),
    )


def forge_signature(chain: Chain):
    """A receipt whose provider's signature is somebody else's."""
    payload = build_receipt(chain.genesis, 50).payload
    return build_transaction(
        payload,
        [
            sign_payload(payload, build_key("authority 0"), "coordinator"),
            msgspec.structs.replace(
                sign_payload(payload, build_key("somebody"), "provider"),
                key_id=build_key("miner").account,
            ),
        ],
    )


def next_block(*transactions, height: int = 0) -> Block:
    """A block after the first `height` blocks of CHAIN that fits in every way but its body."""
    chain = build_chain(4)
    for block in CHAIN.blocks[:height]:
        chain.append(*block.transactions)
    return chain.append(*transactions)


# --- the honest case --------------------------------------------------------------------------


def test_a_new_node_gets_the_whole_chain_from_one_peer(store):
    with ScriptedPeer(CHAIN, serve_chain(CHAIN)) as peer:
        progress = catch_up(store, [peer.url], height=HEIGHT)
    check(store, CHAIN, HEIGHT)
    assert (progress.height, progress.last_error, peer.asked) == (HEIGHT, None, [1])


@pytest.mark.parametrize("held", range(1, HEIGHT))
def test_it_goes_on_where_the_chain_ends(store, held):
    for block, certificate in list(zip(CHAIN.blocks, CHAIN.certificates, strict=True))[:held]:
        store.append(block, certificate).result()
    with ScriptedPeer(CHAIN, serve_chain(CHAIN)) as peer:
        catch_up(store, [peer.url], height=HEIGHT)
    assert peer.asked[0] == held + 1
    check(store, CHAIN, HEIGHT)


def test_what_is_there_is_not_asked_for(store):
    with ScriptedPeer(CHAIN, serve_chain(CHAIN)) as peer:
        assert catch_up(store, [peer.url], height=0).height == 0
    assert peer.asked == []


def test_short_answers_are_asked_on(store):
    with ScriptedPeer(CHAIN, lambda first: FRAMES[first - 1]) as peer:
        catch_up(store, [peer.url], height=HEIGHT)
    assert peer.asked == list(range(1, HEIGHT + 1))
    check(store, CHAIN, HEIGHT)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_the_pieces_of_an_answer_do_not_matter(store, size):
    def trickle(_first):
        return [STREAM[i : i + size] for i in range(0, len(STREAM), size)]

    with ScriptedPeer(CHAIN, trickle) as peer:
        catch_up(store, [peer.url], height=HEIGHT)
    check(store, CHAIN, HEIGHT)


def test_blocks_that_came_another_way_meanwhile_are_skipped(store):
    def apply(batch):
        for block, certificate in zip(CHAIN.blocks[:3], CHAIN.certificates, strict=False):
            if block.header.height > store.tip().height:
                store.append(block, certificate).result()
        return store.append_verified(batch)

    with ScriptedPeer(CHAIN, serve_chain(CHAIN)) as peer:
        catch_up(store, [peer.url], height=HEIGHT, apply=apply)
    check(store, CHAIN, HEIGHT)


def test_memory_is_bounded_by_what_may_be_in_flight(store, monkeypatch):
    monkeypatch.setattr(pipeline, "MAX_IN_FLIGHT_BYTES", 1)
    monkeypatch.setattr(pipeline, "GROUP_BYTES", 1)
    monkeypatch.setattr(pipeline, "BATCH_BYTES", 1)
    batches = []

    def apply(batch):
        batches.append(len(batch))
        return store.append_verified(batch)

    with ScriptedPeer(CHAIN, serve_chain(CHAIN)) as peer:
        catch_up(store, [peer.url], height=HEIGHT, apply=apply)
    assert batches == [1] * HEIGHT
    check(store, CHAIN, HEIGHT)


def test_no_more_frames_are_taken_than_may_wait_to_be_stored(store, monkeypatch):
    """The peer is fast and the disk stands still."""
    size = max(map(len, FRAMES))
    monkeypatch.setattr(pipeline, "MAX_IN_FLIGHT_BYTES", 2 * size)
    monkeypatch.setattr(pipeline, "GROUP_BYTES", 1)
    taken, applying = [], threading.Event()

    async def arrive():
        for frame in itertools.chain(FRAMES, itertools.repeat(FRAMES[0], 100)):
            taken.append(len(frame) - LENGTH_BYTES)
            yield [frame[LENGTH_BYTES:]]

    def apply(_batch):
        applying.set()
        return Future()

    async def run(pool):
        work = pipeline.Pipeline(tip=store.tip(), pool=pool, apply=apply, applied=print)
        task = asyncio.create_task(work.run(arrive()))
        await asyncio.to_thread(applying.wait)
        for _ in range(1000):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    with ThreadPoolExecutor(2) as pool:
        asyncio.run(run(pool))
    assert sum(taken[:-1]) <= 2 * size  # the last one waits for room


# --- set changes ------------------------------------------------------------------------------


def test_each_block_is_judged_under_the_set_that_the_chain_says_at_its_height(path, monkeypatch):
    """All frames come in one group, judged at first under the set of its first block."""
    chain = build_chain(4, blocks=(1, 1))
    number = itertools.count(100)
    for epoch in (1, 2):
        chain.change_authorities(
            build_members(3, epoch=epoch), build_receipt(chain.genesis, next(number))
        )
        chain.append(build_receipt(chain.genesis, next(number)))
        chain.append(build_receipt(chain.genesis, next(number)))
    judged, real_judge = [], pipeline.verify_frames

    def judge(frames, tip):
        judged.append((len(frames), tip.authority_set.epoch))
        return real_judge(frames, tip)

    monkeypatch.setattr(pipeline, "verify_frames", judge)
    with contextlib.closing(ChainStore(path, chain.genesis)) as store:
        with ScriptedPeer(chain, serve_chain(chain)) as peer:
            progress = catch_up(store, [peer.url], height=chain.tip.height)
        assert progress.last_error is None
        check(store, chain, chain.tip.height)
    assert judged == [(8, 0), (5, 1), (2, 2)]


def test_votes_of_a_set_that_was_replaced_make_nothing_final(path):
    chain = build_chain(4, blocks=(1,))
    old = list(chain.members)
    chain.change_authorities(build_members(3, epoch=1))
    chain.append(build_receipt(chain.genesis, 100))
    stale = build_frame(chain.blocks[2], build_certificate(chain.blocks[2].header, old))
    with contextlib.closing(ChainStore(path, chain.genesis)) as store:
        frames = build_frames(chain)
        with ScriptedPeer(chain, lambda first: b"".join(frames[first - 1 : 2]) + stale) as peer:
            progress = catch_up(store, [peer.url], height=3)
        assert "does not exist" in (progress.last_error or "")
        check(store, chain, 2)


# --- lies -------------------------------------------------------------------------------------


GOOD = FRAMES[0] + FRAMES[1]
"""What is right before the lie comes."""
CERTIFICATES = [
    ("too few votes", {"voters": [0, 1]}, "expected at least 3 votes of 4, got 2"),
    ("no votes", {"voters": []}, "expected at least 3 votes of 4, got 0"),
    ("one vote three times", {"voters": [0, 0, 0]}, "distinct voters"),
    ("votes in another order", {"voters": [2, 1, 0]}, "distinct voters"),
    ("votes to notarize", {"kind": "notarize"}, "does not verify"),
    ("votes of strangers", {"members": [build_key(f"x{i}") for i in range(4)]}, "not verify"),
]


def lie_about(store: ChainStore, lie: bytes, message: str) -> None:
    """A peer that answers this after two good blocks is at fault, and nothing of it is stored."""
    answers = {1: GOOD, 3: lie}
    with ScriptedPeer(CHAIN, answers.__getitem__) as peer:
        progress = catch_up(store, [peer.url], height=HEIGHT)
    assert progress.last_error is not None
    assert progress.last_error.startswith(peer.url)
    assert message in progress.last_error
    check(store, CHAIN, 2)


@pytest.mark.parametrize(
    ("votes", "message"), [c[1:] for c in CERTIFICATES], ids=[c[0] for c in CERTIFICATES]
)
def test_a_block_without_a_quorum_behind_it_is_refused(store, votes, message):
    lie_about(store, frames_of(CHAIN.blocks[2], **votes), message)


def test_votes_for_another_chain_are_refused(store):
    other = build_chain(4)
    other.genesis = msgspec.structs.replace(other.genesis, network="other-net")
    header = msgspec.structs.replace(CHAIN.blocks[2].header, genesis="ab" * 32)
    certificate = build_certificate(header, CHAIN.members)
    lie_about(store, build_frame(CHAIN.blocks[2], certificate), "does not verify")


def test_the_certificate_of_another_block_is_refused(store):
    lie_about(store, build_frame(CHAIN.blocks[2], CHAIN.certificates[3]), "does not verify")


def test_a_set_that_is_not_the_chains_is_refused(store):
    block = reseal(CHAIN.blocks[2], set_hash="cd" * 32)
    lie_about(store, frames_of(block), "another authority set")


@pytest.mark.parametrize(
    ("stream", "message", "stored"),
    [
        (FRAMES[1], "expected 1 on", 0),
        (FRAMES[0] + FRAMES[2], "expected 2 on", 1),
        (FRAMES[0] + FRAMES[0], "expected 2 on", 1),
        (FRAMES[0] + FRAMES[2] + FRAMES[1], "expected 2 on", 1),
        (GOOD + FRAMES[0] + FRAMES[1], "expected 3 on", 2),
    ],
    ids=["a gap first", "a gap", "one twice", "reordered", "from the start again"],
)
def test_blocks_that_do_not_follow_each_other_are_refused(store, stream, message, stored):
    with ScriptedPeer(CHAIN, lambda first: stream if first == 1 else b"") as peer:
        progress = catch_up(store, [peer.url], height=HEIGHT)
    assert message in (progress.last_error or "")
    check(store, CHAIN, stored)


def test_a_body_that_is_not_the_headers_is_refused_though_a_quorum_certified_the_header(store):
    """The certificate covers the header alone; that the body belongs to it is for us to check."""
    for transactions in (
        CHAIN.blocks[2].transactions[:1],
        CHAIN.blocks[2].transactions[::-1],
        (*CHAIN.blocks[2].transactions, build_receipt(CHAIN.genesis, 60)),
    ):
        block = Block(
            hash=CHAIN.blocks[2].hash,
            header=CHAIN.blocks[2].header,
            transactions=transactions,
        )
        lie_about(store, frames_of(block), "header tree")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"time_ms": CHAIN.blocks[1].header.time_ms}, "time_ms"),
        ({"tree_root": "00" * 32}, "tree_root"),
        ({"tree_size": CHAIN.blocks[2].header.tree_size + 1}, "tree_size"),
        ({"next_set_hash": "00" * 32}, "next_set_hash"),
        ({"proposer": build_key("miner").account}, "proposer"),
        ({"genesis": "00" * 32}, "header genesis"),
        ({"prev_hash": "00" * 32}, "expected 3 on"),
        ({"height": 4}, "expected 3 on"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_a_header_that_does_not_extend_the_chain_is_refused_though_a_quorum_certified_it(
    store, changes, message
):
    lie_about(store, frames_of(reseal(CHAIN.blocks[2], **changes)), message)


def test_a_transaction_with_a_forged_signature_is_refused_though_a_quorum_certified_it(store):
    block = next_block(forge_signature(CHAIN), height=2)
    lie_about(store, frames_of(block), "does not verify")


def test_a_receipt_that_is_on_the_chain_already_is_refused_though_a_quorum_certified_it(store):
    block = next_block(build_receipt(CHAIN.genesis, 90), CHAIN.transactions[0], height=2)
    lie_about(store, frames_of(block), "not unique")


def test_a_batch_with_one_wrong_block_is_stored_up_to_it_or_not_at_all(store):
    """Blocks of a batch stand in one transaction: what the store refuses takes the batch along."""
    block = reseal(CHAIN.blocks[2], tree_root="00" * 32)
    with ScriptedPeer(CHAIN, lambda _first: GOOD + frames_of(block)) as peer:
        catch_up(store, [peer.url], height=HEIGHT)
    assert store.tip().height in {0, 2}
    check(store, CHAIN, store.tip().height)


@pytest.mark.parametrize("size", range(1, len(FRAMES[0]), 97))
def test_a_stream_that_is_cut_off_in_a_frame_is_the_peers_fault(store, size):
    lie_about(store, FRAMES[2][:size], "in the middle of a frame")


def test_flipped_bytes_are_refused_wherever_they_stand(store):
    """Of every field of a frame one byte; each is another reason, and none gets in."""
    for place in range(0, len(FRAMES[0]), 41):
        stream = bytearray(FRAMES[0])
        stream[place] ^= 1
        with ScriptedPeer(CHAIN, lambda _first, s=bytes(stream): s) as peer:
            progress = catch_up(store, [peer.url], height=1)
        assert progress.last_error is not None, place
        assert store.tip().height == 0


def test_an_endless_answer_of_one_block_ends_at_its_first_repetition(store):
    with ScriptedPeer(CHAIN, lambda _first: itertools.repeat(FRAMES[0])) as peer:
        progress = catch_up(store, [peer.url], height=HEIGHT)
    assert "expected 2 on" in (progress.last_error or "")
    check(store, CHAIN, 1)


def test_an_endless_answer_of_zeros_ends_at_its_first_length(store):
    with ScriptedPeer(CHAIN, lambda _first: itertools.repeat(bytes(65536))) as peer:
        progress = catch_up(store, [peer.url], height=HEIGHT)
    assert "frame length" in (progress.last_error or "")


def test_a_trickle_is_a_stall_however_often_a_byte_comes(store, monkeypatch):
    monkeypatch.setattr(frame_module, "PATIENCE_S", 0.2)
    monkeypatch.setattr(frame_module, "MIN_BYTES_PER_S", 1 << 40)
    ended = threading.Event()

    def trickle(_first):
        yield (1000).to_bytes(LENGTH_BYTES, "big")
        while not ended.wait(0.01):
            yield b"\0"

    with ScriptedPeer(CHAIN, trickle) as peer:
        progress = catch_up(store, [peer.url], height=HEIGHT)
        ended.set()
    assert "no whole frame within" in (progress.last_error or "")


def test_a_peer_that_never_answers_is_given_up(store, monkeypatch):
    monkeypatch.setattr(source, "HEAD_TIMEOUT_S", 0.1)
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        progress = catch_up(store, [url], height=HEIGHT)
    assert "does not answer in time" in (progress.last_error or "")


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"status": 503}, "answers 503"),
        ({"status": 302, "headers": {"location": UNREACHABLE}}, "answers 302"),
        ({"headers": {GENESIS_HEADER: "ab" * 32}}, "another chain"),
        ({"headers": {GENESIS_HEADER: ""}}, "another chain"),
        ({"headers": {HEIGHT_HEADER: "-1"}}, "expected a height"),
        ({"headers": {HEIGHT_HEADER: "9" * 100}}, "expected a height"),
        ({"headers": {"content-encoding": "gzip"}}, "compressed"),
    ],
)
def test_an_answer_that_is_none_is_the_peers_fault(store, said, message):
    with ScriptedPeer(CHAIN, serve_chain(CHAIN), **said) as peer:
        progress = catch_up(store, [peer.url], height=HEIGHT)
    assert message in (progress.last_error or "")
    assert store.tip().height == 0


def test_a_peer_that_claims_blocks_and_sends_none_is_at_fault(store):
    with ScriptedPeer(CHAIN, lambda _first: b"") as peer:
        progress = catch_up(store, [peer.url], height=HEIGHT)
    assert "claims block 5 and sends none above 0" in (progress.last_error or "")


# --- several sources --------------------------------------------------------------------------


@pytest.mark.parametrize("liar_first", [True, False])
def test_of_two_sources_the_one_that_tells_the_truth_decides(store, liar_first):
    lies = GOOD + frames_of(CHAIN.blocks[2], voters=[0, 1])
    with (
        ScriptedPeer(CHAIN, lambda first: lies if first == 1 else lies[:5]) as liar,
        ScriptedPeer(CHAIN, serve_chain(CHAIN)) as honest,
    ):
        urls = [liar.url, honest.url] if liar_first else [honest.url, liar.url]
        progress = catch_up(store, urls, height=HEIGHT)
    assert progress.height == HEIGHT
    assert len(liar.asked) == liar_first
    check(store, CHAIN, HEIGHT)


def test_a_source_that_is_behind_is_no_liar_and_the_next_one_is_asked(store):
    behind = {"headers": {HEIGHT_HEADER: "2"}}
    with (
        ScriptedPeer(CHAIN, lambda first: b"".join(FRAMES[first - 1 : 2]), **behind) as short,
        ScriptedPeer(CHAIN, serve_chain(CHAIN)) as honest,
    ):
        progress = catch_up(store, [UNREACHABLE, short.url, honest.url], height=HEIGHT)
    assert (short.asked, honest.asked) == ([1, 3], [3])
    assert (progress.height, progress.last_error) == (HEIGHT, None)
    check(store, CHAIN, HEIGHT)


def test_a_request_that_nobody_can_meet_ends_and_the_next_one_is_tried_again(store):
    short = {"headers": {HEIGHT_HEADER: "2"}}
    with ScriptedPeer(CHAIN, lambda first: b"".join(FRAMES[first - 1 : 2]), **short) as peer:
        progress = catch_up(store, [peer.url], height=HEIGHT)
        assert (progress.state, progress.height) == ("idle", 2)
        catch_up(store, [peer.url], height=HEIGHT)
    assert peer.asked == [1, 3, 3]


def test_the_source_that_a_message_came_from_is_asked_first_and_no_stranger_ever(store):
    with (
        ScriptedPeer(CHAIN, serve_chain(CHAIN)) as first,
        ScriptedPeer(CHAIN, serve_chain(CHAIN)) as second,
        ScriptedPeer(CHAIN, serve_chain(CHAIN)) as stranger,
    ):
        watch = Watch()
        syncer = Syncer(
            tip=store.tip,
            apply=store.append_verified,
            sources=lambda: [first.url, second.url],
            follow=lambda: False,
            failed=watch.failed,
            shown=watch.shown,
        )
        syncer.request(HEIGHT, second.url)
        syncer.request(HEIGHT, stranger.url)
        syncer.start()
        watch.wait_for(lambda progress: progress.height == HEIGHT)
        syncer.stop()
    assert (first.asked, second.asked, stranger.asked) == ([], [1], [])


def test_a_source_at_fault_is_left_alone_longer_each_time():
    bad = SyncSource("http://127.0.0.1:1")
    pauses = []
    for _ in range(12):
        bad.note_fault(100.0)
        pauses.append(bad.retry_at_s - 100.0)
    assert pauses[:4] == [1.0, 2.0, 4.0, 8.0]
    assert pauses[-1] == source.MAX_PAUSE_S
    bad.note_success()
    bad.note_fault(100.0)
    assert bad.retry_at_s == 101.0


@pytest.mark.parametrize(
    "text",
    [
        *("", "127.0.0.1:8001", "ftp://host", "http://", "http://user:secret@host", "http://h:0"),
        "ftp://user:secret@host",
        *("http://h:x", "http://h/?a=b", "http://h/#x", "http://hé", "http://[::1", "http://h\n"),
        "http://" + "h" * 300,
    ],
)
def test_what_is_no_address_of_a_node_is_refused(text):
    with pytest.raises(PeerError, match="address of a node") as refused:
        parse_url(text)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("text", ["http://h", "https://node.example:8001/", "http://[::1]:80/x"])
def test_an_address_is_kept_without_its_last_slash(text):
    assert parse_url(text) == text.rstrip("/")


# --- following --------------------------------------------------------------------------------


@contextlib.contextmanager
def follow(store: ChainStore, *urls: str):
    watch = Watch()
    syncer = Syncer(
        tip=store.tip,
        apply=store.append_verified,
        sources=lambda: urls,
        follow=lambda: True,
        failed=watch.failed,
        shown=watch.shown,
        workers=2,
    )
    syncer.start()
    try:
        yield watch
    finally:
        syncer.stop()


def test_a_follower_waits_for_the_next_block_and_has_it_at_once(store):
    grown = threading.Event()

    def serve(first):
        if first <= 3:
            return b"".join(FRAMES[first - 1 : 3])
        grown.wait()
        return b"".join(FRAMES[first - 1 :])

    with ScriptedPeer(CHAIN, serve) as peer, follow(store, peer.url) as watch:
        watch.wait_for(lambda progress: progress.height == 3)
        grown.set()
        done = watch.wait_for(lambda p: p.height == HEIGHT and p.state == "idle")
    assert done.target_height == HEIGHT
    check(store, CHAIN, HEIGHT)


def test_a_follower_whose_sources_all_fail_says_so_and_goes_on_when_one_returns(store):
    broken = threading.Event()

    def serve(first):
        return STREAM if broken.is_set() and first == 1 else bytes(4)

    with ScriptedPeer(CHAIN, serve) as peer, follow(store, peer.url) as watch:
        stalled = watch.wait_for(lambda progress: progress.state == "stalled")
        assert "frame length" in (stalled.last_error or "")
        broken.set()
        watch.wait_for(lambda progress: progress.height == HEIGHT)


# --- our own faults, and ends at any point ----------------------------------------------------


def refuse_to_store(_batch):
    done: Future = Future()
    done.set_exception(StoreError("ledger.db: the disk is full"))
    return done


def test_a_disk_that_refuses_is_our_fault_and_stops_the_node(store):
    with (
        ScriptedPeer(CHAIN, serve_chain(CHAIN)) as peer,
        pytest.raises(StoreError, match="the disk is full"),
    ):
        catch_up(store, [peer.url], height=HEIGHT, apply=refuse_to_store)


def test_a_busy_disk_is_waited_for(store):
    tries = itertools.count()

    def apply(batch):
        if next(tries) == 0:
            raise DatabaseBusyError("ledger.db: too many writes wait")
        return store.append_verified(batch)

    with ScriptedPeer(CHAIN, serve_chain(CHAIN)) as peer:
        progress = catch_up(store, [peer.url], height=HEIGHT, apply=apply)
    assert progress.last_error is None
    check(store, CHAIN, HEIGHT)


@pytest.mark.parametrize("batches", range(HEIGHT))
def test_a_life_that_ends_at_any_batch_is_carried_on_by_the_next(path, monkeypatch, batches):
    """The batch under way when it ends is stored or not; the next life does not mind either."""
    for name in ("GROUP_BYTES", "BATCH_BYTES", "MAX_IN_FLIGHT_BYTES"):
        monkeypatch.setattr(pipeline, name, 1)
    for stores_last in (False, True):
        with contextlib.closing(ChainStore(path, CHAIN.genesis)) as store:
            left = itertools.count()
            reached = threading.Event()

            def apply(batch, store=store, left=left, reached=reached, stores=stores_last):
                if next(left) < batches:
                    return store.append_verified(batch)
                if stores:
                    store.append_verified(batch).result()
                reached.set()
                return Future()  # nobody ever hears of this one

            with ScriptedPeer(CHAIN, serve_chain(CHAIN)) as peer:
                syncer = Syncer(
                    tip=store.tip,
                    apply=apply,
                    sources=lambda: [peer.url],
                    follow=lambda: True,
                    failed=print,
                )
                syncer.start()
                assert reached.wait(30)
                syncer.stop()
            check(store, CHAIN, batches + stores_last)
        with contextlib.closing(ChainStore(path, CHAIN.genesis)) as store:
            with ScriptedPeer(CHAIN, serve_chain(CHAIN)) as peer:
                catch_up(store, [peer.url], height=HEIGHT)
            check(store, CHAIN, HEIGHT)
        for file in path.parent.iterdir():
            file.unlink()
