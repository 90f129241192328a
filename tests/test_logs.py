"""The log: one line an event, valid JSON whatever is in it, request ids, no word of a request."""

import asyncio
import json
import logging
import os
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.testclient import TestClient

from api.answers import answer_json
from api.metering import REQUEST_ID, Outcome
from api.requests import BodyRoom
from api.resource import ApiSettings, Boundary, Operation, Resource
from node.config import choose_access_log
from node.logs import (
    JsonFormatter,
    LogFile,
    TextFormatter,
    access_logger,
    log_outcome,
    note_request_id,
)
from tests.caller import Caller
from tests.live import ROOT, LiveNode
from tests.node_settings import build_settings

ANY_TEXT = st.text(st.characters(exclude_categories=()))
"""With line ends, control characters and lone surrogates."""
OUTCOME = Outcome(
    method="POST",
    route="/v1/jobs/{job_id}/claim",
    status=409,
    seconds=0.0123456,
    request_id="req-1",
    key="abcdefgh",
    error_code="JOB_ALREADY_CLAIMED",
)


def build_record(message: str, *arguments: object, **changes) -> logging.LogRecord:
    record = logging.LogRecord("node.x", logging.INFO, __file__, 1, message, arguments, None)
    record.created, record.msecs = 1_700_000_000.25, 250.0
    for attribute, changed in changes.items():
        setattr(record, attribute, changed)
    return record


def read(line: str) -> dict[str, object]:
    assert "\n" not in line
    assert line.isascii()
    return json.loads(line)


@given(text=ANY_TEXT, name=ANY_TEXT)
def test_a_json_line_is_one_line_of_json_whatever_is_in_it(text, name):
    read_back = read(JsonFormatter().format(build_record("%s", text, name=name)))
    assert read_back["message"] == text.encode("utf-8", "backslashreplace").decode()
    assert {key: read_back[key] for key in ("time", "level")} == {
        "time": "2023-11-14T22:13:20.250Z",
        "level": "INFO",
    }
    # What a strict reader would refuse: half a character.
    json.dumps(read_back, ensure_ascii=False).encode()


@given(text=ANY_TEXT)
def test_an_exception_is_part_of_its_line(text):
    error = ValueError(text)
    record = build_record("failed", exc_info=(ValueError, error, None), stack_info=text)
    line = read(JsonFormatter().format(record))
    assert "ValueError" in str(line["exception"])
    assert line.get("stack", "") == text.encode("utf-8", "backslashreplace").decode()


def test_an_access_line_has_its_facts_as_fields():
    record = build_record("POST", outcome=OUTCOME, request_id="req-1")
    line = read(JsonFormatter().format(record))
    for fixed in ("time", "level", "logger", "message"):
        del line[fixed]
    assert line == {
        "request_id": "req-1",
        "method": "POST",
        "route": "/v1/jobs/{job_id}/claim",
        "status": 409,
        "ms": 12.346,
        "key": "abcdefgh",
        "error_code": "JOB_ALREADY_CLAIMED",
    }


def test_a_line_of_text_says_the_same(caplog):
    with caplog.at_level(logging.INFO, access_logger.name):
        log_outcome(OUTCOME)
    (record,) = caplog.records
    record.request_id = "req-1"
    assert (
        TextFormatter()
        .format(record)
        .endswith(
            " INFO aitbc.access: POST /v1/jobs/{job_id}/claim 409 request_id=req-1 ms=12.346"
            " key=abcdefgh error_code=JOB_ALREADY_CLAIMED"
        )
    )


def test_a_line_outside_of_requests_has_no_request_id():
    record = build_record("block %d is final", 1)
    assert note_request_id(record)
    assert TextFormatter().format(record).endswith(" INFO node.x: block 1 is final")
    assert "request_id" not in read(JsonFormatter().format(record))


def test_every_line_written_while_a_request_is_handled_carries_its_id():
    written = []

    class Keep(logging.Handler):
        def emit(self, record):
            written.append((record.getMessage(), record.request_id))

    handler = Keep()
    handler.addFilter(note_request_id)
    logger = logging.getLogger("tests.logs")
    logger.addHandler(handler)

    async def handle(request):
        logger.error("in the handler")
        await asyncio.create_task(say_later())
        await asyncio.to_thread(logger.error, "in a thread")
        return answer_json({})

    async def say_later():
        logger.error("in a task")

    resource = Resource(
        {"GET": Operation(handler=handle)},
        keys=None,
        settings=ApiSettings(mode="dev", version="0", default_model="m"),
        make_request_id=lambda: "made",
        room=BodyRoom(),
        boundary=Boundary(observe=lambda outcome: logger.error("at the end")),
    )
    with TestClient(Starlette(routes=[Route("/x", resource)])) as client:
        client.get("/x", headers={"X-Request-Id": "first"})
        client.get("/x")
    logger.removeHandler(handler)
    places = ("in the handler", "in a task", "in a thread", "at the end")
    assert written == [(place, name) for name in ("first", "made") for place in places]
    assert REQUEST_ID.get() == ""


