"""Runs schemathesis as its users do, from its command line, and reads its report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.caller import Caller
from tests.conformance.stage import Stage

ROOT = Path(__file__).resolve().parent.parent.parent
HOOKS = Path(__file__).with_name("hooks.py")
REFERENCE = ROOT / "docs/aitbc-reference.yaml"
TIMEOUT_S = 3_600
UNDECLARED_STATUS = "ST103"

# Bodies and parameters draw from what exists now and then; else nearly all answers would be 404.
_CHANCE = 0.4
_PLACES = {"miner_id": ("path", "query", "body"), "model": ("query", "body")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a run came to."""

    codes: frozenset[str]
    """Kinds of failures, such as ST103."""
    tested: int
    """Operations."""
    requests: int
    failed: bool
    text: str
    """All that was printed: each failure, with the command that repeats it."""


def run_schemathesis(
    stage: Stage, folder: Path, *arguments: str, document: Path | None = None, role: str = ""
) -> Outcome:
    """Test a node against its own document, or against one that is given.

    Args:
        stage: the node.
        folder: for the configuration and the report.
        arguments: further ones of `schemathesis run`.
        document: None for the one that the node serves.
        role: whose key every request carries; empty for none.
    """
    config, report = folder / "schemathesis.toml", folder / "report.json"
    config.write_text(_configure(stage, role))
    document = document or _fetch_document(stage, folder)
    result = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(config)),
            *(
                "run",
                str(document),
                "--url",
                stage.url,
                "--report",
                "json",
                "--report-json-path",
                str(report),
            ),
            *("--checks", "all", "--request-timeout", "10", "--no-color", *arguments),
        ],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    text = result.stdout + result.stderr
    assert report.exists(), text
    return _read(json.loads(report.read_bytes()), failed=result.returncode != 0, text=text)


def _fetch_document(stage: Stage, folder: Path) -> Path:
    path = folder / "openapi.json"
    with Caller(stage.url) as caller:
        path.write_bytes(caller.get("/openapi.json").raise_for_status().content)
    return path


def _read(report: dict, *, failed: bool, text: str) -> Outcome:
    assert report["complete"], text
    assert not report["errors"], text
    return Outcome(
        codes=frozenset(failure["code"] for failure in report["failures"]),
        tested=report["operations"]["tested"],
        requests=report["test_cases"]["generated"],
        failed=failed,
        text=text,
    )


def _configure(stage: Stage, role: str) -> str:
    lines = [f"hooks = {json.dumps(str(HOOKS))}"]
    if role:
        lines += ["[headers]", f'X-Api-Key = "{stage.keys[role]}"']
    for name, values in stage.words.items():
        lines += [f"[dictionaries.{name}]", f"values = {json.dumps(values)}"]
    lines.append("[parameters]")
    for name in stage.words:
        for place in _PLACES.get(name, ("path",)):
            lines.append(f'"{place}.{name}" = {{dictionary = "{name}", probability = {_CHANCE}}}')
    return "\n".join(lines) + "\n"
