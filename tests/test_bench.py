"""The benchmark runs, and its table holds every row. How fast anything is, no test says."""

from __future__ import annotations

import msgspec
import pytest

from ledger.store.fsck import verify_chain
from node.datadir import create_data_directory
from scripts.bench import PARTS, format_table, measure
from scripts.bench_figures.measure import Plan, Row, percentile
from scripts.bench_figures.sync import CORES
from scripts.generate import generate

CREATED_MS = 1_700_000_000_000
WITHOUT_MODEL = [part for part in PARTS if part != "model"]
FIGURES = {
    "jobs": [
        *(
            f"{figure}, {connections} at a time"
            for connections in (1, 32, 256)
            for figure in ("job life cycles", "life cycle", "complete")
        ),
        "job life cycles per server core",
        "CPU of a life cycle, 32 at a time",
        *(
            f"  of it {thread}"
            for thread in ("event loop", "writer of node.db", "sealer", "writer of ledger.db")
        ),
    ],
    "finality": [
        "completed until final, 1 authority",
        "completed until final, 4 authorities",
        "completed until final, 7 authorities",
    ],
    "verify": [
        "receipts validated, blocks of 100",
        "blocks of one receipt validated",
        "receipts verified from disk (fsck)",
        "bundles verified (verify_receipt.py)",
    ],
    "sync": [
        f"receipts synced from a node, {CORES} cores",
        "receipts served to a syncing node, per core",
    ],
    "pages": [
        "GET /",
        "GET /blocks",
        "GET /blocks/{height}",
        "GET /receipts",
        "GET /receipts/{id}",
        "GET /txs/{id}",
        "GET /explorer/stats",
        "GET /explorer/blocks",
        "GET /explorer/transactions",
        "GET /explorer/receipts",
        "GET /v1/receipts/{id}",
        "GET /v1/receipts/{id}/proof",
        "GET /health",
        "home page, HTML as sent",
        "home page, scripts as sent",
        "home page, everything as sent",
        "home page, requests",
    ],
    "abuse": [
        "most memory under 2 x endless chunked bodies",
        "most memory under 2 x hostile JSON",
        "most memory under 2 x results of 5 MiB",
        "most memory under 10 x unfinished bodies of 1 MiB",
        "GET /health while attacked",
    ],
    "crowd": [
        "job life cycles, 256 at a time, in a crowd",
        "complete, in a crowd",
        "event streams open in a crowd of 20",
        "until a stream begins",
        "GET /health on a new connection, in a crowd",
        "receipts synced by a follower, in a crowd",
        "most memory of a node in a crowd",
    ],
    "streams": [
        "followers of jobs on one core, an event a second each (all that was asked for)",
        "an event of 20 followers, until it is there",
        "  processor time of the node meanwhile",
        "  memory of the node meanwhile",
    ],
}


@pytest.fixture
def plan(tmp_path):
    return Plan(
        folder=tmp_path,
        rounds=1,
        slice_s=0.01,
        load_s=0.1,
        receipts=60,
        synced=600,
        visits=1,
        finals=2,
        attackers=2,
        crowd=20,
        crowd_s=1,
        followers=20,
    )


@pytest.fixture
def data(tmp_path):
    return create_data_directory(
        tmp_path / "data", network="test-net", name="authority-1", now_ms=CREATED_MS
    )


@pytest.mark.parametrize("part", WITHOUT_MODEL)
def test_every_figure_of_a_part_is_measured_and_shown(plan, part):
    rows, failures = measure(plan, [part])
    assert failures == []
    assert [row.figure for row in rows] == FIGURES[part]
    assert all(row.value > 0 for row in rows)
    lines = format_table(rows).splitlines()[1:]
    assert all(line.startswith(row.figure) for line, row in zip(lines, rows, strict=True))


def test_a_part_that_fails_is_named_and_the_others_are_measured(plan):
    (plan.folder / "finality").write_text("in the way")
    rows, failures = measure(plan, ["finality", "verify"])
    assert len(failures) == 1
    assert failures[0].startswith("finality: ")
    assert [row.figure for row in rows] == FIGURES["verify"]


def test_a_row_states_value_reference_ratio_goal_and_cost():
    row = Row(
        figure="things",
        value=1500.0,
        unit="/s",
        reference="other things",
        reference_value=3000.0,
        goal=">= 2,000/s",
        cpu_micros=666.6,
    )
    heading, line = (" ".join(line.split()) for line in format_table([row]).splitlines())
    assert heading == "figure value p99 reference ratio goal CPU µs"
    assert line == "things 1,500 /s other things 3,000 /s 0.50 >= 2,000/s 667"
    assert msgspec.json.decode(msgspec.json.encode(row), type=Row) == row


def test_a_percentile_is_one_of_the_values():
    assert [percentile(range(100), share) for share in (0, 0.5, 0.99, 1)] == [0, 50, 99, 99]
    assert percentile([7.0], 0.99) == 7.0


def test_a_generated_chain_passes_fsck_and_grows_where_it_ended(data):
    generate(data, receipts=7, block_receipts=3)
    generate(data, receipts=2, block_receipts=3)
    tip = verify_chain(data.ledger, data.load_genesis(), lambda _height, _last: None)
    assert (tip.tree_size, tip.height) == (9, 4)
