"""What the long run asks of a miner, and what it makes of samples and of the miner's log."""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import pytest

from miner.tokenizer import ChatTokenizer, Message
from scripts.soak_miner import (
    CONTEXT,
    MAX_TOKENS,
    MAX_WORDS,
    build_longest_order,
    build_miner_command,
    build_order,
    count_tokens,
    count_warnings,
    describe_memory,
)


@pytest.fixture
def tokenizer(embedded_model):
    return ChatTokenizer(embedded_model.path)


LOG = """\
2026-11-25 22:00:01 INFO miner.jobrun: completed job_a1: 10 + 20 tokens, stop
2026-11-25 22:00:02 WARNING miner.jobrun: job_b2 is no longer ours: stopped
2026-11-25 22:00:03 INFO miner.jobrun: completed job_c3: 1 + 2 tokens, length
2026-11-25 22:00:04 WARNING miner.jobrun: job_d4 is no longer ours: stopped
2026-11-25 22:00:05 ERROR miner.jobrun: something else
"""


def test_orders_are_of_many_lengths_and_fit_the_context():
    orders = [build_order(random.Random(seed)) for seed in range(200)]
    words = {len(order["prompt"].split()) for order in orders}
    tokens = {order["params"]["max_tokens"] for order in orders}
    assert len(words) > 50
    assert len(tokens) > 50
    assert max(words) <= MAX_WORDS
    assert max(tokens) <= MAX_TOKENS


def test_the_first_order_fills_more_of_a_slot_than_any_other(tokenizer):
    def count(order):
        return len(tokenizer.encode_chat([Message(role="user", content=order["prompt"])]))

    longest = count(build_longest_order())
    others = [build_order(random.Random(seed)) for seed in range(100)]
    assert max(map(count, others)) + MAX_TOKENS < longest
    assert longest + MAX_TOKENS < CONTEXT


def test_memory_is_told_by_quarters():
    said = describe_memory("miner", [1_000_000] * 4 + [2_000_000] * 4 + [3_000_000] * 8)
    assert said == "miner: 1.0, 2.0, 3.0, 3.0 MB in the quarters of the run, at most 3.0 MB"


def test_the_log_tells_tokens_and_warnings_without_names_of_jobs():
    assert count_tokens(LOG) == (11, 22)
    assert dict(count_warnings(LOG)) == {
        " miner.jobrun: job is no longer ours: stopped": 2,
        " miner.jobrun: something else": 1,
    }


def test_the_miner_has_a_slot_for_every_job():
    options = argparse.Namespace(jobs=64, threads=1)
    command = build_miner_command("http://node", Path("folder"), Path("log"), options)
    assert command[command.index("--slots") + 1] == "64"
    assert command[command.index("--context") + 1] == str(CONTEXT)
