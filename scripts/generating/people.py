"""Who takes part in the months of a generated chain: models, miners, clients, and what they cost.

Keys come from the seed, so everybody has them: nothing signed by them is worth anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from blake3 import blake3

from ledger.keys import KeyPair
from scripts.generating.draws import Choices, draw, scale

CLIENTS = 2_000
MINERS = 60
KEYLESS_MINERS = 4
"""Of these, how many have no key: their receipts name them, and the coordinator alone signs."""
CHEAT = 7
"""This miner runs a smaller model than it bills; audits of its answers often fail."""

SHARES = 1000
"""The whole time, in which models and miners come and go."""

_GPUS = (
    ("NVIDIA H100 80GB HBM3", "79.6 GiB", 14),
    ("NVIDIA A100-SXM4-40GB", "39.4 GiB", 8),
    ("NVIDIA L4", "22.5 GiB", 4),
    ("NVIDIA GeForce RTX 4090", "23.6 GiB", 7),
    ("NVIDIA GeForce RTX 3060", "11.8 GiB", 2),
    ("", "", 1),
)
"""Name, memory and how fast, compared to a processor alone."""
_PLACES = ("oslo", "lima", "kyoto", "porto", "graz", "quito", "perth", "turku", "essen", "hanoi")
_FIRST = ("north", "blue", "quiet", "open", "little", "bright", "old", "river", "stone", "paper")
_SECOND = (
    *("lab", "archive", "desk", "search", "garden"),
    *("index", "press", "clinic", "school", "shop"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model that jobs ask for."""

    name: str
    price_micros: int
    """Of one token when it came out."""
    tokens_s: int
    """On a processor alone."""
    weight: int
    from_share: int = 0
    to_share: int = SHARES

    @property
    def digest(self) -> str:
        """Of its files."""
        return blake3(f"generated model {self.name}".encode()).hexdigest()


MODELS = (
    Model(name="smollm2:135m", price_micros=10, tokens_s=55, weight=260),
    Model(name="llama3.2:1b", price_micros=24, tokens_s=28, weight=240, to_share=820),
    Model(name="llama3.2:3b", price_micros=48, tokens_s=12, weight=180),
    Model(name="qwen2.5:0.5b", price_micros=16, tokens_s=40, weight=120),
    Model(name="qwen2.5-coder:7b", price_micros=95, tokens_s=5, weight=90, from_share=150),
    Model(name="mistral:7b", price_micros=90, tokens_s=5, weight=80),
    Model(name="gemma2:2b", price_micros=38, tokens_s=15, weight=70, from_share=80),
    Model(name="phi3.5:3.8b", price_micros=52, tokens_s=10, weight=50, to_share=600),
    Model(name="qwen3:8b", price_micros=110, tokens_s=5, weight=150, from_share=430),
    Model(name="gpt-oss:20b", price_micros=260, tokens_s=3, weight=110, from_share=610),
    Model(name="deepseek-r1:32b", price_micros=410, tokens_s=2, weight=40, from_share=700),
    Model(name="whisper-large-v3", price_micros=0, tokens_s=20, weight=30, from_share=250),
)
"""The last one is billed by the second."""


@dataclass(frozen=True, kw_only=True)
class Miner:
    """A machine that runs jobs."""

    number: int
    seed: int
    gpu: tuple[str, str, int]
    models: tuple[Model, ...]
    weight: int
    from_share: int
    to_share: int

    @cached_property
    def key(self) -> KeyPair | None:
        """None of one without a key."""
        if self.number < KEYLESS_MINERS:
            return None
        return build_key(f"miner {self.number}", self.seed)

    @property
    def name(self) -> str:
        """As it registers."""
        return f"{_PLACES[self.number % len(_PLACES)]}-{self.number // len(_PLACES) + 1}"

    @property
    def provider(self) -> str:
        """As receipts name it."""
        return self.key.account if self.key is not None else self.name

    @property
    def speed(self) -> int:
        """Compared to a processor alone."""
        return self.gpu[2]


def build_key(name: str, seed: int) -> KeyPair:
    """Return a key that everybody can make."""
    return KeyPair.from_seed(draw_bytes(f"key of {name} {seed}", 32))


def draw_bytes(label: str, size: int) -> bytes:
    """Return bytes for a label."""
    return blake3(f"generated {label}".encode()).digest(length=size)


def list_miners(seed: int) -> tuple[Miner, ...]:
    """Return all miners; every model always has one that stays."""
    return tuple(_build_miner(number, seed) for number in range(MINERS))


def _build_miner(number: int, seed: int) -> Miner:
    numbers = draw(f"miner {seed} {number}", 4 + len(MODELS))
    stays = number < 2 * len(_PLACES)
    first = 0 if stays else scale(numbers[0], 0, 800)
    last = SHARES if stays else scale(numbers[1], first + 100, SHARES + 400)
    share = 1 << 31 if number % 3 else 1 << 30
    models = tuple(m for m, n in zip(MODELS, numbers[4:], strict=True) if stays or n < share)
    return Miner(
        number=number,
        seed=seed,
        gpu=_GPUS[scale(numbers[2], 0, len(_GPUS) - 1)],
        models=models or MODELS[:1],
        weight=scale(numbers[3], 5, 100) ** 2,
        from_share=first,
        to_share=min(last, SHARES),
    )


def choose_clients() -> Choices[str]:
    """Return the clients: one submits a quarter of all jobs, and few others most of the rest."""
    names = [_name_client(number) for number in range(CLIENTS)]
    weights = [1_000_000 // (number + 2) for number in range(CLIENTS)]
    return Choices(names, [2_200_000, *weights[1:]])


def _name_client(number: int) -> str:
    first, second = _FIRST[number % 10], _SECOND[number // 10 % 10]
    return f"{first}-{second}" + (f"-{number // 100}" if number >= 100 else "")
