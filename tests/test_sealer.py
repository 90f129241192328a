"""The sealer: whatever breaks between its three commits, the same one block comes out."""

import logging
import threading
from concurrent.futures import Future

import pytest
from msgspec.structs import replace

from ledger.errors import InvalidBlockError, StoreError
from ledger.rules import CLOCK_DRIFT_MS, build_block
from ledger.store.chain import load_block
from ledger.store.writequeue import DatabaseBusyError
from ledger.transaction import Transaction, build_transaction
from ledger.views import ReceiptFilter
from node import sealer as module
from tests.builders import build_key, build_payload, build_receipt, sign_receipt
from tests.market_node import MarketNode

TIMEOUT_S = 30


@pytest.fixture
def node(tmp_path):
    node = MarketNode(tmp_path)
    yield node
    node.close()


def put(node: MarketNode, envelope: bytes, *, number: int) -> None:
    """Place bytes into the mempool past the coordinator, which would not let them in."""
    row = (bytes([number]) * 32, f"rcp_test_{number}", "c", "p", "m", 1, envelope.decode())
    node.store.write(
        lambda c: c.execute(
            "INSERT INTO mempool (id, receipt_id, client, provider, model, received_at_ms,"
            " envelope) VALUES (?, ?, ?, ?, ?, ?, ?)",
            row,
        )
    ).result()


def place(node: MarketNode, transaction: Transaction) -> None:
    payload = transaction.payload
    row = (bytes(transaction.id), payload.receipt_id, transaction.envelope.decode())
    node.store.write(
        lambda c: c.execute(
            "INSERT INTO mempool (id, receipt_id, client, provider, model, received_at_ms,"
            " envelope) VALUES (?1, ?2, 'c', 'p', 'm', 1, ?3)",
            row,
        )
    ).result()


def final_ids(node: MarketNode) -> list[str]:
    """Receipts on the chain, oldest first."""
    shown = node.views.receipts(ReceiptFilter(), limit=100)
    return [
        view.payload.receipt_id for view in reversed(shown) if view.transaction.finality == "final"
    ]


# --- sealing ----------------------------------------------------------------------------------


def test_what_waits_becomes_final_in_one_block_in_its_order(node):
    receipts = [node.finish() for _ in range(3)]
    assert node.seal() == 1
    assert final_ids(node) == receipts
    assert node.pending_receipts == []
    assert node.verify() == 3


def complete_while_the_first_block_is_stored(node, monkeypatch) -> str:
    """Let a second receipt come while the first is sealed; returns its id."""
    node.finish()
    append, later = node.chain.append, []

    def append_late(block, certificate):
        if not later:
            later.append(node.finish())
        return append(block, certificate)

    monkeypatch.setattr(node.chain, "append", append_late)
    node.seal()
    return later[0]


def test_what_comes_while_a_block_is_sealed_waits_for_company_too(node, monkeypatch):
    node.sealer._batch_delay_s = 60
    receipt = complete_while_the_first_block_is_stored(node, monkeypatch)
    assert node.chain.tip().height == 1
    due = node.sealer._collect_at
    node.sealer._note_times(due - 1)
    node.sealer._carry_on()
    assert node.pending_receipts == [receipt]
    node.sealer._note_times(due)
    node.sealer._carry_on()
    assert node.chain.tip().height == 2
    assert node.pending_receipts == []


def test_what_a_large_block_has_left_behind_waits_for_nothing(tmp_path, monkeypatch):
    node = MarketNode(tmp_path, max_block_transactions=2)
    try:
        node.sealer._batch_delay_s = 60
        complete_while_the_first_block_is_stored(node, monkeypatch)
        assert node.chain.tip().height == 2
        assert node.pending_receipts == []
    finally:
        node.close()


def test_a_place_in_the_mempool_is_never_given_twice(node):
    """A peer is told of what stands above the last place it was told of."""
    node.finish()
    ((first, _),) = node.mempool.list_own(10)
    node.seal()
    node.finish()
    ((second, _),) = node.mempool.list_own(10)
    assert second > first


def test_an_empty_mempool_makes_no_block(node):
    assert node.seal() == 0
    node.finish()
    assert node.seal() == 1
    assert node.seal() == 1


