"""Models fit side by side or are refused; a machine short of memory takes no work."""

import pytest

from miner import loading
from miner.engine import InferenceThread
from miner.errors import SettingsError
from miner.loading import find_obstacle, load_engines
from miner.runtime import llama
from miner.runtime.memory import MIB
from miner.settings import MinerSettings
from tests.builders import build_key
from tests.tiny_model import CONTEXT, HEAD, KV_HEADS, LAYERS

SLOT_BYTES = CONTEXT * 2 * LAYERS * KV_HEADS * HEAD * 4


def settings(tiny_directory, tmp_path, **changes) -> MinerSettings:
    values = {
        "url": "http://127.0.0.1:9",
        "api_key": "",
        "miner_id": "m",
        "key": build_key("miner"),
        "models": {"one": tiny_directory, "two": tiny_directory},
        "cache": tmp_path / "cache",
        "provider": "cpu",
    }
    return MinerSettings(**values | changes)


def test_a_second_model_is_planned_beside_the_cache_that_the_first_may_take(
    tiny_directory, tmp_path, monkeypatch
):
    """Pages of a cache are taken as tokens reach them, so free memory alone says nothing."""
    slots = 4_000
    taken = (slots + 1) * SLOT_BYTES
    monkeypatch.setattr(llama, "read_free_memory", lambda _: taken + 300 * MIB)
    with InferenceThread() as inference, pytest.raises(SettingsError, match="not enough memory"):
        load_engines(settings(tiny_directory, tmp_path, slots=slots), inference)
    with InferenceThread() as inference:
        fewer = settings(tiny_directory, tmp_path, slots=slots, least_slots=1)
        first, second = load_engines(fewer, inference).values()
        assert first.promised_bytes == taken
        assert 1 <= second.slots < first.slots == slots


def test_a_machine_short_of_memory_takes_no_work(monkeypatch):
    monkeypatch.setattr(loading, "read_free_ram", lambda: 300 * MIB)
    assert find_obstacle() is None
    monkeypatch.setattr(loading, "read_free_ram", lambda: None)
    assert find_obstacle() is None, "where the system does not tell"
    monkeypatch.setattr(loading, "read_free_ram", lambda: 200 * MIB)
    assert find_obstacle() == "200 MiB of memory are free, and 256 MiB are to stay so"
