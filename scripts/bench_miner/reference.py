"""Asks the miner and the reference the same, and compares what they say."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from miner.models.embedded import Progress
from miner.runtime import PREFILL_CHUNK, LlamaRuntime
from miner.tokenizer import NUL, REPLACEMENT, ChatTokenizer, Message
from scripts.bench_miner.agreement import (
    Deviation,
    build_agreement_table,
    build_tokens_table,
    compare_answers,
)
from scripts.bench_miner.corpus import build_conversations, build_strings
from scripts.bench_miner.fleet import (
    PEERS,
    ROOT,
    Models,
    RunnerError,
    build_environment,
)
from scripts.bench_miner.table import Table

CONTEXT: Final = 8_192


def compare_with_reference(models: Models, progress: Progress) -> Iterator[Table]:
    """Tables of what agrees.

    Raises:
        RunnerError: the reference failed.
    """
    tokenizer = ChatTokenizer(models.onnx)
    conversations, strings = build_conversations(), build_strings()
    runtime = LlamaRuntime(models.onnx, threads=1, context=CONTEXT, provider="cpu")
    questions = {
        "conversations": [
            [dataclasses.asdict(m) for m in asked] for asked in conversations.values()
        ],
        "strings": strings,
    }
    deviations: dict[str, Deviation] = {}
    with ask_reference(models.gguf, questions) as files:
        tokens = json.loads(next(files).read_text())
        ids = [tokenizer.encode(text) for text in strings]
        texts = [tokenizer.decode(given) for given in tokens["ids"]]
        # No result holds NUL.
        tokens["texts"] = [text.replace(NUL, REPLACEMENT) for text in tokens["texts"]]
        yield build_tokens_table(strings, tokens, {"ids": ids, "texts": texts})
        for (name, messages), path in zip(conversations.items(), files, strict=True):
            deviations[name] = _compare(runtime, tokenizer, messages, path)
            path.unlink()  # they are large
            progress(f"compared {name}")
    yield build_agreement_table(deviations, title="logits and greedy answers")


@contextmanager
def ask_reference(gguf: Path, questions: dict[str, Any]) -> Iterator[Iterator[Path]]:
    """The files that the reference writes, as they come.

    Raises:
        RunnerError: it is not installed, or ended before the last.
    """
    if not PEERS.exists():
        raise RunnerError(f"{PEERS} is missing: make bench-miner installs it")
    with tempfile.TemporaryDirectory(dir=gguf.parent) as name:
        folder = Path(name)
        path = folder / "questions.json"
        path.write_text(json.dumps(questions))
        module = "scripts.bench_miner.reference_peer"
        process = subprocess.Popen(
            [PEERS, "-m", module, gguf, path, folder],
            cwd=ROOT,
            env=build_environment(dict(os.environ), threads=1),
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            yield _wait_for_files(process, folder)
        finally:
            process.kill()
            process.communicate()


def _wait_for_files(process: subprocess.Popen[str], folder: Path) -> Iterator[Path]:
    assert process.stdout
    for line in process.stdout:
        yield folder / line.strip()
    if process.wait():
        raise RunnerError("the reference ended too early")


def _compare(
    runtime: LlamaRuntime, tokenizer: ChatTokenizer, messages: tuple[Message, ...], path: Path
) -> Deviation:
    with np.load(path) as stored:
        reference = dict(stored)
    text = tokenizer.render(messages)
    ids = reference["ids"].tolist()
    return compare_answers(
        reference,
        same_prompt=text == str(reference["text"]) and tokenizer.encode_chat(messages) == ids,
        logits=_score(runtime, ids + reference["greedy"].tolist(), reference["positions"]),
        greedy=_answer(runtime, ids, len(reference["greedy"])),
    )


def _score(
    runtime: LlamaRuntime, ids: list[int], positions: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Logits at these positions, from chunks as an audit scores them."""
    rows = []
    for start in range(0, len(ids), PREFILL_CHUNK):
        chunk = runtime.score(ids[start : start + PREFILL_CHUNK], start=start)
        inside = (positions >= start) & (positions < start + len(chunk))
        rows.append(chunk[positions[inside] - start])
    return np.concatenate(rows)


def _answer(runtime: LlamaRuntime, ids: list[int], new_tokens: int) -> list[int]:
    """The likeliest tokens, from prefill and steps as a job takes them."""
    for start in range(0, len(ids) - 1, PREFILL_CHUNK):
        chunk = ids[start : min(start + PREFILL_CHUNK, len(ids) - 1)]
        runtime.prefill(chunk, slot=0, start=start)
    drawn = [ids[-1]]
    for length in range(len(ids), len(ids) + new_tokens):
        drawn.append(int(runtime.step([drawn[-1]], [length])[0].argmax()))
    return drawn[1:]
