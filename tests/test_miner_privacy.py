"""What a miner does is nobody else's business: the inference library reports nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
# Any of these keeps the library silent too, and would hide that we do not.
SILENCERS = ("CI", "ORT_", "GITHUB_", "TF_BUILD")
LOAD = "import onnxruntime; onnxruntime.get_available_providers()"


def list_traces(tmp_path: Path, code: str) -> list[str]:
    """Run code under a home of its own; return the files that its reporter left there."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(SILENCERS)
    }
    environment |= {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    environment.pop("XDG_CACHE_HOME", None)
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=60)
    return [path.name for path in tmp_path.rglob("*") if path.is_file()]


def test_a_miner_leaves_nothing_to_report(tmp_path):
    assert list_traces(tmp_path, f"import miner.runtime; {LOAD}") == []


def test_the_command_line_leaves_nothing_to_report(tmp_path):
    assert list_traces(tmp_path, f"import node.cli; {LOAD}") == []