def test_a_log_file_is_rotated_when_it_is_full_and_loses_no_line(tmp_path):
    path = tmp_path / "node.log"
    handler = LogFile(path, max_bytes=100)
    for number in range(12):
        handler.emit(build_record("%s", f"line {number:02} " + "\udc80" * 4))
    handler.close()
    files = [tmp_path / f"node.log{end}" for end in (".2", ".1", "")]
    lines = [line for file in files for line in file.read_text("utf-8").splitlines()]
    assert lines == [rf"line {number:02} " + r"\udc80" * 4 for number in range(12)]
    assert [len(file.read_text().splitlines()) for file in files] == [4, 4, 4]
    assert len(list(tmp_path.iterdir())) == 3


def test_what_is_no_file_is_written_to_and_not_rotated(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    handler = LogFile(pipe, max_bytes=1)
    for number in range(3):
        handler.emit(build_record("line %d", number))
    handler.close()
    assert os.read(reader, 1000) == b"line 0\nline 1\nline 2\n"
    os.close(reader)
    assert list(tmp_path.iterdir()) == [pipe]


# --- a whole node -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "told", "expected"),
    [
        ("dev", None, False),
        ("strict", None, True),
        ("dev", True, True),
        ("strict", False, False),
    ],
)
def test_requests_are_logged_in_strict_mode_unless_told_otherwise(mode, told, expected):
    assert choose_access_log(build_settings(mode=mode, access_log=told)) is expected


def use(live: LiveNode, secret: str) -> str:
    """Send a request with a secret in every part of it; returns the log."""
    key = live.create_key("admin")
    live.start()
    try:
        with Caller(live.url, key) as caller:
            caller.http.headers["X-Request-Id"] = "the-request"
            caller.post("/v1/jobs", prompt=secret)
            caller.get(f"/v1/jobs/{secret}?q={secret}")
            caller.get(f"/v1/{secret}")
    finally:
        assert live.stop() == 0
    log = (live.data.root / "node.log").read_text()
    assert secret not in log
    assert key.split("_", 2)[2] not in log
    return log


def test_a_node_writes_one_json_line_for_each_request_and_nothing_of_what_it_said(tmp_path):
    live = LiveNode(tmp_path / "node", "--mode", "strict", "--log-format", "json")
    lines = [json.loads(line) for line in use(live, "SeCrEt").splitlines()]
    access = [line for line in lines if line["logger"] == "aitbc.access"]
    assert [(line["method"], line["route"], line["status"]) for line in access] == [
        ("POST", "/v1/jobs", 201),
        ("GET", "/v1/jobs/{job_id}", 404),
        ("GET", "unknown", 404),
    ]
    assert [line.get("error_code") for line in access] == [
        *(None, "JOB_NOT_FOUND", "PATH_NOT_FOUND")
    ]
    assert {line["request_id"] for line in access} == {"the-request"}
    assert all(line["ms"] > 0 for line in access)


def test_a_miner_writes_json_too(tmp_path):
    served = ("--keyfile", str(tmp_path / "key.json"), "--model", f"m={tmp_path / 'nothing'}")
    process = subprocess.run(
        [sys.executable, "-m", "node", "miner", *served, "--log-format", "json"],
        cwd=ROOT,
        env={**os.environ, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    *_, line = map(json.loads, process.stderr.splitlines())
    assert (process.returncode, line["level"], line["logger"]) == (1, "ERROR", "miner.service")


def test_in_dev_mode_a_node_writes_text_and_no_access_lines(tmp_path):
    log = use(LiveNode(tmp_path / "node", "--mode", "dev"), "SeCrEt")
    assert "aitbc.access" not in log
    log = use(LiveNode(tmp_path / "other", "--mode", "dev", "--access-log"), "SeCrEt")
    pattern = r"INFO aitbc\.access: POST /v1/jobs 201 request_id=the-request ms=[\d.]+ key=\w+\n"
    assert len(re.findall(pattern, log)) == 1
