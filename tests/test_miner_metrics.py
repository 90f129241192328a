"""What a miner tells its operator, and whom it tells nothing."""

import asyncio
from collections import Counter
from contextlib import suppress
from types import SimpleNamespace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from miner import metrics
from miner.errors import SettingsError
from miner.metrics import MinerCollector, serve_metrics
from tests.miner_fixtures import answer, open_engine
from tests.test_miner_batch import request
from tests.tiny_model import CONTEXT

SECRET = "mysecret"


@pytest.fixture(scope="module")
def collector(tiny_directory):
    with open_engine(tiny_directory, context=CONTEXT, slots=3) as engine:
        for number in range(2):
            answer(engine, request(number, prompt=SECRET, max_tokens=5, temperature_micros=0))
        worker = SimpleNamespace(
            outcomes=Counter(completed=2, lost=1), prompt_tokens=7, completion_tokens=9, running=1
        )
        yield MinerCollector(worker, {"tiny": engine})


def ask(collector, sent: bytes) -> bytes:
    async def story() -> bytes:
        async with serve_metrics(collector, host="127.0.0.1", port=0) as address:
            port = int(address.rsplit(":", 1)[1].split("/")[0])
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent)
            try:
                return await reader.read()
            except ConnectionResetError:
                return b""
            finally:
                writer.close()
                with suppress(ConnectionResetError):
                    await writer.wait_closed()

    return asyncio.run(story())


def test_figures_are_in_the_format_of_prometheus_and_name_no_prompt(collector):
    head, body = ask(collector, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").split(b"\r\n\r\n", 1)
    assert head.startswith(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain")
    assert SECRET.encode() not in body
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }
    assert samples["aitbc_miner_jobs_total", "completed"] == 2
    assert samples["aitbc_miner_jobs_total", "released"] == 0, "outcomes are there from the start"
    assert samples["aitbc_miner_billed_tokens_total", "completion"] == 9
    assert samples["aitbc_miner_slots", "tiny"] == 3
    assert samples["aitbc_miner_slots_busy", "tiny"] == 0
    assert samples["aitbc_miner_shared_prompts_total", "tiny"] == 1
    assert samples["aitbc_miner_drawn_tokens_total", "tiny"] == 10
    assert samples["aitbc_miner_seconds_total", "tiny", "decode"] > 0
    assert len(samples) < 40


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", b"404"),
        (b"POST /metrics HTTP/1.1\r\n\r\n", b"405"),
        (b"\r\n\r\n", b"405"),
        (b"GET\r\n\r\n", b"404"),
    ],
)
def test_nothing_else_is_served(collector, sent, status):
    assert ask(collector, sent).split(b" ")[1] == status


@pytest.mark.parametrize("sent", [b"x" * 100_000, b"GET /metrics HTTP/1.1\r\n"])
def test_who_asks_no_question_is_hung_up_on(collector, sent, monkeypatch):
    monkeypatch.setattr(metrics, "TIMEOUT_S", 0.05)
    assert ask(collector, sent) == b""


def test_more_connections_than_there_are_places_are_closed_at_once(collector, monkeypatch):
    monkeypatch.setattr(metrics, "MAX_CONNECTIONS", 0)
    assert ask(collector, b"GET /metrics HTTP/1.1\r\n\r\n") == b""


def test_an_address_that_is_taken_is_refused_in_one_line(collector):
    async def story() -> None:
        async with serve_metrics(collector, host="127.0.0.1", port=0) as address:
            port = int(address.rsplit(":", 1)[1].split("/")[0])
            with pytest.raises(SettingsError, match=f"metrics on 127.0.0.1:{port}"):
                async with serve_metrics(collector, host="127.0.0.1", port=port):
                    pass

    asyncio.run(story())
