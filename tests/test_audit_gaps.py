import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.replay import EDGE_TIE_MICROS, NUCLEUS_MARGIN_MICROS
from miner.audit.gaps import measure_gaps
from miner.sampling import SamplingParams, as_noise, choose_token, find_noisy, gumbel_noise
from tests import sampling_reference as reference

KEY = bytes(range(32))
ROWS = st.lists(
    st.lists(st.integers(-40, 40).map(lambda n: n / 4), min_size=40, max_size=40),
    min_size=1,
    max_size=4,
)
TEMPERATURES = st.sampled_from([0, 1, 300_000, 1_000_000, 2_000_000])
TOP_PS = st.sampled_from([1, 20_000, 314_159, 900_001, 980_000, 999_999, 1_000_000])


def params(temperature_micros: int, top_p_micros: int) -> SamplingParams:
    return SamplingParams(
        max_tokens=16, temperature_micros=temperature_micros, top_p_micros=top_p_micros, seed=1
    )


def measure(logits, tokens, temperature_micros, top_p_micros, first_step=0):
    return measure_gaps(
        np.array(logits, np.float32),
        np.array(tokens, np.int64),
        params=params(temperature_micros, top_p_micros),
        key=KEY,
        first_step=first_step,
    )


def plain_gap(logits, token, step, temperature_micros, top_p_micros):
    """docs/audits.md once more, in plain Python."""
    ids = range(len(logits))
    if temperature_micros == 0:
        return max(logits) - logits[token]
    temperature = temperature_micros / 1e6
    scaled = [logit / temperature for logit in logits]
    weights = [math.exp(s - max(scaled)) for s in scaled]

    def inside(micros):
        found = []
        for i in sorted(ids, key=lambda i: (-scaled[i], i)):
            before = math.fsum(weights[j] for j in found)
            if found and micros < 10**6 and before >= math.fsum(weights) * micros / 1e6:
                break
            found.append(i)
        return found

    margin = 0 if top_p_micros == 10**6 else NUCLEUS_MARGIN_MICROS
    tie = EDGE_TIE_MICROS / 1e6
    narrow, wide = inside(top_p_micros - margin), inside(top_p_micros + margin)
    if logits[token] < min(logits[i] for i in wide) - tie:
        return math.inf
    noise = reference.noise_of(KEY, step, len(logits))
    beyond = max((logits[i] for i in ids if i not in narrow), default=-math.inf)
    sure = [i for i in narrow if logits[i] > beyond + tie]
    best = max((scaled[i] + noise[i] for i in sure), default=-math.inf)
    return max(0.0, best - scaled[token] - noise[token]) * temperature


@given(rows=ROWS, temperature=TEMPERATURES, top_p=TOP_PS, first_step=st.integers(0, 2**40))
def test_the_samplers_own_tokens_are_exact_and_have_no_gap(rows, temperature, top_p, first_step):
    how = params(temperature, top_p)
    tokens = [
        choose_token(np.array(row, np.float32), params=how, key=KEY, step=first_step + at)
        for at, row in enumerate(rows)
    ]
    measured = measure(rows, tokens, temperature, top_p, first_step)
    assert measured.gaps.tolist() == [0.0] * len(rows)
    assert measured.exact.all()


@given(rows=ROWS, temperature=TEMPERATURES, top_p=TOP_PS, data=st.data())
def test_gaps_are_those_of_the_text(rows, temperature, top_p, data):
    tokens = [data.draw(st.integers(0, 39)) for _ in rows]
    measured = measure(rows, tokens, temperature, top_p, first_step=5)
    how = params(temperature, top_p)
    for at, (row, token) in enumerate(zip(rows, tokens, strict=True)):
        expected = plain_gap(row, token, 5 + at, temperature, top_p)
        assert measured.gaps[at] == pytest.approx(expected, abs=1e-6)
        chosen = choose_token(np.array(row, np.float32), params=how, key=KEY, step=5 + at)
        assert measured.exact[at] == (chosen == token)


@given(
    seed=st.integers(0, 2**32),
    temperature=st.sampled_from([0, 300_000, 1_000_000, 2_000_000]),
    top_p=TOP_PS,
)
def test_an_honest_gap_is_at_most_twice_the_error_of_a_logit(seed, temperature, top_p):
    random = np.random.default_rng(seed)
    logits = random.normal(0, 3, (4, 300)).astype(np.float32)
    theirs = logits + random.uniform(-1e-3, 1e-3, logits.shape).astype(np.float32)
    how = params(temperature, top_p)
    tokens = [choose_token(row, params=how, key=KEY, step=at) for at, row in enumerate(theirs)]
    assert measure(logits, tokens, temperature, top_p).gaps.max() <= 2e-3 + 1e-6


def test_a_wide_vocabulary_is_searched_whole():
    random = np.random.default_rng(1)
    logits = random.normal(0, 3, (8, 50_000)).astype(np.float32)
    tokens = random.integers(0, 50_000, 8)
    measured = measure(logits, tokens, 700_000, 1_000_000)
    for step in range(8):
        scores = logits[step] / 0.7 + gumbel_noise(KEY, step, np.arange(50_000))
        expected = (scores.max() - scores[tokens[step]]) * 0.7
        assert measured.gaps[step] == pytest.approx(expected, rel=1e-5)


@given(least=st.floats(1.8, 25.0))
def test_no_id_with_enough_noise_is_overlooked(least):
    noise = gumbel_noise(KEY, 3, np.arange(20_000))
    found, words = find_noisy(KEY, 3, 20_000, least)
    assert np.array_equal(as_noise(words), noise[found])
    assert set(np.flatnonzero(noise >= least)) <= set(found.tolist())
    assert len(found) <= (noise >= least - 1e-6).sum() + 1


def test_the_nucleus_has_a_margin_on_both_sides():
    # Probabilities 0.88, 0.11, 0.01: at top_p 0.9 the second id is in, at 0.87 it is not.
    logits = [np.log([0.88, 0.11, 0.01])]
    gaps = [
        measure(logits, [token], 1_000_000, 900_000, first_step=8).gaps[0] for token in range(3)
    ]
    assert gaps[0] == 0
    assert gaps[2] == math.inf, "0.99 is not below 0.93"
    noise = gumbel_noise(KEY, 8, np.arange(2))
    expected = max(0, np.log(8) + noise[0] - noise[1])
    assert gaps[1] == pytest.approx(expected, rel=1e-5)


def test_what_is_as_likely_as_the_edge_is_neither_surely_in_nor_surely_out():
    # Two of probability 0.49: which of them is the nucleus of 0.3 alone, the last digit decides.
    for close in (0.0, 0.04, -0.04):
        logits = [np.add(np.log([0.49, 0.49, 0.02]), [0, close, 0])]
        for token in range(2):
            assert measure(logits, [token], 1_000_000, 300_000).gaps[0] == 0
        assert measure(logits, [2], 1_000_000, 300_000).gaps[0] == math.inf
    apart = [np.add(np.log([0.49, 0.49, 0.02]), [0.06, 0, 0])]
    assert measure(apart, [0], 1_000_000, 300_000).gaps[0] == 0
    assert measure(apart, [1], 1_000_000, 300_000).gaps[0] == math.inf
