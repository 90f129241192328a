import dataclasses

import numpy as np
import pytest

from ledger.replay import judge_measures
from miner.audit import replay as replay_module
from miner.audit.replay import End, find_end
from miner.audit.steady import MOST_UNSTEADY, find_unsteadiness
from miner.errors import ModelError, PromptTooLongError
from tests.audit_stage import PARAMS, Stage, drain


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    return Stage(tmp_path_factory.mktemp("model"))


def failures(measures, *, prompt_tokens=None, completion_tokens=None):
    claims = judge_measures(
        measures,
        prompt_tokens=measures.prompt_tokens if prompt_tokens is None else prompt_tokens,
        completion_tokens=measures.tokens if completion_tokens is None else completion_tokens,
    )
    return {claim.name for claim in claims if claim.status == "failed"}


def how(**changes):
    return dataclasses.replace(PARAMS, **changes)


@pytest.mark.parametrize("temperature_micros", [0, 300_000, 1_000_000])
@pytest.mark.parametrize("top_p_micros", [900_000, 1_000_000])
def test_an_honest_answer_passes(stage, temperature_micros, top_p_micros):
    answer = stage.answer(how(temperature_micros=temperature_micros, top_p_micros=top_p_micros))
    measures = stage.measure(answer)
    assert not failures(measures)
    assert measures.prompt_tokens == len(answer.prompt_token_ids)
    assert measures.exact_tokens == measures.tokens == len(answer.token_ids)
    assert measures.max_gap_micros < 1_000


