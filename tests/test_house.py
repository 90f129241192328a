"""The house keeps its own rules: style, layers, documented commands, locks and templates.

Lint and types run here, not beside pytest, so that one command and one closing line tell all.
"""

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

ROOT = Path(__file__).resolve().parent.parent
TOOLS = Path(sys.executable).parent
TOOL_TIMEOUT_S = 300

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHELLS = frozenset({"", "sh", "bash", "console"})
PLACE = re.compile(r"`((?:[a-z_]+/)+[\w.*-]+)`")
TARGET = re.compile(r"^([a-z-]+):", re.MULTILINE)

FORBIDDEN = {
    "unfinished work": re.compile(r"\b(?:TO[D]O|FIX[M]E|XX[X]|HAC[K])\b"),
    "a package registry's host": re.compile(
        r"\b(?:files\.pytho[n]hosted|pyp[i]\.(?:org|python)|registry\.[a-z]+j?s?\.(?:org|com)|deb\.debia[n])\b"
    ),
    "a package index's address": re.compile(r"index[-_]url|find[-_]links", re.IGNORECASE),
    "a path of somebody's machine": re.compile(
        r"(?<![\w.}\-/])/(?:home|Users|root|work|workspace)/\w"
    ),
}
REQUIREMENT = re.compile(
    r"[a-z0-9][a-z0-9.-]*==[\w.]+(?: ; [\w .'!<>=()]+?)?(?: +--hash=sha256:[0-9a-f]{64})+"
)

# Texts of others, kept byte for byte.
FOREIGN = re.compile(r"^LICENSE$|(?:^|/)vendor/")

TEMPLATE_FORBIDDEN = {
    "unescaped output": re.compile(r"\|\s*safe\b|autoescape\s+false"),
    "script in an attribute": re.compile(r"\shx-on|\son[a-z]+\s*=|js:|javascript:"),
    "style in an attribute": re.compile(r"\sstyle\s*="),
    "an event filter, which htmx evaluates": re.compile(r"hx-trigger\s*=\s*[\"'][^\"']*\["),
}


def run(*command: str | Path, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=TOOL_TIMEOUT_S, **options
    )


def tracked(*patterns: str) -> list[Path]:
    names = run("git", "ls-files", "-z", "--", *patterns).stdout.split("\0")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def found(path: Path, rules: dict[str, re.Pattern[str]]) -> list[str]:
    """Each broken rule of a text as `path:line: rule: match`."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return []
    name = path.relative_to(ROOT)
    return [
        f"{name}:{text.count(chr(10), 0, match.start()) + 1}: {rule}: {match[0]!r}"
        for rule, pattern in rules.items()
        for match in pattern.finditer(text)
    ]


def documented_commands() -> list[str]:
    """Lines of the documents' shell blocks: no prompts, no comments, continued lines joined."""
    commands = []
    for path in tracked("README.md", "docs/*.md"):
        for language, block in FENCE.findall(path.read_text(encoding="utf-8")):
            if language not in SHELLS:
                continue
            for line in block.replace("\\\n", " ").splitlines():
                commands.append(line.removeprefix("$ ").split(" #")[0].strip())
    return commands


@pytest.mark.parametrize(
    "command",
    [
        [TOOLS / "ruff", "check", "--quiet"],
        [TOOLS / "ruff", "format", "--check", "--quiet"],
        [TOOLS / "mypy", "--no-error-summary"],
        [TOOLS / "lint-imports", "--no-logo"],
    ],
    ids=["ruff-check", "ruff-format", "mypy", "import-layers"],
)
def test_the_code_passes(command):
    result = run(*command)
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_documented_make_target_exists():
    targets = set(TARGET.findall((ROOT / "Makefile").read_text(encoding="utf-8")))
    used = {
        word
        for command in documented_commands()
        if command.startswith("make ")
        for word in shlex.split(command)[1:]
        if "=" not in word
    }
    assert {"run", "test"} <= used, "the README names the two commands that matter"
    assert used <= targets


def test_every_documented_aitbc_command_and_option_exists():
    group = importlib.import_module("node.cli").cli
    for line in documented_commands():
        if not line.startswith("./aitbc"):
            continue
        command: click.Command = group
        for word in shlex.split(line)[1:]:
            if word in {"|", ">", "&&", ";", "&"}:
                break
            if word.startswith("--"):
                known = {name for parameter in command.params for name in parameter.opts} | {
                    "--help"
                }
                assert word.split("=")[0] in known, f"unknown option in: {line}"
            elif isinstance(command, click.Group):
                assert word in command.commands, f"unknown command in: {line}"
                command = command.commands[word]


