"""Schemathesis finds nothing: every check, every phase, both modes, each kind of key.

It tries the same each time, so a change never fails for what another one did. `make conformance
ARGS="--max-examples 500"` looks longer, and elsewhere each time.
"""

import copy
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import get_args

import pytest

from tests.conformance.runner import REFERENCE, UNDECLARED_STATUS, run_schemathesis
from tests.conformance.stage import Mode, open_stage
from tests.test_api_openapi import REPAIRED, SERVED

BRIEF = ("--generation-deterministic", "--max-examples", "5", "--continue-on-failure")


SERVED_RUNS = [
    ("dev", ""),
    ("dev", "client"),
    ("strict", ""),
    ("strict", "client"),
    ("strict", "miner"),
    ("strict", "admin"),
]
REFERENCE_RUNS = [("dev", "client"), ("strict", "admin")]


class Bench:
    """A node of each mode. Both are tested at once; the runs on one node follow each other."""

    def __init__(self, stack, make_folder):
        self._make_folder = make_folder
        self._stages, self._pools = {}, {}
        for mode in get_args(Mode):
            self._stages[mode] = stack.enter_context(open_stage(make_folder(mode), mode))
            self._pools[mode] = stack.enter_context(ThreadPoolExecutor(1))

    def begin(self, mode, *arguments, **options):
        """Run it once the node is free; returns what will hold the outcome."""
        folder = self._make_folder("run")
        stage = self._stages[mode]
        return self._pools[mode].submit(
            run_schemathesis, stage, folder, *BRIEF, *arguments, **options
        )


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    with ExitStack() as stack:
        yield Bench(stack, tmp_path_factory.mktemp)


@pytest.fixture(scope="module")
def outcomes(bench):
    """What each run comes to, by mode, role and document."""
    runs = [(*run, None) for run in SERVED_RUNS] + [(*run, REFERENCE) for run in REFERENCE_RUNS]
    return {
        (mode, role, document): bench.begin(mode, role=role, document=document)
        for mode, role, document in runs
    }


def count_operations(document) -> int:
    return sum(len(methods) for methods in document["paths"].values())


@pytest.mark.parametrize(("mode", "role"), SERVED_RUNS)
def test_every_answer_is_what_the_served_document_promises(outcomes, mode, role):
    outcome = outcomes[mode, role, None].result()
    assert not outcome.codes, outcome.text
    assert not outcome.failed, outcome.text
    assert outcome.tested == count_operations(SERVED)


@pytest.mark.parametrize(("mode", "role"), REFERENCE_RUNS)
def test_to_a_reader_of_the_reference_some_statuses_are_new_and_nothing_else(outcomes, mode, role):
    outcome = outcomes[mode, role, REFERENCE].result()
    assert outcome.codes <= {UNDECLARED_STATUS}, outcome.text
    assert outcome.tested == count_operations(REPAIRED)


def undeclare(document):
    del document["paths"]["/v1/jobs"]["post"]["responses"]["400"]


def mistype(document):
    document["components"]["schemas"]["Job"]["properties"]["client"]["type"] = "integer"


def narrow(document):
    document["components"]["schemas"]["JobParams"]["properties"]["seed"]["maximum"] = 5


@pytest.mark.parametrize(
    ("change", "code"),
    [(undeclare, UNDECLARED_STATUS), (mistype, "ST108"), (narrow, "ST201")],
)
def test_a_document_that_promises_something_else_is_found_out(bench, change, code, tmp_path):
    document = copy.deepcopy(SERVED)
    change(document)
    path = tmp_path / "changed.json"
    path.write_text(json.dumps(document))
    operations = ("--include-path", "/v1/jobs", "--include-path", "/v1/jobs/{job_id}")
    outcome = bench.begin("dev", *operations, document=path, role="client").result()
    assert outcome.codes == {code}, outcome.text
