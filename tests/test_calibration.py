"""What the calibration of audits rests on: its sets, its figures, and what its cheats do."""

import numpy as np
import pytest

from ledger.replay import Measures
from miner.models.gguf import parse_gguf
from miner.models.kinds import TensorKind
from miner.sampling import SamplingParams
from scripts.calibration.auditing import Audited
from scripts.calibration.drawing import SETTINGS, list_tasks, read_lines
from scripts.calibration.models import requantise, with_layers
from scripts.calibration.prompts import REPORT, TUNING
from scripts.calibration.providers import (
    CHEATS,
    HONEST,
    SWAPPED_STEP,
    choose_honestly,
    choose_runner_up,
)
from scripts.calibration.tables import describe, upper_bound

PARAMS = SamplingParams(max_tokens=20, temperature_micros=700_000, top_p_micros=900_000, seed=1)


def test_no_prompt_chooses_thresholds_and_reports_on_them():
    assert not set(TUNING) & set(REPORT)
    assert len(set(TUNING)) == len(TUNING)
    assert len(set(REPORT)) == len(REPORT)


@pytest.mark.parametrize("share", [1, 2, 3, 4, 6, 8])
def test_every_share_of_the_jobs_has_every_setting_alike(share):
    tasks = list_tasks("report", share)
    counts = [
        sum((t.temperature_micros, t.top_p_micros) == setting for t in tasks)
        for setting in SETTINGS
    ]
    assert max(counts) == min(counts) > 0
    assert len({task.job_id for task in tasks}) == len(tasks)


def test_at_least_two_hundred_honest_answers_are_reported():
    assert sum(len(list_tasks("report", provider.share)) for provider in HONEST) >= 200


@pytest.mark.parametrize(
    ("count", "trials", "bound"),
    # R: binom.test(count, trials, alternative = "less")$conf.int[2]
    [(0, 200, 0.014867), (0, 1, 0.95), (5, 100, 0.102253), (10, 10, 1.0)],
)
def test_bounds_are_those_of_clopper_and_pearson(count, trials, bound):
    assert upper_bound(count, trials) == pytest.approx(bound, abs=1e-5)


def test_a_provider_whose_answers_all_fail_is_always_found():
    good = Measures(
        prompt_tokens=9,
        tokens=20,
        exact_tokens=20,
        outside_tokens=0,
        max_gap_micros=0,
        mean_gap_micros=0,
        ending="max_tokens",
        text_matches=True,
    )
    bad = Measures(**{f: getattr(good, f) for f in good.__struct_fields__} | {"ending": "early"})
    honest = describe([Audited(number=i, measures=good) for i in range(30)])
    assert (honest["failed"], honest["found"], honest["suspected"]) == (0, 0, 0)
    cheat = describe([Audited(number=i, measures=bad) for i in range(30)])
    assert (cheat["failed"], cheat["found"], cheat["suspected"]) == (30, 1, 0)


def test_the_runner_up_is_taken_once_and_is_the_second_best():
    random = np.random.default_rng(1)
    key = bytes(32)
    for step in range(SWAPPED_STEP + 2):
        logits = random.normal(0, 1, 50).astype(np.float32)
        honest = choose_honestly(logits, PARAMS, key, step)
        taken = choose_runner_up(logits, PARAMS, key, step)
        assert (taken != honest) == (step == SWAPPED_STEP)


def test_every_cheat_does_something_else_than_it_states():
    for provider in CHEATS:
        differs = (
            provider.model != "base"
            or provider.drawn(PARAMS) != PARAMS
            or provider.choose is not choose_honestly
            or provider.read("one two three") != "one two three"
        )
        assert differs, provider.name
    for provider in HONEST:
        assert provider.drawn(PARAMS) == PARAMS
        assert provider.choose is choose_honestly


def test_requantised_weights_lose_their_offset_and_stay_close(tiny_model):
    gguf = parse_gguf(tiny_model.gguf)
    changed = requantise(gguf)
    for name, tensor in gguf.tensors.items():
        again = changed.tensors[name]
        if tensor.kind is not TensorKind.Q4_1:
            assert again is tensor
            continue
        old, new = (
            block["d"].astype(float)[..., None]
            * np.concatenate([block["q"] & 15, block["q"] >> 4], axis=-1)
            + block["m"].astype(float)[..., None]
            for block in (tensor.blocks, again.blocks)
        )
        assert not np.array_equal(old, new)
        assert np.abs(old - new).max() <= np.abs(old).max() / 7
        assert (again.blocks["m"] == (-8 * again.blocks["d"].astype(np.float32))).all()


def test_layers_that_are_left_out_leave_no_weights_behind(tiny_model):
    gguf = with_layers(1)(parse_gguf(tiny_model.gguf))
    assert gguf.value("llama.block_count", int) == 1
    assert not any(name.startswith("blk.1.") for name in gguf.tensors)
    assert any(name.startswith("blk.0.") for name in gguf.tensors)


def test_half_a_line_of_a_killed_run_is_not_read(tmp_path):
    path = tmp_path / "audits.jsonl"
    assert read_lines(path, Audited) == []
    path.write_bytes(b'{"number": 1')
    assert read_lines(path, Audited) == []
