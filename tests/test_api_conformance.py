"""Schemathesis finds nothing: every check, every phase, both modes, each kind of key.

It tries the same each time, so a change never fails for what another one did. `make conformance
ARGS="--max-examples 500"` looks longer, and elsewhere each time.
"""

import copy
import json
from contextlib import ExitStack

import pytest

from tests.conformance.runner import REFERENCE, UNDECLARED_STATUS, run_schemathesis
from tests.conformance.stage import open_stage
from tests.test_api_openapi import REPAIRED, SERVED

BRIEF = ("--generation-deterministic", "--max-examples", "5", "--continue-on-failure")


@pytest.fixture(scope="module")
def open_mode(tmp_path_factory):
    """One node of each mode, started when it is asked for."""
    stages = {}
    with ExitStack() as stack:

        def find(mode):
            if mode not in stages:
                folder = tmp_path_factory.mktemp(mode)
                stages[mode] = stack.enter_context(open_stage(folder, mode))
            return stages[mode]

        yield find


def count_operations(document) -> int:
    return sum(len(methods) for methods in document["paths"].values())


@pytest.mark.parametrize(
    ("mode", "role"),
    [
        ("dev", ""),
        ("dev", "client"),
        ("strict", ""),
        ("strict", "client"),
        ("strict", "miner"),
        ("strict", "admin"),
    ],
)
def test_every_answer_is_what_the_served_document_promises(open_mode, mode, role, tmp_path):
    outcome = run_schemathesis(open_mode(mode), tmp_path, *BRIEF, role=role)
    assert not outcome.codes, outcome.text
    assert not outcome.failed, outcome.text
    assert outcome.tested == count_operations(SERVED)


@pytest.mark.parametrize(("mode", "role"), [("dev", "client"), ("strict", "admin")])
def test_to_a_reader_of_the_reference_some_statuses_are_new_and_nothing_else(
    open_mode, mode, role, tmp_path
):
    outcome = run_schemathesis(open_mode(mode), tmp_path, *BRIEF, document=REFERENCE, role=role)
    assert outcome.codes <= {UNDECLARED_STATUS}, outcome.text
    assert outcome.tested == count_operations(REPAIRED)


def undeclare(document):
    del document["paths"]["/v1/jobs"]["post"]["responses"]["400"]


def mistype(document):
    document["components"]["schemas"]["Job"]["properties"]["client"]["type"] = "integer"


def demand(document):
    document["components"]["schemas"]["JobRequest"]["properties"]["prompt"]["maxLength"] = 1


@pytest.mark.parametrize(
    ("change", "code"),
    [(undeclare, UNDECLARED_STATUS), (mistype, "ST108"), (demand, "ST201")],
)
def test_a_document_that_promises_something_else_is_found_out(open_mode, change, code, tmp_path):
    document = copy.deepcopy(SERVED)
    change(document)
    path = tmp_path / "changed.json"
    path.write_text(json.dumps(document))
    outcome = run_schemathesis(
        open_mode("dev"),
        tmp_path,
        *(*BRIEF, "--include-path", "/v1/jobs", "--include-path", "/v1/jobs/{job_id}"),
        document=path,
        role="client",
    )
    assert outcome.codes == {code}, outcome.text