def test_how_the_answer_is_cut_into_pieces_changes_nothing(stage, monkeypatch):
    answer = stage.answer()
    measures = stage.measure(answer)
    monkeypatch.setattr(replay_module, "PREFILL_TOKENS", 3)
    monkeypatch.setattr(replay_module, "SCORED_TOKENS", 5)
    again = stage.measure(answer, slot=0)
    assert dataclasses_of(again) == dataclasses_of(measures)
    pieces = replay_module.replay(
        answer, find_end(answer, stage.tokenizer, stage.limits), stage.runtime, 0
    )
    assert sum(1 for _ in pieces) == -(-(len(answer.prompt_token_ids) - 1) // 3) + -(-24 // 5)


def dataclasses_of(measures):
    """All but what the last digits of logits decide."""
    return (measures.tokens, measures.exact_tokens, measures.ending, measures.text_matches)


def test_one_altered_token_fails(stage):
    answer = stage.answer()
    for at in (0, 12, 23):
        token_ids = list(answer.token_ids)
        token_ids[at] = (token_ids[at] + 7) % 250 + 3
        altered = stage.with_tokens(answer, tuple(token_ids))
        assert failures(stage.measure(altered)) & {"drawable", "largest_gap", "mean_gap"}


def test_another_seed_job_or_model_digest_fails(stage):
    answer = stage.answer()
    for other in (
        dataclasses.replace(answer, params=how(seed=1)),
        dataclasses.replace(answer, job_id="job_00000000000000000000000002"),
        dataclasses.replace(answer, model_digest="00" * 32),
    ):
        assert "mean_gap" in failures(stage.measure(other))


def test_an_answer_to_another_prompt_fails(stage):
    answer = stage.answer()
    other = stage.answer(prompt="Where is it?")
    swapped = dataclasses.replace(answer, token_ids=other.token_ids, result=other.result)
    assert "mean_gap" in failures(stage.measure(swapped))


def test_a_greedy_answer_fails_where_it_should_be_drawn(stage):
    greedy = stage.answer(drawn=how(temperature_micros=0))
    assert "mean_gap" in failures(stage.measure(greedy))


def test_an_answer_that_is_cut_short_fails(stage):
    answer = stage.answer(length=12)
    measures = stage.measure(answer)
    assert failures(measures) == {"ending"}
    assert measures.ending == "early"


def test_tokens_behind_the_end_of_the_answer_could_not_be_drawn(stage):
    answer = stage.answer(how(max_tokens=20))
    longer = dataclasses.replace(answer, token_ids=(*answer.token_ids, 7, 8, 9))
    measures = stage.measure(longer)
    assert (measures.tokens, measures.outside_tokens, measures.ending) == (23, 3, "max_tokens")
    assert failures(measures) == {"drawable", "mean_gap"}


def test_an_end_token_ends_the_answer(stage):
    answer = stage.answer(how(temperature_micros=0))
    end = next(iter(stage.limits.end_tokens))
    ended = dataclasses.replace(answer, token_ids=(*answer.token_ids[:5], end, 7))
    found = find_end(ended, stage.tokenizer, stage.limits)
    assert (found.tokens, found.ending) == (6, "end_token")


def test_a_stop_sequence_ends_the_answer_and_its_text(stage):
    whole = stage.answer()
    stop = (whole.result[6:8],)
    answer = stage.answer(stop=stop)
    assert len(answer.token_ids) < 24
    measures = stage.measure(answer)
    assert measures.ending == "stop_sequence"
    assert not failures(measures)
    late = dataclasses.replace(whole, stop=stop, result=answer.result)
    assert "drawable" in failures(stage.measure(late)), "it went on"
    silent = dataclasses.replace(answer, stop=())
    assert failures(stage.measure(silent)) == {"ending", "text"}


def test_the_end_of_the_context_ends_the_answer(stage):
    answer = stage.answer(how(max_tokens=500))
    assert len(answer.prompt_token_ids) + len(answer.token_ids) == 64
    measures = stage.measure(answer)
    assert measures.ending == "context"
    assert not failures(measures)


def test_a_result_that_is_not_the_text_of_the_tokens_fails(stage):
    answer = stage.answer()
    lied = dataclasses.replace(answer, result=answer.result + "!")
    assert failures(stage.measure(lied)) == {"text"}


def test_a_receipt_that_bills_other_counts_fails(stage):
    measures = stage.measure(stage.answer())
    assert failures(measures, prompt_tokens=measures.prompt_tokens + 1) == {"prompt_tokens"}
    assert failures(measures, completion_tokens=23) == {"completion_tokens"}


def test_ids_that_the_model_does_not_know_are_not_given_to_it(stage):
    answer = stage.answer()
    for unknown in (stage.limits.vocabulary, 2**32 - 1):
        hostile = dataclasses.replace(
            answer, token_ids=(*answer.token_ids[:3], unknown, *answer.token_ids[4:])
        )
        measures = stage.measure(hostile)
        assert (measures.tokens, measures.outside_tokens) == (24, 21)
        assert {"drawable", "ending"} <= failures(measures)


def test_an_answer_without_a_token_is_an_early_end(stage):
    answer = dataclasses.replace(stage.answer(), token_ids=(), result="")
    measures = stage.measure(answer)
    assert (measures.tokens, measures.mean_gap_micros, measures.ending) == (0, 0, "early")


def test_an_auditor_without_room_says_so(stage):
    answer = dataclasses.replace(stage.answer(), prompt_token_ids=(5,) * 64)
    with pytest.raises(PromptTooLongError, match="64 and 24 tokens, room for 64"):
        drain(
            replay_module.replay(
                answer, End(tokens=24, ending="max_tokens", text=""), stage.runtime, 0
            )
        )


def test_logits_that_are_no_numbers_are_the_auditors_fault(stage):
    class Broken:
        context = 64

        def prefill(self, token_ids, *, slot, start):
            pass

        def score(self, token_ids, *, slot=0, start=0):
            return np.full((len(token_ids), 300), np.nan, np.float32)

    answer = stage.answer()
    with pytest.raises(ModelError, match="not finite"):
        drain(
            replay_module.replay(
                answer, find_end(answer, stage.tokenizer, stage.limits), Broken(), 0
            )
        )


class CutScorer:
    """Logits that differ by as much as told where a token runs alone."""

    context = 64

    def __init__(self, error):
        self._error = np.random.default_rng(1).normal(0, error, 300)

    def prefill(self, token_ids, *, slot, start):
        raise AssertionError("every logit is looked at")

    def score(self, token_ids, *, slot=0, start=0):
        logits = np.array([[float(token)] * 300 for token in token_ids], np.float32)
        return logits + (7 + self._error if len(token_ids) == 1 else 0)


@pytest.mark.parametrize("error", [0.0, 0.02, 0.2])
def test_a_models_unsteadiness_is_what_runs_of_different_length_differ_by(error):
    found = drain(find_unsteadiness(CutScorer(error), 0, vocabulary=300))
    assert found == pytest.approx(error, rel=0.1, abs=1e-6), "what all have in common is left out"
    assert (found > MOST_UNSTEADY) == (error == 0.2)


def test_a_model_of_exact_products_is_steady(stage):
    found = drain(find_unsteadiness(stage.runtime, 1, vocabulary=stage.limits.vocabulary))
    assert found < MOST_UNSTEADY / 50
