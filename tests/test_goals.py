"""The table of goals: what is met, what is not, and that one failure hides nothing else."""

import pytest

from ledger.errors import StoreError
from node.datadir import DataDirectory
from scripts import bench, goals
from scripts.bench_explorer.table import Figure
from scripts.bench_figures.measure import Row
from scripts.bench_peers.peers import Turn
from scripts.bench_peers.table import FIGURES
from scripts.goals import PARTS, Goal, Order, format_markdown, measure_all


@pytest.fixture
def order(tmp_path) -> Order:
    return Order(
        plan=bench.build_plan(tmp_path, quick=True),
        ledger=DataDirectory(tmp_path / "ledger"),
        visits=1,
        peer_rounds=1,
        peer_seconds=0.1,
    )


def build_jobs(per_core: float, micros: float, complete_ms: float) -> list[Row]:
    return [
        Row(figure="complete, 32 at a time", value=complete_ms, unit="ms", p99=9.0),
        Row(figure="job life cycles per server core", value=per_core, unit="/s", cpu_micros=micros),
        Row(figure="CPU of a life cycle, 32 at a time", value=micros, unit="µs"),
    ]


@pytest.mark.parametrize(
    ("measured", "met"),
    [((6_000, 166, 2.0), [True, True, True]), ((5_999, 175, 2.1), [False, False, False])],
)
def test_life_cycles_are_held_to_rate_cost_and_wait(order, monkeypatch, measured, met):
    monkeypatch.setattr(goals, "measure_jobs", lambda _plan: build_jobs(*measured))
    found = list(PARTS["jobs"](order))
    assert [goal.is_met for goal in found] == met
    assert found[0].cpu_micros == measured[1]


@pytest.mark.parametrize(("rate", "met"), [(60_000, True), (59_999, False)])
def test_a_sync_is_held_to_its_rate(order, monkeypatch, rate, met):
    rows = [Row(figure="receipts synced", value=rate, unit="/s", cpu_micros=30)]
    monkeypatch.setattr(goals, "measure_sync", lambda _plan: rows)
    assert [goal.is_met for goal in PARTS["sync"](order)] == [met]


@pytest.mark.parametrize(("count", "met"), [(19_000, True), (18_999, False)])
def test_followers_are_counted(order, monkeypatch, count, met):
    rows = [
        Row(figure="followers", value=count, unit=""),
        Row(figure="wait", value=20, unit="ms", p99=390),
    ]
    monkeypatch.setattr(goals, "measure_streams", lambda _plan: rows)
    (goal,) = PARTS["streams"](order)
    assert goal.is_met is met
    assert "390 ms" in goal.name


@pytest.mark.parametrize(("slow_ms", "met"), [(24, True), (26, False)])
def test_the_worst_read_decides_and_is_named(order, monkeypatch, slow_ms, met):
    figures = [
        Figure(name="  of it all else", value=1_100, unit="B", most=250),
        Figure(name="SQL: a page", value=60, unit="µs", most=100),
        Figure(name="SQL, instead: by OFFSET", value=1e6, unit="µs"),
        Figure(name="/", value=3, unit="ms", p99=20, most_p99=25),
        Figure(name="/receipts", value=9, unit="ms", p99=slow_ms, most=5, most_p99=25),
        Figure(name=goals.explorer.FIRST_READ, value=40, unit="ms", p99=90),
        Figure(name="/_f/suggest", value=1, unit="ms", p99=30, most_p99=10),
    ]
    monkeypatch.setattr(goals.explorer, "measure", lambda _plan: iter(figures))
    sql, pages, storage = PARTS["reads"](order)
    assert (sql.is_met, pages.is_met, storage.is_met) == (True, met, False)
    assert "1 of 1 within; the worst, a page" in sql.name
    assert "(90 ms from the disk)" in pages.name
    assert f"{2 if met else 1} of 2 within; the worst, /receipts" in pages.name


def test_peers_without_a_goal_are_left_out(order, monkeypatch):
    def take_turns(*_arguments):
        names = {name for figure in FIGURES for name in (figure.ours, figure.theirs)}
        ours = {"node", "records"}
        return {
            name: [Turn(per_second=80 if name in ours else 10, server_micros=1, driver_micros=1)]
            for name in names
        }

    monkeypatch.setattr(goals.peers, "take_turns", take_turns)
    found = list(PARTS["peers"](order))
    assert len(found) == sum(figure.goal is not None for figure in FIGURES)
    assert [goal.is_met for goal in found] == [f.goal <= 8 for f in FIGURES if f.goal is not None]


def test_a_part_that_fails_is_a_line_and_the_others_are_measured(order, monkeypatch, capsys):
    def fail(_order):
        yield Goal("half", "1", ">= 1", is_met=True)
        raise StoreError("no disk")

    def succeed(_order):
        yield Goal("good", "1", ">= 1", is_met=True)

    monkeypatch.setattr(goals, "PARTS", {"a": fail, "b": succeed})
    found = list(measure_all(order, ["a", "b"]))
    assert [(goal.name, goal.is_met) for goal in found] == [
        ("half", True),
        ("a: StoreError: no disk", None),
        ("good", True),
    ]
    lines = format_markdown(found).splitlines()
    assert [line.split(" | ")[3].strip() for line in lines[2:]] == ["yes", "not measured", "yes"]
