"""What a node is told, for tests that change a part of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from node.config import NodeSettings


def build_settings(**changes: Any) -> NodeSettings:
    """Settings of a node in dev mode on an ephemeral port."""
    plain = {
        "data": Path("data"),
        "host": "127.0.0.1",
        "port": 0,
        "mode": "dev",
        "default_model": "m",
        "price_token_micros": 1,
        "price_gpu_second_micros": 1,
        "batch_delay_ms": 0,
        "max_pending_per_key": 1,
    }
    return NodeSettings(**plain | changes)
