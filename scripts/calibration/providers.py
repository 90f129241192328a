"""Who answers in the calibration: honest providers, and cheats that claim to be one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from miner.runtime import ProviderChoice
from miner.sampling import MICROS, SamplingParams, choose_token
from scripts.calibration.prompts import Prompt

Logits: TypeAlias = NDArray[Any]
Choose: TypeAlias = Callable[[Logits, SamplingParams, bytes, int], int]
SWAPPED_STEP: Final = 10
"""The token that a provider swaps, where one is swapped."""


def choose_honestly(logits: Logits, params: SamplingParams, key: bytes, step: int) -> int:
    """What docs/sampling.md says."""
    return choose_token(logits, params=params, key=key, step=step)


def choose_runner_up(logits: Logits, params: SamplingParams, key: bytes, step: int) -> int:
    """Once the second best instead of the best, as whoever hides a message would."""
    best = choose_honestly(logits, params, key, step)
    if step != SWAPPED_STEP:
        return best
    without = np.array(logits, np.float32)
    without[best] = -np.inf
    return choose_honestly(without, params, key, step)


def _same(params: SamplingParams) -> SamplingParams:
    return params


def _greedy(params: SamplingParams) -> SamplingParams:
    return dataclasses.replace(params, temperature_micros=0)


def _scale_temperature(micros: int) -> Callable[[SamplingParams], SamplingParams]:
    return lambda params: dataclasses.replace(
        params, temperature_micros=params.temperature_micros * micros // MICROS
    )


def _other_nucleus(params: SamplingParams) -> SamplingParams:
    other = 900_000 if params.top_p_micros == MICROS else MICROS
    return dataclasses.replace(params, top_p_micros=other)


def _whole(prompt: Prompt) -> Prompt:
    return prompt


def _shortened(prompt: Prompt) -> Prompt:
    """Without a tenth of its words, to save prefill."""
    if not isinstance(prompt, str):
        return prompt[-1:]
    words = prompt.split(" ")
    return " ".join(words[: -max(1, len(words) // 10)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """How one provider answers."""

    name: str
    model: str = "base"
    slots: int = 16
    threads: int = 1
    runs_on: ProviderChoice = "cpu"
    drawn: Callable[[SamplingParams], SamplingParams] = _same
    """The parameters that it really draws with."""
    choose: Choose = choose_honestly
    read: Callable[[Prompt], Prompt] = _whole
    """What it really gives to the model."""
    needs_temperature: bool = False
    """Whether at temperature 0 it would be honest."""
    share: int = 1
    """It answers one of so many jobs of the reported set."""
    tuning_share: int = 1
    """And one of so many of the other."""


HONEST: Final = (
    Provider(name="batch 16"),
    Provider(name="batch 1", slots=1, share=8, tuning_share=4),
    Provider(name="batch 8, 2 threads", slots=8, threads=2, share=8, tuning_share=4),
    Provider(name="fp32 head", model="fp32-head", share=8, tuning_share=2),
    Provider(name="half precision", model="half", share=2, tuning_share=2),
)
ON_A_GPU: Final = Provider(name="GPU, batch 32", model="float16", slots=32, runs_on="cuda")
CHEATS: Final = (
    Provider(name="bfloat16", model="bfloat", share=6),
    Provider(name="int8 layers", model="int8-layers", share=6),
    Provider(name="int4 again", model="int4", share=6),
    Provider(name="29 of 30 layers", model="29-layers", share=6),
    Provider(name="28 of 30 layers", model="28-layers", share=6),
    Provider(name="greedy", drawn=_greedy, needs_temperature=True, share=6),
    Provider(
        name="temperature x 1.15",
        drawn=_scale_temperature(1_150_000),
        needs_temperature=True,
        share=3,
    ),
    Provider(
        name="temperature x 0.85",
        drawn=_scale_temperature(850_000),
        needs_temperature=True,
        share=3,
    ),
    Provider(
        name="top_p 1 for 0.9, 0.9 for 1",
        drawn=_other_nucleus,
        needs_temperature=True,
        share=3,
    ),
    Provider(name="one token swapped", choose=choose_runner_up, share=6),
    Provider(name="prompt shortened", read=_shortened, share=6),
)
