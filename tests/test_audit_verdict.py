import contextlib
import math

import msgspec
import numpy as np
import pytest

from ledger.replay import (
    FALSE_ALARM,
    GAP_LIMIT_MICROS,
    HONEST_MEAN_MICROS,
    MEAN_GAP_LIMIT_MICROS,
    Measures,
    is_suspect,
    judge_measures,
    weigh_gaps,
)
from ledger.views import audits as audit_views
from ledger.views.audits import load_audit_totals
from tests.builders import build_audit, build_chain, build_key
from tests.test_chain_store import fill

GOOD = Measures(
    prompt_tokens=9,
    tokens=20,
    exact_tokens=20,
    outside_tokens=0,
    max_gap_micros=GAP_LIMIT_MICROS,
    mean_gap_micros=MEAN_GAP_LIMIT_MICROS,
    ending="max_tokens",
    text_matches=True,
)


def failures(**changes):
    measures = msgspec.structs.replace(GOOD, **changes)
    claims = judge_measures(measures, prompt_tokens=9, completion_tokens=20)
    return [claim.name for claim in claims if claim.status == "failed"]


def test_an_answer_at_every_limit_passes():
    assert failures() == []


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"prompt_tokens": 8}, "prompt_tokens"),
        ({"tokens": 19}, "completion_tokens"),
        ({"outside_tokens": 1}, "drawable"),
        ({"max_gap_micros": GAP_LIMIT_MICROS + 1}, "largest_gap"),
        ({"mean_gap_micros": MEAN_GAP_LIMIT_MICROS + 1}, "mean_gap"),
        ({"ending": "early"}, "ending"),
        ({"text_matches": False}, "text"),
    ],
)
def test_one_step_beyond_a_limit_fails_and_names_it(change, name):
    assert failures(**change) == [name]


def test_the_bet_never_grows_in_expectation_for_an_honest_account():
    # Whatever the mix of small and large gaps: their mean is the honest one, and the wealth is
    # affine in the gap, so one step from any history multiplies it by one on average.
    history = [0, 30_000, 500]
    for low, high in ((0, 1_000_000), (1_000, 5_000), (0, 2_001)):
        chance = (HONEST_MEAN_MICROS - low) / (high - low)
        before = 10 ** list(weigh_gaps(history))[-1]
        after = [10 ** list(weigh_gaps([*history, gap]))[-1] for gap in (low, high)]
        assert after[0] * (1 - chance) + after[1] * chance == pytest.approx(before)


def test_an_honest_account_is_hardly_ever_suspected():
    random = np.random.default_rng(1)
    suspected = 0
    for _ in range(300):
        # Ten times as noisy as what is expected at most, now and then; the mean is just allowed.
        gaps = random.choice([0, 10 * HONEST_MEAN_MICROS], 200, p=[0.9, 0.1])
        suspected += is_suspect(gaps.tolist())
    assert suspected == 0, f"allowed is one in {1 / FALSE_ALARM:.0f}"


def test_an_account_that_deviates_a_little_every_time_is_suspected():
    assert is_suspect([5 * HONEST_MEAN_MICROS] * 12)
    assert is_suspect([2 * HONEST_MEAN_MICROS] * 60)
    assert not is_suspect([5 * HONEST_MEAN_MICROS] * 2)
    assert not is_suspect([HONEST_MEAN_MICROS] * 10_000)


def test_what_was_suspected_once_is_not_forgiven():
    bad = [5 * HONEST_MEAN_MICROS] * 12
    assert is_suspect([*bad, *[0] * 1_000])
    assert list(weigh_gaps([*bad, *[0] * 1_000]))[-1] < 0


def test_weights_are_numbers_for_any_audits():
    for gaps in ([], [0] * 5_000, [1_000_000] * 5_000):
        assert all(math.isfinite(weight) for weight in weigh_gaps(gaps))


def suspicion(path, *, mean_gap_micros, count=12, **changes):
    chain = build_chain(blocks=[count])
    chain.append(
        *(
            build_audit(chain.genesis, number, mean_gap_micros=mean_gap_micros, **changes)
            for number in range(1, count + 1)
        )
    )
    with contextlib.closing(fill(path, chain)) as store:
        return load_audit_totals(store.database.reader, build_key("miner").account).is_suspect


def test_audits_on_the_chain_are_weighed_together(tmp_path):
    bad = 5 * HONEST_MEAN_MICROS
    assert suspicion(tmp_path / "bad.db", mean_gap_micros=bad)
    assert not suspicion(tmp_path / "good.db", mean_gap_micros=HONEST_MEAN_MICROS)
    assert not suspicion(tmp_path / "few.db", mean_gap_micros=bad, count=2)


def test_audits_of_another_method_or_with_another_model_are_not_weighed(tmp_path):
    bad = 5 * HONEST_MEAN_MICROS
    assert not suspicion(tmp_path / "a.db", mean_gap_micros=bad, method="dice-v1")
    assert not suspicion(tmp_path / "b.db", mean_gap_micros=bad, model_digest="00" * 32)


def test_a_suspicion_lasts_for_the_window_after_it(tmp_path, monkeypatch):
    monkeypatch.setattr(audit_views, "WINDOW", 12)
    chain = build_chain(blocks=[26])
    path = tmp_path / "ledger.db"
    seen = []
    with contextlib.closing(fill(path, chain)) as store:
        for number in range(1, 27):
            gap = 5 * HONEST_MEAN_MICROS if number <= 12 else 0
            block = chain.append(build_audit(chain.genesis, number, mean_gap_micros=gap))
            store.append(block, chain.certificates[-1]).result()
            totals = load_audit_totals(store.database.reader, build_key("miner").account)
            seen.append(totals.is_suspect)
    begins = seen.index(True)
    assert begins < 12
    assert seen[begins:24] == [True] * (24 - begins)
    assert seen[24:] == [False, False]
