"""Thousands of histories under faults and lies: no fork, nothing lost, and all heal."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.figures import FIGURES
from tests.simulation.history import Plan, compute_tolerance, draw_plan, run_history
from tests.simulation.network import Counts, Faults
from tests.simulation.report import Report, run_many

ROOT = Path(__file__).resolve().parent.parent.parent
HISTORIES = 2_000
REPLAY_TIMEOUT_S = 120


def test_two_thousand_histories_hold_and_every_network_heals(record_property):
    report = run_many(range(HISTORIES))
    record_property(FIGURES, "\n".join(report.list_lines()))
    assert report.failures == [], "\n".join(report.list_lines())
    assert report.histories == len(report.heal_ms) == HISTORIES
    counts = report.counts
    # What the histories are about has happened in them, and often.
    assert report.heights > 5 * HISTORIES
    assert min(counts.crashes, counts.partitions) > HISTORIES
    assert counts.forged > 5 * HISTORIES
    assert counts.refused > counts.forged
    assert counts.set_changes > HISTORIES // 4
    assert counts.evidence > HISTORIES // 10
    assert counts.audits > HISTORIES


FAULTS = Faults(loss=0.2, duplication=0.2, crash=0.01, max_delay_ms=300)
LYING = Plan(seed=2, count=4, spares=2, liars=1, changes=3, faults=FAULTS)
CLONED = Plan(seed=2, count=7, followers=1, clones=2, faults=FAULTS)


@pytest.mark.parametrize("plan", [LYING, CLONED], ids=["lying", "cloned"])
def test_the_same_seed_gives_the_same_trace(plan):
    first, second = (run_history(plan, keeps_trace=keeps) for keeps in (True, False))
    assert len(first.trace) > 500
    assert replace(first, seconds=0, trace=[]) == replace(second, seconds=0)


def test_another_seed_gives_another_trace():
    hashes = {run_history(replace(LYING, seed=seed)).trace_hash for seed in range(3)}
    assert len(hashes) == 3


@pytest.mark.parametrize("hash_seed", ["0", "1"])
def test_a_replay_in_another_process_prints_the_same_trace(hash_seed):
    here = run_history(draw_plan(2), keeps_trace=True)
    replay = subprocess.run(
        [sys.executable, "-m", "tests.simulation", "--seed", "2"],
        cwd=ROOT,
        env=os.environ | {"PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        timeout=REPLAY_TIMEOUT_S,
    )
    assert replay.returncode == 0, replay.stderr
    assert replay.stdout.startswith("".join(here.trace))
    assert f"trace {here.trace_hash}\n" in replay.stdout
    assert replay.stdout.endswith("all held\n")


# The simulator sees what it looks for.


@pytest.mark.parametrize("byzantine", [{"clones": 2, "liars": 0}, {"clones": 0, "liars": 2}])
def test_more_byzantine_members_than_a_set_stands_fork_the_chain(byzantine):
    assert compute_tolerance(4) == 1
    plans = (draw_plan(seed, count=4, changes=0, **byzantine) for seed in range(100))
    assert any(run_history(plan).rule == "fork" for plan in plans)


def test_tolerance_is_what_a_set_stands_and_still_decides():
    assert [compute_tolerance(count) for count in (1, 2, 3, 4, 7, 10)] == [0, 0, 0, 1, 2, 3]


def test_a_failure_is_told_with_its_seed_and_how_to_replay_it():
    report = Report()
    report.add(replace(run_history(draw_plan(1)), failure="fork: at height 3", rule="fork"))
    lines = report.list_lines()
    assert "1 forks, 0 stuck, 0 lost finals, 0 other failures" in lines
    assert lines[-2:] == [
        "seed 1: fork: at height 3",
        "    replay it with: make simulate SEED=1",
    ]


def test_a_report_adds_up_what_happened():
    report, results = Report(), [run_history(draw_plan(seed)) for seed in range(3)]
    for result in results:
        report.add(result)
    assert report.counts == Counts(
        **{
            name: sum(getattr(result.counts, name) for result in results)
            for name in Counts.__dataclass_fields__
        }
    )
    assert report.heights == sum(result.heights for result in results)
