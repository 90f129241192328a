"""The benchmark visits everything, and its table says what is held and what is not."""

import re

import msgspec
import pytest

from node.datadir import DataDirectory
from scripts.bench_explorer import __main__ as bench
from scripts.bench_explorer.table import Figure, format_table, summarize_times
from scripts.generate import Order, generate_months


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    data = DataDirectory(tmp_path_factory.mktemp("bench") / "data")
    order = Order(seed=3, receipts=400, days=20, end_ms=1_760_000_000_000)
    generate_months(data, order)
    plan = bench.Plan(data=data, visits=1, parts=bench.PARTS)
    return {figure.name: figure for figure in bench.measure(plan)}


def test_every_part_is_measured(figures):
    for name in (
        "ledger.db for each receipt",
        "SQL: a page of receipts",
        "a node starts in",
        "home page, requests",
        "/receipts model miner client from to",
        "/receipts, unchanged (304)",
        "/blocks/{height}",
        "/charts/jobs",
        "/_f/suggest?q=",
        "statement of the largest client, CSV, rate",
        "memory of the node at the end",
    ):
        assert figures[name].value > 0, name
    assert figures["/receipts.csv, lines"].value == 401
    assert figures["receipts in the HTML of a list, without script"].value == 25
    sets = [name for name in figures if re.match(r"/receipts( |$)", name)]
    assert len(sets) == 16


def test_the_table_says_what_is_held():
    held = Figure(name="a", value=1, unit="kB", most=2)
    missed = summarize_times("b", [1, 2, 300], most=5, most_p99=25, cpu_micros=1234)
    free = Figure(name="c", value=0.5, unit="s")
    assert [figure.is_ok for figure in (held, missed, free)] == [True, False, None]
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in format_table([held, missed, free]).splitlines()[2:]
    ]
    assert rows == [
        ["a", "1 kB", "", "<= 2", "yes", ""],
        ["b", "2 ms", "300 ms", "<= 5, p99 <= 25", "NO", "1,234"],
        ["c", "0.50 s", "", "", "", ""],
    ]
    assert msgspec.json.decode(msgspec.json.encode([held, missed]), type=list[Figure])[1] == missed


def test_at_least_is_a_budget_too():
    assert Figure(name="a", value=1, unit="", least=2).is_ok is False
    assert Figure(name="a", value=3, unit="", least=2).is_ok is True
