"""A short run of `make chaos`, and that what it looks for would be found."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from node.datadir import DataDirectory, create_data_directory
from scripts.chaos.__main__ import list_lines, run_chaos, run_shared_chaos
from scripts.chaos.clocked import OFFSET, write_offset
from scripts.chaos.history import History, Place, judge
from scripts.chaos.links import Links, State
from scripts.chaos.nodes import ChaosError, Node, Nodes
from scripts.generate import generate
from tests.figures import FIGURES

SEED = 2
SECONDS = 0
"""The one round in which the quorum is lost: one node is killed, one stopped."""
CREATED_MS = 1_700_000_000_000
RECEIPTS = 6
TIMEOUT_S = 30


def test_a_network_keeps_its_promises_whatever_happens_to_its_nodes(tmp_path, record_property):
    outcome = run_chaos(tmp_path, seconds=SECONDS, seed=SEED)
    record_property(FIGURES, "\n".join(list_lines(outcome)))
    assert outcome.verdict.faults == []
    assert outcome.rounds == len(outcome.heal_s) == 1
    assert outcome.counts == {"lost quorums": 1, "kills": 1, "restarts": 1}
    assert outcome.verdict.receipts == len(outcome.history.completed) > 0
    assert outcome.history.looks > 0


def test_front_ends_keep_their_promises_when_their_database_crashes_and_one_is_killed(
    tmp_path, record_property
):
    outcome = run_shared_chaos(tmp_path, seconds=SECONDS, seed=SEED)
    record_property(FIGURES, "\n".join(list_lines(outcome)))
    assert outcome.verdict.faults == []
    assert outcome.counts == {"database crashes": 1, "kills": 1}
    assert outcome.verdict.receipts == len(outcome.history.completed) > 0
    assert outcome.history.looks > 0


# What the judge finds


@pytest.fixture(scope="module")
def ledger(tmp_path_factory) -> DataDirectory:
    root = tmp_path_factory.mktemp("chain") / "node"
    data = create_data_directory(root, network="n", name="authority-1", now_ms=CREATED_MS)
    generate(data, receipts=RECEIPTS, block_receipts=2)
    return data


@pytest.fixture
def node(ledger) -> Node:
    log = ledger.root / "node.log"
    return Node(name="a", command="run", data=ledger, log=log, port=0, proxy=0, admin_key="k")


@pytest.fixture
def told(ledger) -> dict[str, tuple[str, Place]]:
    """Receipts of the ledger: job and place of each."""
    with closing(sqlite3.connect(ledger.ledger)) as connection:
        rows = connection.execute(
            "SELECT receipt_id, height, leaf, json_extract(envelope, '$.payload.job_id')"
            " FROM receipts JOIN transactions USING (leaf)"
        ).fetchall()
    return {receipt: (job, Place(height, leaf)) for receipt, height, leaf, job in rows}


def build_history(told) -> History:
    history = History()
    for receipt, (job, place) in told.items():
        history.submitted[job] = "a"
        history.note_completed("a", job, receipt)
        history.note_final("a", receipt, place)
    return history


def test_a_history_that_the_ledger_bears_out_has_no_fault(node, told):
    verdict = judge(build_history(told), [node, node])
    assert verdict.faults == []
    assert (verdict.receipts, verdict.height) == (RECEIPTS, RECEIPTS // 2)


def test_a_receipt_that_was_acknowledged_and_is_nowhere_is_a_lost_write(node, told):
    history = build_history(told)
    history.submitted["job"] = "a"
    history.note_completed("a", "job", "rcp_lost")
    verdict = judge(history, [node])
    assert verdict.lost_writes == ["rcp_lost on a"]
    assert verdict.faults == verdict.lost_writes


def test_a_receipt_that_was_shown_as_final_elsewhere_is_a_lost_final(node, told):
    history = build_history(told)
    receipt = next(iter(told))
    history.finals[receipt] = Place(1, 99)
    assert [f.split(":")[0] for f in judge(history, [node]).lost_finals] == [f"{receipt} on a"]


def test_two_nodes_that_show_a_receipt_at_two_places_contradict_each_other(told):
    history = build_history(told)
    history.note_final("b", next(iter(told)), Place(7, 7))
    assert len(history.broken) == 1


def test_a_job_that_ended_twice_is_told_of(told):
    history = build_history(told)
    history.ended["job"] = "cancelled"
    history.note_completed("a", "job", "rcp_other")
    assert history.broken == ["job was cancelled and then completed"]


def test_a_job_without_an_end_is_stuck(node, told):
    history = build_history(told)
    history.submitted["job"] = "a"
    assert judge(history, [node]).stuck_jobs == ["job"]


def test_two_chains_of_one_network_are_a_fork(node, told, tmp_path):
    """The same receipts in blocks of another size, under the same genesis."""
    data = create_data_directory(tmp_path / "b", network="n", name="b", now_ms=CREATED_MS)
    generate(data, receipts=RECEIPTS, block_receipts=3)
    log = data.root / "node.log"
    other = Node(name="b", command="run", data=data, log=log, port=0, proxy=0, admin_key="k")
    assert judge(History(), [node, other]).forks == ["height 1 of a and b"]


def test_a_ledger_that_does_not_verify_is_told_of(tmp_path):
    data = create_data_directory(tmp_path / "c", network="n", name="c", now_ms=CREATED_MS)
    generate(data, receipts=2, block_receipts=1)
    with closing(sqlite3.connect(data.ledger)) as connection:
        connection.execute("UPDATE transactions SET envelope = replace(envelope, 'v', 'w')")
        connection.commit()
    log = data.root / "node.log"
    node = Node(name="c", command="run", data=data, log=log, port=0, proxy=0, admin_key="k")
    assert judge(History(), [node]).other


def test_a_node_that_ends_by_itself_breaks_a_promise(tmp_path):
    nodes = Nodes(tmp_path / "network", None)
    node = nodes.all["authority-1"]

    async def run() -> None:
        with nodes.running():
            await nodes.start(node)
            os.kill(node.process.pid, 9)
            await asyncio.to_thread(node.process.wait, TIMEOUT_S)
            nodes.note_ended(node)

    with pytest.raises(ChaosError, match="authority-1 ended by itself with -9"):
        asyncio.run(run())


# Links and clocks


async def serve_echo() -> tuple[asyncio.Server, int]:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100):
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    return server, server.sockets[0].getsockname()[1]


async def listen(links: Links, behind: int) -> int:
    await links.listen("b", 0, behind)
    return links._servers[0].sockets[0].getsockname()[1]


def test_a_link_passes_is_silent_and_is_refused_for_the_process_that_calls():
    async def run() -> None:
        links = Links(lambda: {"a": os.getpid()})
        server, behind = await serve_echo()
        port = await listen(links, behind)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)

        async def echo() -> bytes:
            writer.write(b"x")
            return await reader.readexactly(1)

        async with asyncio.timeout(TIMEOUT_S):
            assert await echo() == b"x"
            links.between("c", "b").put(State.SILENT)  # somebody else's link
            assert await echo() == b"x"
            links.between("a", "b").put(State.SLOW)
            assert await echo() == b"x"
            links.between("a", "b").put(State.SILENT)
            answer = asyncio.create_task(echo())
            done, _ = await asyncio.wait({answer}, timeout=0.2)
            assert not done
            links.between("a", "b").put(State.OPEN)  # nothing was lost, as on a real cable
            assert await answer == b"x"
            links.between("a", "b").put(State.REFUSED)
            assert await reader.read() == b""
        writer.close()
        server.close()
        await links.close()

    asyncio.run(run())


def test_a_moved_clock_is_an_offset_in_a_file(tmp_path: Path):
    path = tmp_path / "clock"
    for offset_ms in (0, 60_000, -60_000):
        write_offset(path, offset_ms)
        assert OFFSET.unpack(path.read_bytes()) == (offset_ms,)
