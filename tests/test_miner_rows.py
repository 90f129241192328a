"""What a device has looked at is read and drawn from as if the host had looked at all of it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miner import ahead, drawing
from miner.ahead import Ahead, NoiseAhead
from miner.drawing import choose_tokens
from miner.rows import BLOCK, PeakedRows, WholeRow
from miner.sampling import DOUBT, MICROS, Draw, SamplingParams, as_noise, choose_token, gumbel_noise

SIZE = 5 * BLOCK + 7
"""Of a vocabulary whose last block is not full."""
TEMPERATURES = st.sampled_from([1, 300_000, 700_000, 1_000_000, 2_000_000])
TOP_PS = st.sampled_from([1, 100_000, 500_000, 900_000, 999_999, 1_000_000])


def look(logits, temperatures, error=0.0) -> PeakedRows:
    """As a device does: with blocks that are filled up, and a sum in single precision."""
    floats = logits.astype(np.float32)
    missing = -logits.shape[1] % BLOCK
    lowest = np.finfo(np.float32).min
    filled = np.pad(floats, ((0, 0), (0, missing)), constant_values=lowest)
    # A device may find a largest among what is no number.
    peaks = np.fmax.reduce(filled.reshape(len(logits), -1, BLOCK), axis=2)
    with np.errstate(invalid="ignore"):
        below = floats - floats.max(axis=1, keepdims=True)
        weights = np.exp(below / np.array(temperatures, np.float32)[:, None])
    totals = weights.sum(axis=1, dtype=np.float32) * np.float32(1 + error)
    return PeakedRows(logits, peaks, totals, temperatures)


def make_rows(seed, spread, dtype, rows=4, size=SIZE):
    logits = np.random.default_rng(seed).normal(size=(rows, size)) * spread
    return logits.astype(dtype)


logits_of_rows = st.builds(
    make_rows,
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.0, 0.1, 1.0, 4.0, 30.0]),
    st.sampled_from([np.float16, np.float32]),
)


@given(logits=logits_of_rows, depth=st.floats(0, 40))
def test_a_row_that_was_looked_at_reads_as_one_that_was_not(logits, depth):
    rows = look(logits, [1.0] * len(logits))
    for at, line in enumerate(logits.astype(np.float32)):
        whole, peaked = WholeRow(line), rows[at]
        assert (peaked.size, peaked.top) == (whole.size, whole.top)
        assert peaked.is_finite()
        assert peaked.find_likeliest() == whole.find_likeliest()
        ids = peaked.find_above(peaked.top - depth)
        assert ids.tolist() == whole.find_above(whole.top - depth).tolist()
        assert peaked.read(ids).tolist() == whole.read(ids).tolist()
        assert peaked.read_all().tolist() == whole.read_all().tolist()
        assert peaked.add_up(1.0) == pytest.approx(whole.add_up(1.0), rel=2e-5)


@pytest.fixture(scope="module")
def threads():
    noise = NoiseAhead(2)
    yield noise
    noise.close()


@given(
    logits=logits_of_rows,
    settings=st.lists(st.tuples(TEMPERATURES | st.just(0), TOP_PS), min_size=4, max_size=4),
    error=st.sampled_from([-0.9 * DOUBT, 0.0, 0.9 * DOUBT]),
    step=st.integers(0, 2**40),
    loud=st.sampled_from([-2.0, 3.0, 9.0]),
)
def test_all_rows_together_draw_what_each_draws_alone(threads, logits, settings, error, step, loud):
    temperatures = [micros / 1e6 or 1.0 for micros, _ in settings]
    draws = {
        at: Draw(
            params=SamplingParams(
                max_tokens=8, temperature_micros=temperature, top_p_micros=top_p, seed=at
            ),
            key=bytes([at]) * 32,
            step=step,
        )
        for at, (temperature, top_p) in enumerate(settings)
        if at != 2  # a row that nobody wants
    }
    expected = {
        at: choose_token(
            logits[at].astype(np.float32), params=draw.params, key=draw.key, step=draw.step
        )
        for at, draw in draws.items()
    }
    assert choose_tokens(look(logits, temperatures, error), draws) == expected
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ahead, "LOUD", loud)
        found = threads.begin(draws, logits.shape[1])
        assert choose_tokens(look(logits, temperatures, error), draws, found) == expected
    whole = [WholeRow(row) for row in logits.astype(np.float32)]
    assert choose_tokens(whole, draws) == expected


@pytest.mark.parametrize("loud", [0.0, 3.0, 12.0])
@pytest.mark.parametrize("spread", [0.1, 1.5, 4.0])
def test_what_is_far_below_the_top_may_win_by_its_noise(threads, monkeypatch, spread, loud):
    """In a vocabulary so large that it does."""
    monkeypatch.setattr(ahead, "LOUD", loud)
    logits = make_rows(5, spread, np.float16, rows=32, size=20_000)
    temperatures = [0.3 + at / 20 for at in range(32)]
    draws = {
        at: Draw(
            params=SamplingParams(
                max_tokens=1,
                temperature_micros=round(temperature * MICROS),
                top_p_micros=MICROS,
                seed=at,
            ),
            key=bytes([at]) * 32,
            step=at,
        )
        for at, temperature in enumerate(temperatures)
    }
    found = threads.begin(draws, logits.shape[1])
    drawn = choose_tokens(look(logits, temperatures), draws, found)
    for at, draw in draws.items():
        noise = gumbel_noise(draw.key, at, np.arange(logits.shape[1]))
        scores = logits[at].astype(np.float64) / temperatures[at] + noise
        assert drawn[at] == scores.argmax()


@pytest.mark.parametrize("top_p_micros", [500_000, 1_000_000])
def test_of_equal_scores_the_lowest_id_wins(monkeypatch, top_p_micros):
    monkeypatch.setattr(drawing, "draw_words", lambda _key, _step, ids: np.full(ids.size, 7, "<u4"))
    row = np.full((1, SIZE), -9, np.float32)
    row[0, [5, 77, 300]] = 3
    params = SamplingParams(
        max_tokens=1, temperature_micros=1_000_000, top_p_micros=top_p_micros, seed=1
    )
    nothing = Ahead()
    monkeypatch.setattr(Ahead, "find", lambda *_: (np.empty(0, np.intp), np.empty(0, "<u4")))
    draws = {0: Draw(params=params, key=bytes(32), step=0)}
    assert choose_tokens(look(row, [1.0]), draws, nothing) == {0: 5}


def test_an_unclear_edge_is_left_to_the_careful_way(monkeypatch):
    """Equal logits: the nucleus ends exactly at the tenth, if the sum is not a trifle off."""
    params = SamplingParams(
        max_tokens=1, temperature_micros=1_000_000, top_p_micros=500_000, seed=1
    )
    draw = Draw(params=params, key=bytes(32), step=0)
    row = np.full((1, SIZE), -50, np.float32)
    row[0, :20] = 3
    asked = []

    def careful(row, **rest):
        asked.append(row)
        return choose_token(row, **rest)

    monkeypatch.setattr(drawing, "choose_token", careful)
    for error in (-DOUBT / 2, 0.0, DOUBT / 2):
        token = choose_tokens(look(row, [1.0], error), {0: draw})[0]
        assert token == choose_token(row[0], params=params, key=draw.key, step=0)
    assert len(asked) == 3


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("temperature_micros", [0, 700_000])
def test_a_row_that_is_not_made_of_numbers_draws_nothing_and_no_other_suffers(
    bad, temperature_micros
):
    logits = make_rows(1, 4.0, np.float32)
    logits[1, 99] = bad
    params = SamplingParams(
        max_tokens=1, temperature_micros=temperature_micros, top_p_micros=900_000, seed=1
    )
    draws = {at: Draw(params=params, key=bytes(32), step=0) for at in range(4)}
    temperature = temperature_micros / 1e6 or 1.0
    for rows in (look(logits, [temperature] * 4), [WholeRow(row) for row in logits]):
        drawn = choose_tokens(rows, draws)
        assert drawn[1] is None
        assert None not in (drawn[0], drawn[2], drawn[3])


def test_a_total_of_another_temperature_is_not_to_be_had():
    row = look(make_rows(1, 4.0, np.float32), [0.7] * 4)[0]
    with pytest.raises(AssertionError, match=r"temperature 1\.0"):
        row.add_up(1.0)


def test_noise_is_looked_for_only_where_any_id_may_be_drawn(threads, monkeypatch):
    settings = [(0, 1_000_000), (700_000, 900_000), (700_000, 1_000_000), (1, 1_000_000)]
    draws = {
        at: Draw(
            params=SamplingParams(
                max_tokens=1, temperature_micros=temperature, top_p_micros=top_p, seed=1
            ),
            key=bytes([at]) * 32,
            step=at,
        )
        for at, (temperature, top_p) in enumerate(settings)
    }
    found = threads.begin(draws, SIZE)
    assert sorted(found.parts) == [2, 3]
    for part, _ in found.parts.values():
        part.result()
    monkeypatch.setattr(ahead, "find_noisy", None)  # so what is loud is known already
    for at in found.parts:
        expected = gumbel_noise(draws[at].key, at, np.arange(SIZE))
        ids, words = found.find(at, draws[at], SIZE, 4.0)
        loud = set(np.flatnonzero(expected >= 4.0).tolist())
        assert loud <= set(ids.tolist()) <= set(np.flatnonzero(expected >= 3.999).tolist())
        assert np.array_equal(as_noise(words), expected[ids])