def test_every_documented_place_in_the_code_exists():
    folders = {path.name for path in ROOT.iterdir() if path.is_dir()} - {"build", "data", "network"}
    for document in tracked("README.md", ":(glob)docs/*.md"):
        for place in PLACE.findall(document.read_text(encoding="utf-8")):
            if place.split("/")[0] in folders:
                assert any(ROOT.glob(place)), f"{document.name}: {place}"


def test_no_tracked_file_is_unfinished_or_names_a_place_outside_the_project():
    files = [path for path in tracked() if not FOREIGN.search(str(path.relative_to(ROOT)))]
    assert files
    assert [problem for path in files for problem in found(path, FORBIDDEN)] == []


@pytest.mark.parametrize("path", tracked("requirements/*.txt"), ids=lambda path: path.name)
def test_every_requirement_is_pinned_and_hashed(path):
    text = path.read_text(encoding="utf-8").replace("\\\n", "")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert lines
    assert [line for line in lines if not REQUIREMENT.fullmatch(line)] == []


@pytest.mark.parametrize("path", tracked("requirements/npm*.json"), ids=lambda path: path.name)
def test_every_npm_package_is_pinned_and_hashed(path):
    pins = json.loads(path.read_text(encoding="utf-8"))
    assert pins
    for name, pin in pins.items():
        assert re.fullmatch(r"\d+\.\d+\.\d+", pin["version"]), name
        assert re.fullmatch(r"sha512-[A-Za-z0-9+/]{86}==", pin["integrity"]), name


def test_the_lock_of_lighthouse_has_a_digest_for_every_package_and_names_no_host():
    lock = json.loads((ROOT / "requirements/lighthouse/package-lock.json").read_bytes())
    wanted = json.loads((ROOT / "requirements/lighthouse/package.json").read_bytes())
    packages = {name: pin for name, pin in lock["packages"].items() if name}
    assert lock["packages"][""]["dependencies"] == wanted["dependencies"]
    for name, pin in packages.items():
        assert re.fullmatch(r"sha512-[A-Za-z0-9+/]{86}==", pin["integrity"]), name
        assert "resolved" not in pin, name


def test_a_venv_never_holds_both_onnx_runtimes():
    cpu, gpu, cuda, base, dev = (
        set(re.findall(r"^onnxruntime[a-z-]*", path.read_text(encoding="utf-8"), re.MULTILINE))
        for path in (
            ROOT / f"requirements/{name}.txt" for name in ("cpu", "gpu", "cuda", "base", "dev")
        )
    )
    assert (cpu, gpu, cuda) == ({"onnxruntime"}, {"onnxruntime-gpu"}, {"onnxruntime-gpu"})
    assert base | dev == set()


def test_templates_escape_everything_and_hold_no_script_or_style():
    templates = sorted((ROOT / "templates").rglob("*.*ml"))
    assert [problem for path in templates for problem in found(path, TEMPLATE_FORBIDDEN)] == []


@pytest.mark.parametrize(
    "line",
    [
        "{{ job.prompt | safe }}",
        '<a hx-on:click="x()">',
        '<a hx-vals="js:{}">',
        '<b onclick="x()">',
        '<b hx-trigger="click[ctrlKey]">',
        '<p style="x">',
    ],
)
def test_the_template_rules_catch(line):
    assert any(pattern.search(line) for pattern in TEMPLATE_FORBIDDEN.values())


def fake_checkout(folder: Path, script: str) -> Path:
    """A checkout whose Python is a shell script."""
    python = folder / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    return Path(shutil.copy(ROOT / "aitbc", folder / "aitbc"))


def test_the_launcher_works_from_elsewhere_through_links_and_passes_all_on(tmp_path):
    checkout, elsewhere = tmp_path / "a checkout", tmp_path / "elsewhere"
    checkout.mkdir()
    elsewhere.mkdir()
    launcher = fake_checkout(
        checkout, 'printf "%s\\n" "$PWD" "$PYTHONPATH" "$PYTHONSAFEPATH" "$@"; exit 7'
    )
    (tmp_path / "first").symlink_to(launcher)
    (elsewhere / "second").symlink_to("../first")
    result = subprocess.run(
        ["./second", "verify", "my bundle.json"],
        cwd=elsewhere,
        env=os.environ | {"PYTHONPATH": "/hostile"},
        capture_output=True,
        text=True,
        timeout=TOOL_TIMEOUT_S,
    )
    assert result.returncode == 7
    assert result.stdout.splitlines() == [
        str(elsewhere),
        str(checkout),
        "1",
        *("-m", "node", "verify", "my bundle.json"),
    ]


def test_the_launcher_without_a_venv_says_what_to_do(tmp_path):
    launcher = shutil.copy(ROOT / "aitbc", tmp_path / "aitbc")
    result = run(launcher, "up")
    assert (result.returncode, result.stdout) == (1, "")
    assert 'run "make setup"' in result.stderr
    assert result.stderr.count("\n") == 1
