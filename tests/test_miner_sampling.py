import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miner.rows import WholeRow
from miner.sampling import (
    SAMPLER,
    SamplingParams,
    _quick_nucleus,
    build_key,
    choose_token,
    gumbel_noise,
    nucleus,
)
from tests import sampling_reference as reference

VECTORS = json.loads(Path("tests/vectors/sampling.json").read_text(encoding="utf-8"))
KEY = bytes(range(32))


def params(temperature_micros: int = 700_000, top_p_micros: int = 900_000, seed: int = 1):
    return SamplingParams(
        max_tokens=16,
        temperature_micros=temperature_micros,
        top_p_micros=top_p_micros,
        seed=seed,
    )


def test_the_vectors_are_what_the_text_says():
    assert reference.build_sampling() == VECTORS


@pytest.mark.parametrize("case", VECTORS["cases"])
def test_the_sampler_fulfils_its_vectors(case):
    drawn = params(case["temperature_micros"], case["top_p_micros"], case["seed"])
    key = build_key(
        job_id=VECTORS["job_id"],
        model_digest=VECTORS["model_digest"],
        prompt_token_ids=VECTORS["prompt_token_ids"],
        params=drawn,
    )
    assert VECTORS["sampler"] == SAMPLER
    assert key.hex() == case["key"]
    assert gumbel_noise(key, 0, np.arange(3)) == pytest.approx(case["noise"], abs=1e-9)
    for logits, tokens in zip(VECTORS["logits"], case["tokens"], strict=True):
        row = np.array(logits, np.float32)
        assert [choose_token(row, params=drawn, key=key, step=s) for s in range(16)] == tokens


@given(
    logits=st.lists(st.integers(-40, 40).map(lambda n: n / 4), min_size=1, max_size=300),
    temperature_micros=st.sampled_from([0, 1, 300_000, 1_000_000, 2_000_000]),
    top_p_micros=st.sampled_from([1, 314_159, 900_001, 999_999, 1_000_000]),
    step=st.integers(0, 2**40),
)
def test_the_sampler_agrees_with_the_plain_one(logits, temperature_micros, top_p_micros, step):
    expected = reference.token_of(
        logits, KEY, step, temperature_micros=temperature_micros, top_p_micros=top_p_micros
    )
    row = np.array(logits, np.float32)
    how = params(temperature_micros, top_p_micros)
    assert choose_token(row, params=how, key=KEY, step=step) == expected


@given(
    seed=st.integers(0, 2**32 - 1),
    spread=st.sampled_from([0.0, 0.1, 1.0, 5.0, 30.0]),
    temperature_micros=st.sampled_from([1, 300_000, 700_000, 2_000_000]),
    top_p_micros=st.sampled_from([1, 500_000, 900_000, 999_999, 1_000_000]),
)
def test_shortcuts_over_a_large_vocabulary_change_no_choice(
    seed, spread, temperature_micros, top_p_micros
):
    row = (np.random.default_rng(seed).normal(size=5_000) * spread).astype(np.float32)
    scaled = row.astype(np.float64) / (temperature_micros / 10**6)
    ids = np.sort(nucleus(scaled, top_p_micros))
    scores = scaled[ids] + gumbel_noise(KEY, seed, np.arange(row.size))[ids]
    how = params(temperature_micros, top_p_micros)
    assert choose_token(row, params=how, key=KEY, step=seed) == ids[scores.argmax()]


def test_where_a_nucleus_ends_is_not_decided_in_single_precision_if_it_is_close():
    edge = np.zeros(10, np.float32)
    assert _quick_nucleus(WholeRow(edge), 1.0, 500_000) is None
    assert _quick_nucleus(WholeRow(edge), 1.0, 500_001) is None
    assert _quick_nucleus(WholeRow(edge), 1.0, 550_000).tolist() == [0, 1, 2, 3, 4, 5]


def test_noise_of_few_ids_is_that_of_all():
    ids = np.array([0, 1, 15, 16, 17, 4_998, 4_999])
    assert np.array_equal(gumbel_noise(KEY, 7, ids), gumbel_noise(KEY, 7, np.arange(5_000))[ids])


def test_a_wide_nucleus_is_found_whole():
    scaled = np.linspace(0.001, 0, 5_000)
    ids = nucleus(scaled, 900_000)
    assert ids.tolist() == list(range(ids.size))
    probabilities = np.exp(scaled) / np.exp(scaled).sum()
    assert probabilities[: ids.size - 1].sum() < 0.9 <= probabilities[: ids.size].sum()


def test_tokens_are_drawn_as_often_as_softmax_says():
    logits = np.log(np.array([0.5, 0.25, 0.125, 0.125], np.float32))
    how = params(temperature_micros=1_000_000, top_p_micros=1_000_000)
    drawn = [choose_token(logits, params=how, key=KEY, step=step) for step in range(20_000)]
    shares = np.bincount(drawn, minlength=4) / len(drawn)
    assert shares == pytest.approx([0.5, 0.25, 0.125, 0.125], abs=0.012)


def test_every_input_changes_the_key():
    base = {
        "job_id": "job_a",
        "model_digest": "00" * 32,
        "prompt_token_ids": [1, 2],
        "params": params(),
    }
    changes = [
        {},
        {"job_id": "job_b"},
        {"model_digest": "01" * 32},
        {"prompt_token_ids": [1, 3]},
        {"params": params(seed=2)},
        {"params": params(temperature_micros=1)},
        {"params": params(top_p_micros=1)},
    ]
    assert len({build_key(**base | change) for change in changes}) == len(changes)
