"""docs/api.md as one story that a shell can be told: its `sh` blocks, line by line, in their order.

A reader pastes; so does this. Each command runs in bash with the real curl, in one folder that is
laid out like a checkout with `./aitbc up` running: `aitbc`, and `data/` with the node's files and
connection.json. Variables, functions and files that a command leaves are there for the next ones,
so a block takes what it needs from an answer: `JOB=$(curl … | field job_id)`.

A command must exit with 0, and every answer that curl gets must be 2xx, or one of the statuses that
a comment at the end of the command names: `curl … # 409`. A `json` block directly below shows the
last answer: same keys, same types, at every depth; `"…"` stands for whatever is there.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
COMMAND_TIMEOUT_S = 90

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
STATUS_COMMENT = re.compile(r"\s#(?=[^'\"]*$)(.*)$")
ANYTHING = "…"

# Stands before the real curl in PATH: it notes what was answered, and changes nothing else.
NOTE_ANSWERS = """#!/bin/bash
number=0
until mkdir "$STORY_ANSWERS/$number" 2> /dev/null; do number=$((number + 1)); done
answer="$STORY_ANSWERS/$number"
"$STORY_CURL" -D "$answer/head" "$@" | tee "$answer/body"
exit "${PIPESTATUS[0]}"
"""


@dataclass(frozen=True, slots=True)
class Block:
    """A `sh` block, and the `json` block directly below it if there is one."""

    line: int
    commands: list[str]
    shown: str | None


def read_blocks(text: str) -> list[Block]:
    """Return the shell blocks of a document, in order."""
    fences = list(FENCE.finditer(text))
    blocks = []
    for position, fence in enumerate(fences):
        if fence[1] != "sh":
            continue
        following = fences[position + 1] if position + 1 < len(fences) else None
        is_below = (
            following is not None
            and following[1] == "json"
            and not text[fence.end() : following.start()].strip()
        )
        line = text.count("\n", 0, fence.start()) + 1
        blocks.append(
            Block(line, split_commands(fence[2]), following[2] if following and is_below else None)
        )
    return blocks


def split_commands(text: str) -> list[str]:
    """Return the commands of a block: bash says where one that spans lines is whole."""
    commands, waiting = [], ""
    for line in text.splitlines(keepends=True):
        waiting += line
        if line.endswith("\\\n"):
            continue
        if subprocess.run(["bash", "-n"], input=waiting, text=True, capture_output=True).returncode:
            continue
        if re.sub(r"^\s*#.*$", "", waiting, flags=re.MULTILINE).strip():
            commands.append(waiting.rstrip("\n"))
        waiting = ""
    assert not waiting.strip(), f"not a whole command: {waiting}"
    return commands


class Story:
    """Tells the blocks to a shell, each once, those before it first."""

    def __init__(self, blocks: list[Block], folder: Path, *, curl: str) -> None:
        self._blocks, self._folder = blocks, folder
        self._told: list[list[str]] = []
        self._running: list[subprocess.Popen[bytes]] = []
        self._answers = folder / "answers"
        shims = folder / "bin"
        shims.mkdir()
        (shims / "curl").write_text(NOTE_ANSWERS)
        (shims / "curl").chmod(0o755)
        (folder / "aitbc").symlink_to(ROOT / "aitbc")
        kept = {
            name: value
            for name, value in os.environ.items()
            if name in {"PATH", "HOME", "LANG", "LC_ALL", "TMPDIR"}
        }
        self._environment = kept | {
            "PATH": f"{shims}:{kept['PATH']}",
            "STORY_ANSWERS": str(self._answers),
            "STORY_CURL": curl,
            "no_proxy": "*",
        }

    def tell(self, position: int) -> list[str]:
        """Tell the blocks up to this one; return what is wrong with it."""
        while len(self._told) <= position:
            self._told.append(self._tell(self._blocks[len(self._told)]))
        return self._told[position]

    def _tell(self, block: Block) -> list[str]:
        problems = []
        bodies: list[str] = []
        for command in block.commands:
            found, bodies_of_it = self._run(command)
            problems += found
            bodies += bodies_of_it
        if block.shown is not None:
            problems += compare(block.shown, bodies[-1] if bodies else "")
        return problems

    def _run(self, command: str) -> tuple[list[str], list[str]]:
        for old in sorted(self._answers.rglob("*"), reverse=True) if self._answers.exists() else ():
            old.rmdir() if old.is_dir() else old.unlink()
        self._answers.mkdir(exist_ok=True)
        after = self._folder / "environment"
        after.unlink(missing_ok=True)
        script = f"set -a\n{command}\nresult=$?; env -0 > '{after}'; exit $result\n"
        exit_status, output = self._run_bash(script)
        if exit_status is None:
            return [f"{command}\n  took longer than {COMMAND_TIMEOUT_S} s\n  {output}"], []
        if after.exists():
            pairs = (pair.split("=", 1) for pair in after.read_text().split("\0") if pair)
            self._environment = {
                name: value for name, value in pairs if name not in {"result", "_", "SHLVL", "PWD"}
            }
        numbers = sorted(int(path.name) for path in self._answers.iterdir())
        answers = [self._answers / str(number) for number in numbers]
        wrong = judge(command, exit_status, [read_status(answer) for answer in answers])
        bodies = [(answer / "body").read_text(errors="replace") for answer in answers]
        told = output.strip() or " | ".join(bodies)
        return [f"{command}\n  {'; '.join(wrong)}\n  {told[-1500:]}"] if wrong else [], bodies

    def _run_bash(self, script: str) -> tuple[int | None, str]:
        """Return the exit status, None if it took too long, and the output."""
        log = self._folder / "output"
        with log.open("w") as output:
            process = subprocess.Popen(
                ["bash", "-c", script],
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,  # no pipe, which a program left in the background would hold open
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            exit_status = None
            with contextlib.suppress(subprocess.TimeoutExpired):
                exit_status = process.wait(COMMAND_TIMEOUT_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 0)
            self._running.append(process)
        if exit_status is None:
            self.close()
        return exit_status, log.read_text(errors="replace")

    def variable(self, name: str) -> str:
        """Return what a command left in a variable."""
        return self._environment[name]

    def close(self) -> None:
        """End what commands left running."""
        for process in self._running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._running.clear()


def read_status(answer: Path) -> int | None:
    """Return the last status that curl was told, None if it was told none."""
    head = answer / "head"
    lines = head.read_text(errors="replace").splitlines() if head.exists() else []
    statuses = [int(line.split()[1]) for line in lines if line.startswith("HTTP/")]
    return statuses[-1] if statuses else None


def judge(command: str, exit_status: int, statuses: list[int | None]) -> list[str]:
    """Return what a reader would call wrong."""
    comment = STATUS_COMMENT.search(command)
    named = {int(number) for number in re.findall(r"\b[1-5]\d\d\b", comment[1] if comment else "")}
    wrong = [
        f"answered {status or 'nothing'}, the document says {sorted(named) or '2xx'}"
        for status in statuses
        if status is None or (status not in named if named else status // 100 != 2)
    ]
    if named and not statuses:
        wrong.append(f"asked nothing, the document says {sorted(named)}")
    return wrong + ([f"exit status {exit_status}"] if exit_status else [])


def compare(shown: str, body: str) -> list[str]:
    """Return where an answer has another shape than the one that the document shows."""
    try:
        answer = json.loads(body)
    except ValueError:
        return [f"the document shows JSON, the last answer is {body[:200]!r}"]
    return list(differ(json.loads(shown), answer, "the answer"))


def differ(shown: Any, answer: Any, place: str) -> list[str]:
    """Return every difference of keys and types; `"…"`, as a value or a key, stands for any."""
    if shown == ANYTHING:
        return []
    if name_type(shown) != name_type(answer):
        return [f"{place}: shown as {name_type(shown)}, is {name_type(answer)}"]
    if isinstance(shown, list):
        pairs = [(shown[0], item) for item in answer] if shown else []
        empty = [f"{place}: shown with items, has none"] if shown and not answer else []
        return empty + [text for part in pairs for text in differ(*part, f"{place}[]")]
    if not isinstance(shown, dict):
        return []
    is_open = ANYTHING in shown
    keys = shown.keys() - {ANYTHING}
    found = [f"{place}: no {key!r}" for key in sorted(keys - answer.keys())]
    if not is_open:
        found += [f"{place}: {key!r} is not shown" for key in sorted(answer.keys() - keys)]
    for key in sorted(keys & answer.keys()):
        found += differ(shown[key], answer[key], f"{place}.{key}")
    return found


def name_type(value: Any) -> str:
    """Return what JSON calls a value; whole and broken numbers are the same."""
    names = {dict: "object", list: "array", str: "text", bool: "bool", type(None): "null"}
    return names.get(type(value), "number")
