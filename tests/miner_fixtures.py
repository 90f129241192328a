"""Models for the miner's tests: a tiny one built here, and the embedded one from the cache."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from miner.engine import Completion, GenerationRequest, InferenceThread, LlamaEngine
from miner.models.convert import write_model
from miner.models.digest import digest_model
from miner.models.embedded import ModelDirectory, default_cache, prepare_embedded_model
from miner.models.gguf import parse_gguf
from miner.runtime import LlamaRuntime
from miner.tokenizer import ChatTokenizer
from tests.tiny_model import TinyModel, build_tiny_model


@pytest.fixture(scope="session")
def tiny_model() -> TinyModel:
    return build_tiny_model()


@pytest.fixture(scope="session")
def tiny_directory(tiny_model: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny")
    write_model(parse_gguf(tiny_model.gguf), directory)
    return directory


@pytest.fixture(scope="session")
def embedded_model() -> ModelDirectory:
    """Downloads 93 MB the first time; afterwards it is in the user's cache."""
    return prepare_embedded_model(default_cache(os.environ), lambda _: None)


@pytest.fixture(scope="session")
def embedded_engine(embedded_model: ModelDirectory) -> Iterator[LlamaEngine]:
    with open_engine(embedded_model.path, context=1024) as engine:
        yield engine


@contextmanager
def open_engine(directory: Path, *, context: int, slots: int = 1) -> Iterator[LlamaEngine]:
    """An engine whose thread ends with the context."""
    runtime = LlamaRuntime(directory, threads=2, context=context, slots=slots + 1)
    with InferenceThread() as inference:
        yield LlamaEngine(
            runtime,
            ChatTokenizer(directory),
            model_digest=digest_model(directory),
            inference=inference,
        )


def answer(engine: LlamaEngine, request: GenerationRequest) -> tuple[Completion, list[str]]:
    """The answer, and the pieces of its text."""
    pieces: list[str] = []
    generation = engine.submit(request, on_text=pieces.append)
    return generation.future.result(timeout=60), pieces
