"""The long run of a node works, and what it makes of its samples."""

from __future__ import annotations

import argparse
import os

import pytest

from node.datadir import DataDirectory
from scripts.soak_node import (
    SAMPLES,
    Sample,
    Watched,
    compute_slope,
    describe,
    measure_database,
    run,
)


def test_a_short_run_shows_a_node_and_a_follower(tmp_path):
    options = argparse.Namespace(minutes=0.03, clients=1, pause=0.01)
    lines = run(tmp_path, options)
    assert len(lines) == 2 * (1 + SAMPLES + 3) + 1
    assert lines[0].startswith("node: ")
    assert lines[-1].split()[1] == "jobs,"
    assert int(lines[-1].split()[0]) > 0


def test_a_database_is_as_large_as_its_file_and_its_wal(tmp_path):
    (tmp_path / "a.db").write_bytes(b"12")
    assert measure_database(tmp_path / "a.db") == 2
    (tmp_path / "a.db-wal").write_bytes(b"345")
    assert measure_database(tmp_path / "a.db") == 5


def test_a_slope_is_that_of_the_line_which_fits_best():
    assert compute_slope([0, 1, 2, 3], [5, 7, 9, 11]) == 2
    assert compute_slope([0, 1, 2], [1, 2, 1]) == 0
    assert compute_slope([1], [7]) == 0


def test_growth_is_told_of_the_second_half_alone(tmp_path):
    watched = Watched("node", os.getpid(), DataDirectory(tmp_path))
    for number in range(8):
        memory = (100 + max(number - 3, 0)) << 20
        watched.samples.append(
            Sample(at_s=number * 60, memory=memory, files=9, threads=3, databases={})
        )
    *_, memory, files, threads = describe(watched)
    assert memory == "node: +60.0 MiB of memory an hour over the second half"
    assert (files.split()[1], threads.split()[1]) == ("+0.0", "+0.0")


def test_a_sample_is_of_the_process_and_its_databases(tmp_path):
    (tmp_path / "a.db").write_bytes(b"12")
    watched = Watched("node", os.getpid(), DataDirectory(tmp_path))
    watched.look(7)
    (sample,) = watched.samples
    assert sample.databases == {"a.db": 2}
    assert sample.memory > 1 << 20
    assert min(sample.files, sample.threads) > 0
    assert sample.at_s == pytest.approx(7)
