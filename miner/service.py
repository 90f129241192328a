"""The miner process: settings to engines to a worker, until SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from prometheus_client.registry import Collector

from miner.auditor import Auditor
from miner.client import CoordinatorClient
from miner.engine import InferenceThread, LlamaEngine
from miner.errors import MinerError, SettingsError
from miner.jobrun import describe
from miner.loading import find_obstacle, load_engines
from miner.metrics import MinerCollector, serve_metrics
from miner.runtime import CUDA
from miner.runtime.gpu import load_nvml, read_gpu
from miner.settings import MinerSettings
from miner.worker import Worker

log = logging.getLogger(__name__)


def run_miner(settings: MinerSettings) -> int:
    """Mine until SIGTERM or SIGINT; the exit status. A failure is logged as one line."""
    try:
        if not settings.models:
            raise SettingsError("no model to serve: give --model NAME=DIRECTORY")
        with InferenceThread() as inference:
            engines = load_engines(settings, inference)
            on_gpu = any(engine.provider == CUDA for engine in engines.values())
            gpu_info = read_gpu_info(settings.gpu) if on_gpu else None
            asyncio.run(_work(settings, engines, gpu_info))
    except MinerError as error:
        log.error("%s", error)  # noqa: TRY400 - the message is for the operator
        return 1
    return 0


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
        find_obstacle=find_obstacle,
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
        async with _serving_metrics(settings, MinerCollector(worker, engines)):
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


@asynccontextmanager
async def _serving_metrics(settings: MinerSettings, collector: Collector) -> AsyncIterator[None]:
    if settings.metrics_port is None:
        yield
        return
    host, port = settings.metrics_host, settings.metrics_port
    async with serve_metrics(collector, host=host, port=port) as address:
        log.info("metrics at %s", address)
        yield