def test_a_block_holds_as_many_transactions_as_the_genesis_allows(tmp_path):
    node = MarketNode(tmp_path, max_block_transactions=2)
    try:
        receipts = [node.finish() for _ in range(5)]
        assert node.seal() == 3
        blocks = [load_block(node.chain.database.reader, height)[0] for height in (1, 2, 3)]
        assert [len(block.transactions) for block in blocks] == [2, 2, 1]
        assert final_ids(node) == receipts
    finally:
        node.close()


def test_a_block_holds_as_many_bytes_as_the_genesis_allows(tmp_path):
    node = MarketNode(tmp_path, max_block_bytes=65_536)
    try:
        model = "m" * 128
        receipts = [node.finish(model=model) for _ in range(60)]
        assert node.seal() == 2
        assert final_ids(node) == receipts
        for height in (1, 2):
            assert node.views.block(height).size_bytes <= 65_536
        assert node.views.block(1).size_bytes > 60_000
    finally:
        node.close()


# --- crashes ----------------------------------------------------------------------------------


class PowerCutError(Exception):
    """The power goes."""


def crash(node: MarketNode, monkeypatch, where: str) -> None:
    """Let the power go right before or after one of the three commits of the next block."""
    when, what = where.split()
    target, name = {
        "votes": (node.votes, "record"),
        "ledger": (node.chain, "append"),
        "mempool": (node.mempool, "remove"),
    }[what]
    original = getattr(target, name)

    def crashing(*arguments):
        if when == "after":
            done = original(*arguments)
            if isinstance(done, Future):
                done.result()
        raise PowerCutError

    monkeypatch.setattr(target, name, crashing)
    with pytest.raises(PowerCutError):
        node.seal()
    monkeypatch.undo()


CRASHES = [
    f"{when} {what}" for what in ("votes", "ledger", "mempool") for when in ("before", "after")
]


@pytest.mark.parametrize("where", CRASHES)
def test_a_crash_at_any_commit_leads_to_one_block_after_the_restart(node, monkeypatch, where):
    first = [node.finish(), node.finish()]
    crash(node, monkeypatch, where)
    voted = [block.hash for block in node.votes.load(1).blocks]
    node.restart()
    node.now_ms += 5_000
    late = node.finish()
    node.seal()
    block, _ = load_block(node.chain.database.reader, 1)
    if voted:
        # What was voted for is what becomes final, though clock and mempool have moved on.
        assert [block.hash] == voted
        assert [t.payload.receipt_id for t in block.transactions] == first
    assert final_ids(node) == [*first, late]
    assert node.pending_receipts == []
    assert node.verify() == 3


@pytest.mark.parametrize("where", CRASHES)
def test_even_crashing_at_every_start_moves_on_or_changes_nothing(node, monkeypatch, where):
    receipts = [node.finish()]
    for _ in range(3):
        crash(node, monkeypatch, where)
        node.restart()
        receipts.append(node.finish())
    node.seal()
    assert sorted(final_ids(node)) == sorted(receipts)
    assert node.verify() == 4


def test_a_disk_that_refuses_a_vote_stops_the_node_before_anything_else_happens(node, monkeypatch):
    node.finish()
    failed = threading.Event()
    errors = []

    def refuse(_record):
        raise StoreError("votes.db: disk I/O error")

    monkeypatch.setattr(node.votes, "record", refuse)
    monkeypatch.setattr(node.sealer, "_failed", lambda error: (errors.append(error), failed.set()))
    node.sealer.start()
    assert failed.wait(TIMEOUT_S)
    node.sealer.stop()
    assert str(errors[0]) == "votes.db: disk I/O error"
    assert node.chain.tip().height == 0
    assert len(node.pending_receipts) == 1


def test_what_a_crash_left_in_the_mempool_is_cleared_however_much_it_is(node, monkeypatch):
    """More rows than are looked at, all final already, must not hide the one that is not."""
    for _ in range(4):
        node.finish()
    crash(node, monkeypatch, "before mempool")
    assert len(node.pending_receipts) == 4
    node.restart()
    fresh = node.finish()
    chosen = node.mempool.choose(node.chain.tip(), limit=1)
    assert [t.payload.receipt_id for t in chosen] == [fresh]
    assert node.pending_receipts == [fresh]


# --- what can never be final ------------------------------------------------------------------


def sign_with_the_wrong_key(node: MarketNode) -> Transaction:
    payload = build_payload(node.genesis, 90)
    signatures = sign_receipt(payload)
    forged = sign_receipt(payload, coordinator=build_key("somebody"))[0].sig
    return build_transaction(payload, [replace(signatures[0], sig=forged), *signatures[1:]])


