"""The miner process: settings to engines to a worker, until SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from blake3 import blake3

from ledger.keys import KeyPair
from miner.auditor import Auditor
from miner.client import CoordinatorClient
from miner.engine import InferenceThread, LlamaEngine
from miner.errors import MinerError, ModelError, SettingsError
from miner.jobrun import describe
from miner.models.digest import cached_digest
from miner.models.layout import find_model
from miner.runtime import CUDA, LlamaRuntime, ProviderChoice
from miner.runtime.gpu import load_nvml, read_gpu
from miner.tokenizer import ChatTokenizer
from miner.worker import Worker

log = logging.getLogger(__name__)

DEFAULT_CONTEXT: Final = 8_192
CPU_SLOTS: Final = 8
"""More answers at once cost less each, but each comes slower: with 8 about a fifth as fast."""
GPU_SLOTS: Final = 32
MAX_SLOTS: Final = 256
OTHER_SLOTS: Final = 1
"""For other work between turns, such as audits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MinerSettings:
    """Everything a miner is told."""

    url: str
    api_key: str
    miner_id: str
    key: KeyPair
    """Signs receipts; its account is paid."""
    models: Mapping[str, Path]
    """Directories, or ONNX files of several in one, by the names they are served under."""
    cache: Path
    """Where digests of models are remembered."""
    threads: int = 1
    slots: int = 1
    """Answers that each model works on at once."""
    least_slots: int | None = None
    """So few will do if there is no memory for more; None: no fewer than `slots`."""
    grace_s: float = 0.0
    """How long jobs may go on once the miner was asked to stop."""
    context: int = DEFAULT_CONTEXT
    """Most tokens of prompt and answer together, if the model allows as many."""
    provider: ProviderChoice = "auto"
    gpu: int = 0
    """Which GPU, as CUDA counts those that this process may see."""
    audits: bool = True
    """Whether it also audits answers of other miners, in the gaps that its own answers leave."""


def run_miner(settings: MinerSettings) -> int:
    """Mine until SIGTERM or SIGINT; the exit status. A failure is logged as one line."""
    try:
        if not settings.models:
            raise SettingsError("no model to serve: give --model NAME=DIRECTORY")
        with InferenceThread() as inference:
            engines = {
                name: load_engine(path, settings, name=name, inference=inference)
                for name, path in settings.models.items()
            }
            on_gpu = any(engine.provider == CUDA for engine in engines.values())
            gpu_info = read_gpu_info(settings.gpu) if on_gpu else None
            asyncio.run(_work(settings, engines, gpu_info))
    except MinerError as error:
        log.error("%s", error)  # noqa: TRY400 - the message is for the operator
        return 1
    return 0


def load_engine(
    directory: Path, settings: MinerSettings, *, name: str, inference: InferenceThread
) -> LlamaEngine:
    """Load, name and try a model.

    Raises:
        ModelError: it cannot be used.
    """
    try:
        settings.cache.mkdir(parents=True, exist_ok=True)
        place = blake3(os.fsencode(directory.resolve())).hexdigest(16)
        digest = cached_digest(directory, settings.cache / f"{place}.digest.json")
        runtime = LlamaRuntime(
            directory,
            threads=settings.threads,
            context=settings.context,
            slots=settings.slots + OTHER_SLOTS,
            least_slots=(settings.least_slots or settings.slots) + OTHER_SLOTS,
            provider=settings.provider,
            gpu=settings.gpu,
        )
        tokenizer = ChatTokenizer(find_model(directory).root)
        engine = LlamaEngine(runtime, tokenizer, model_digest=digest, inference=inference)
    except OSError as error:
        raise ModelError(f"model {name}: {directory}: {error.strerror or error}") from error
    engine.warm_up()
    log.info(
        "model %s: digest %s, on %s, %d slots of %d tokens",
        *(name, digest, engine.provider, engine.slots, runtime.context),
    )
    return engine


def suggest_slots(provider: str) -> int:
    """How many answers each model works on at once, if nobody says and memory allows."""
    return GPU_SLOTS if provider == CUDA else CPU_SLOTS


def read_gpu_info(index: int) -> dict[str, str] | None:
    """Name and memory of the GPU in use, as its driver tells them."""
    gpu = read_gpu(index, os.environ, load_nvml())
    return gpu.public_info if gpu else None


async def _work(
    settings: MinerSettings, engines: Mapping[str, LlamaEngine], gpu_info: dict[str, str] | None
) -> None:
    client = CoordinatorClient(url=settings.url, api_key=settings.api_key)
    worker = Worker(
        client=client,
        miner_id=settings.miner_id,
        key=settings.key,
        engines=engines,
        clock_ms=lambda: time.monotonic_ns() // 1_000_000,
        gpu_info=gpu_info,
        grace_s=settings.grace_s,
        audits=settings.audits,
    )
    auditor = Auditor(
        client=client,
        miner_id=settings.miner_id,
        key=settings.key,
        engines=engines,
        now_ms=lambda: time.time_ns() // 1_000_000,
    )

    def stop() -> None:
        worker.stop()
        auditor.stop()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    auditing = asyncio.create_task(_audit(auditor, enabled=settings.audits))
    try:
        await worker.run()
    finally:
        auditor.stop()
        await auditing
        await client.close()


async def _audit(auditor: Auditor, *, enabled: bool) -> None:
    """Audit until the auditor is stopped; whatever breaks in it, the miner goes on."""
    if not enabled:
        return
    try:
        await auditor.run()
    except Exception as error:
        log.error("no more audits: %s", describe(error))  # noqa: TRY400 - may quote a prompt
