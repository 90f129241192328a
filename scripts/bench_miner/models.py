"""The embedded model in the forms that runners take, kept beside the peers."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Final

import onnx

from miner.models.embedded import (
    DIGEST,
    Progress,
    default_cache,
    fetch_gguf,
    prepare_embedded_model,
)
from scripts.bench_miner.fleet import ROOT, Models

FOLDER: Final = ROOT / "build" / "peers" / "models"
EXACT: Final = 0
ROUNDED: Final = 4
"""MatMulNBits' accuracy_level: inputs rounded to 8 bits per block, so that integers multiply."""


def prepare_models(progress: Progress) -> Models:
    """Make what is missing.

    Raises:
        MinerError: the embedded model cannot be had.
    """
    served = prepare_embedded_model(default_cache(os.environ), progress).path
    FOLDER.mkdir(parents=True, exist_ok=True)
    gguf, rounded = FOLDER / "smollm2-135m.gguf", FOLDER / f"rounded-{DIGEST[:16]}"
    with tempfile.TemporaryDirectory(dir=FOLDER) as scratch:
        if not gguf.exists():
            progress("Downloading the embedded model as GGUF")
            fresh = Path(scratch) / gguf.name
            fresh.write_bytes(fetch_gguf(Path(scratch)))
            fresh.rename(gguf)
        if not rounded.exists():
            copy = Path(scratch) / rounded.name
            shutil.copytree(served, copy)
            round_inputs(copy / "model.onnx")
            copy.rename(rounded)
    return Models(onnx=served, rounded=rounded, gguf=gguf)


def round_inputs(path: Path) -> None:
    """Let all layers of a model file multiply integers; the head does so exactly already."""
    model = onnx.load(str(path), load_external_data=False)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level" and attribute.i == EXACT:
                attribute.i = ROUNDED
    path.write_bytes(model.SerializeToString())
