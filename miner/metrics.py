"""A miner's figures for Prometheus, on an address of this machine.

Labels are the names of models that the operator serves, and words of this module: no job, client,
prompt or result, and no more series than that.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Final, get_args

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from miner.engine import LlamaEngine
from miner.errors import SettingsError
from miner.jobrun import Outcome
from miner.worker import Worker

log = logging.getLogger(__name__)

MAX_HEAD_BYTES: Final = 8 << 10
MAX_CONNECTIONS: Final = 8
TIMEOUT_S: Final = 5.0
"""For a request and its answer."""


class MinerCollector(Collector):
    """Reads a worker's and its engines' figures."""

    def __init__(self, worker: Worker, engines: Mapping[str, LlamaEngine]) -> None:
        self._worker = worker
        self._engines = engines

    def collect(self) -> Iterable[Metric]:
        """Read every figure."""
        worker = self._worker
        outcomes = {outcome: worker.outcomes[outcome] for outcome in get_args(Outcome)}
        yield _counter("aitbc_miner_jobs", "Jobs by how they ended.", "outcome", outcomes)
        yield _counter(
            "aitbc_miner_billed_tokens",
            "Tokens of completed jobs.",
            "kind",
            {"prompt": worker.prompt_tokens, "completion": worker.completion_tokens},
        )
        yield GaugeMetricFamily(
            "aitbc_miner_jobs_claimed", "Jobs whose end the node has not been told.", worker.running
        )
        yield from self._collect_engines()

    def _collect_engines(self) -> Iterable[Metric]:
        engines = self._engines
        figures = {name: engine.figures for name, engine in engines.items()}
        yield _gauge(
            "aitbc_miner_slots", "Jobs at once.", {name: e.slots for name, e in engines.items()}
        )
        yield _gauge(
            "aitbc_miner_slots_busy",
            "Answers that have a slot.",
            {name: engine.running for name, engine in engines.items()},
        )
        yield _gauge(
            "aitbc_miner_queue",
            "Answers that wait for a slot.",
            {name: engine.waiting for name, engine in engines.items()},
        )
        for name, text, values in (
            ("prompt_tokens", "Prompt tokens that were computed.", "prompt_tokens"),
            ("shared_tokens", "Prompt tokens that were in the cache.", "shared_tokens"),
            ("shared_prompts", "Prompts whose beginning was in the cache.", "shared_prompts"),
            ("drawn_tokens", "Tokens of answers.", "drawn_tokens"),
            ("moved_tokens", "Tokens copied to keep slots together.", "moved_tokens"),
            ("steps", "Steps of the model for answers.", "steps"),
            ("rows", "Rows of all steps.", "rows"),
        ):
            yield _counter(
                f"aitbc_miner_{name}",
                text,
                "model",
                {model: getattr(figure, values) for model, figure in figures.items()},
            )
        yield _seconds({model: figure.seconds for model, figure in figures.items()})


def _counter(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = CounterMetricFamily(name, text, labels=[label])
    for value, number in values.items():
        family.add_metric([value], number)
    return family


def _gauge(name: str, text: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=["model"])
    for model, number in values.items():
        family.add_metric([model], number)
    return family


def _seconds(seconds: Mapping[str, Mapping[str, float]]) -> Metric:
    family = CounterMetricFamily(
        "aitbc_miner_seconds", "Time of the inference thread.", labels=["model", "part"]
    )
    for model, parts in seconds.items():
        for part, number in parts.items():
            family.add_metric([model, part], number)
    return family


@asynccontextmanager
async def serve_metrics(collector: Collector, *, host: str, port: int) -> AsyncIterator[str]:
    """Answer `GET /metrics`; the address, its port chosen by the system for 0.

    Raises:
        SettingsError: the address cannot be listened on.
    """
    registry = CollectorRegistry()
    registry.register(collector)
    places = asyncio.Semaphore(MAX_CONNECTIONS)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if not places.locked():
                async with places, asyncio.timeout(TIMEOUT_S):
                    writer.write(await _answer(reader, registry))
                    await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # whoever asked has gone, or asks no question
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    try:
        server = await asyncio.start_server(answer, host, port, limit=MAX_HEAD_BYTES)
    except OSError as error:
        raise SettingsError(f"metrics on {host}:{port}: {error.strerror or error}") from error
    address = server.sockets[0].getsockname()
    try:
        yield f"http://{_bracketed(address[0])}:{address[1]}/metrics"
    finally:
        server.close()
        await server.wait_closed()


async def _answer(reader: asyncio.StreamReader, registry: CollectorRegistry) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    words = head.split(b"\r\n", 1)[0].split(b" ")
    if words[:1] not in ([b"GET"], [b"HEAD"]):
        return _response("405 Method Not Allowed", b"", "text/plain", extra="Allow: GET, HEAD\r\n")
    if words[1:2] != [b"/metrics"]:
        return _response("404 Not Found", b"", "text/plain")
    body = generate_latest(registry)
    whole = _response("200 OK", body, CONTENT_TYPE_LATEST)
    return whole if words[0] == b"GET" else whole[: -len(body)]


def _response(status: str, body: bytes, kind: str, *, extra: str = "") -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n{extra}"
        "Connection: close\r\n\r\n"
    )
    return head.encode("ascii") + body


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