def bill_more_than_was_used(node: MarketNode) -> Transaction:
    payload = build_payload(node.genesis, 91, units_micros=999_000_000)
    return build_transaction(payload, sign_receipt(payload))


def coordinate_without_being_asked(node: MarketNode) -> Transaction:
    other = build_key("somebody")
    payload = build_payload(node.genesis, 92, coordinator=other.account)
    return build_transaction(payload, sign_receipt(payload, coordinator=other))


@pytest.mark.parametrize("build", [sign_with_the_wrong_key, bill_more_than_was_used])
def test_an_invalid_transaction_is_evicted_and_the_rest_is_sealed(node, caplog, build):
    bad = build(node)
    before = node.finish()
    place(node, bad)
    after = node.finish()
    node.seal()
    assert final_ids(node) == [before, after]
    assert node.pending_receipts == []
    assert node.verify() == 2
    # The log keeps what the mempool gave up.
    assert bad.envelope.decode() in caplog.text


def test_a_receipt_of_a_coordinator_that_is_not_listed_waits_and_holds_up_nothing(node):
    """A change of the set may list it again, and it says what somebody is owed."""
    waiting = coordinate_without_being_asked(node)
    place(node, waiting)
    receipt = node.finish()
    node.seal()
    assert final_ids(node) == [receipt]
    assert node.pending_receipts == [waiting.payload.receipt_id]
    assert not node.sealer._engine._is_waiting


def test_rubbish_in_the_mempool_is_evicted_and_the_rest_is_sealed(node, caplog):
    put(node, b"{}", number=1)
    receipt = node.finish()
    put(node, build_receipt(node.genesis, 9).envelope[:-9], number=2)
    node.seal()
    assert final_ids(node) == [receipt]
    assert node.pending_receipts == []
    assert caplog.text.count("can never be final") == 2


def test_a_mempool_of_nothing_but_rubbish_costs_no_view(node):
    """A height has a bounded number of views; an engine that waits for nothing uses them up."""
    place(node, bill_more_than_was_used(node))
    node.seal()
    assert node.pending_receipts == []
    assert not node.sealer._engine._is_waiting
    assert module.TimerKind.VIEW not in node.sealer._timers
    receipt = node.finish()
    assert node.seal() == 1
    assert final_ids(node) == [receipt]


def test_a_mempool_that_is_empty_after_all_costs_no_view(node):
    node.finish()
    node.seal()
    node.finish()
    node.sealer._note_waiting()
    node.store.write(lambda c: c.execute("DELETE FROM mempool")).result()
    node.sealer._carry_on()
    assert node.chain.tip().height == 1
    assert not node.sealer._engine._is_waiting


def test_a_block_that_repeats_what_is_final_is_not_voted_for(node):
    node.finish()
    node.seal()
    tip = node.chain.tip()
    repeated = load_block(node.chain.database.reader, 1)[0].transactions
    block = build_block(
        tip,
        repeated,
        time_ms=tip.time_ms + 1,
        proposer=node.key.account,
        read=node.chain.read_node,
    )
    with pytest.raises(InvalidBlockError, match="final already"):
        node.sealer.validate(block, tip, is_fresh=True)


# --- clocks -----------------------------------------------------------------------------------


def fill_until_the_clock_went_back(node: MarketNode, back_ms: int) -> str:
    """One sealed block, then a receipt under a clock that stands `back_ms` before that block."""
    node.finish()
    node.seal()
    node.now_ms = node.chain.tip().time_ms - back_ms
    return node.finish()


@pytest.mark.parametrize("back_ms", [0, 1, 5_000, CLOCK_DRIFT_MS - 501])
def test_a_clock_that_went_back_a_little_does_not_stop_anything(node, back_ms):
    receipt = fill_until_the_clock_went_back(node, back_ms)
    assert node.seal() == 2
    assert final_ids(node)[-1] == receipt
    assert node.verify() == 2


def test_a_clock_that_went_back_far_loses_nothing_and_goes_on_once_it_is_right(node, caplog):
    receipt = fill_until_the_clock_went_back(node, 3_600_000)
    now_ms = node.now_ms
    assert node.seal() == 1
    assert "clock is 3599 s behind the newest block: set it" in caplog.text
    assert node.pending_receipts == [receipt]
    # Nothing was said or asked at this height, so that the wait may last however long.
    assert node.votes.load(2).votes == ()
    assert not node.sealer._engine._is_waiting
    node.now_ms = now_ms + 3_600_000
    node.sealer._retry_at = None  # its pause is over
    assert node.seal() == 2
    assert final_ids(node)[-1] == receipt
    assert node.verify() == 2


