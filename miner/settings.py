"""Everything a miner is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ledger.keys import KeyPair
from miner.runtime import CUDA, ProviderChoice

DEFAULT_CONTEXT: Final = 8_192
CPU_SLOTS: Final = 8
"""More at once cost less each, but each comes slower: of 8, each at a third of the speed."""
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
    metrics_host: str = "127.0.0.1"
    metrics_port: int | None = None
    """Where figures for Prometheus are served; None for nowhere, 0 for any port."""
    grace_s: float = 0.0
    """How long jobs may go on once the miner was asked to stop."""
    context: int = DEFAULT_CONTEXT
    """Most tokens of prompt and answer together, if the model allows as many."""
    provider: ProviderChoice = "auto"
    gpu: int = 0
    """Which GPU, as CUDA counts those that this process may see."""
    audits: bool = True
    """Whether it also audits answers of other miners, in the gaps that its own answers leave."""


def suggest_slots(provider: str) -> int:
    """How many answers each model works on at once, if nobody says and memory allows."""
    return GPU_SLOTS if provider == CUDA else CPU_SLOTS