def test_a_restart_under_a_wrong_clock_changes_nothing(node):
    receipt = fill_until_the_clock_went_back(node, 3_600_000)
    node.seal()
    node.restart()
    assert node.seal() == 1
    node.restart()
    node.now_ms += 3_600_000
    assert node.seal() == 2
    assert final_ids(node)[-1] == receipt


def test_new_receipts_under_a_wrong_clock_do_not_fill_the_log(node, caplog):
    fill_until_the_clock_went_back(node, 3_600_000)
    for _ in range(5):
        node.seal()
        node.finish()
    assert caplog.text.count("clock is") == 1


def test_a_clock_that_goes_back_while_a_block_is_built_costs_no_view_either(node, caplog):
    node.finish()
    node.seal()
    receipt = node.finish()
    node.sealer._note_waiting()
    now_ms, node.now_ms = node.now_ms, node.now_ms - 3_600_000
    node.sealer._carry_on()
    assert "was refused: time_ms: expected within 10000 ms of the clock" in caplog.text
    assert "ms; a clock is wrong, perhaps this machine's" in caplog.text
    assert not node.sealer._engine._is_waiting
    assert node.votes.load(2).votes == ()
    assert node.pending_receipts == [receipt]
    node.now_ms = now_ms
    node.sealer._retry_at = None
    assert node.seal() == 2


def test_a_clock_that_runs_ahead_is_believed(node):
    """Nobody is there to contradict it; block times only have to rise."""
    node.finish()
    node.seal()
    node.now_ms += 10 * 86_400_000
    node.finish()
    assert node.seal() == 2
    assert node.verify() == 2


# --- the thread -------------------------------------------------------------------------------


@pytest.fixture
def running(node, monkeypatch):
    """A node whose sealer runs in its thread; `wait(height)` returns once that is final."""
    changed = threading.Condition()
    heights = [0]

    def final(height):
        with changed:
            heights.append(height)
            changed.notify_all()

    def wait(height):
        with changed:
            assert changed.wait_for(lambda: heights[-1] >= height, TIMEOUT_S)

    monkeypatch.setattr(module, "RETRY_S", 0.01)
    monkeypatch.setattr(node.sealer, "_final", final)
    node.wait = wait
    yield node
    node.sealer.stop()
    assert node.failures == []


def test_the_thread_seals_what_waits_at_its_start_and_what_it_is_told_of(running):
    receipts = [running.finish()]
    running.sealer.start()
    running.wait(1)
    receipts.append(running.finish())
    running.sealer.kick()
    running.wait(2)
    assert final_ids(running) == receipts


def test_the_thread_goes_on_by_itself_once_the_clock_is_right(running, caplog):
    caplog.set_level(logging.ERROR)
    running.finish()
    running.seal()
    running.now_ms -= 3_600_000
    running.finish()
    running.sealer.start()
    seen = threading.Event()
    handler = logging.Handler()
    handler.emit = lambda record: seen.set()
    module.logger.addHandler(handler)
    try:
        assert seen.wait(TIMEOUT_S)
        assert running.chain.tip().height == 1
        running.now_ms += 3_600_000
        running.wait(2)
    finally:
        module.logger.removeHandler(handler)


def test_a_stopped_thread_leaves_a_whole_chain(running):
    running.sealer.start()
    for _ in range(5):
        running.finish()
        running.sealer.kick()
    running.sealer.stop()
    assert not running.sealer._thread.is_alive()
    assert running.verify() == running.chain.tip().tree_size


def test_a_full_queue_of_writes_stops_no_sealing_and_leaves_only_what_is_final(node, monkeypatch):
    write = node.store.write

    def busy(_work):
        raise DatabaseBusyError("node.db: too many writes wait")

    first = node.finish()
    monkeypatch.setattr(node.store, "write", busy)
    assert node.seal() == 1
    assert node.pending_receipts == [first]

    monkeypatch.setattr(node.store, "write", write)
    second = node.finish()
    assert node.seal() == 2
    assert final_ids(node) == [first, second]
    assert node.pending_receipts == []
