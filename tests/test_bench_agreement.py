"""What the comparison with the reference says of answers that agree, and of some that do not."""

from __future__ import annotations

import numpy as np
import pytest

from scripts.bench_miner.agreement import (
    build_agreement_table,
    build_tokens_table,
    compare_answers,
)
from scripts.bench_miner.corpus import EDGES, build_conversations, build_strings
from scripts.bench_miner.reference_protocol import PROMPT_POSITIONS, choose_positions

VOCABULARY = 5


def reference(*, prompt: int = 4, answer: tuple[int, ...] = (1, 2, 3)) -> dict[str, np.ndarray]:
    """Logits at the last token of the prompt and at all of the answer but its last."""
    logits = np.zeros((len(answer), VOCABULARY), np.float32)
    logits[range(len(answer)), answer] = 2
    logits[:, 4] = 1.5
    return {"ids": np.arange(prompt), "greedy": np.array(answer), "logits": logits}


def test_equal_answers_deviate_in_nothing():
    told = reference()
    found = compare_answers(told, same_prompt=True, logits=told["logits"], greedy=[1, 2, 3])
    assert (found.max_logit, found.mean_logit, found.max_kl, found.mean_kl) == (0, 0, 0, 0)
    assert (found.same_best, found.same_tokens, found.answer_tokens) == (1, 3, 3)
    assert found.margin is None


def test_an_answer_agrees_until_its_first_other_token_and_the_margin_there_is_told():
    told = reference()
    found = compare_answers(told, same_prompt=True, logits=told["logits"], greedy=[1, 4, 3])
    assert (found.same_tokens, found.answer_tokens) == (1, 3)
    assert found.margin == pytest.approx(0.5)


def test_an_answer_that_ends_early_agrees_for_its_length_only():
    told = reference()
    found = compare_answers(told, same_prompt=True, logits=told["logits"], greedy=[1])
    assert (found.same_tokens, found.margin) == (1, pytest.approx(0.5))


def test_logits_that_differ_show_in_size_divergence_and_choice():
    told = reference()
    logits = told["logits"].copy()
    logits[0] = [0, 1, 0, 0, 1.5]
    found = compare_answers(told, same_prompt=True, logits=logits, greedy=[1, 2, 3])
    assert found.max_logit == 1
    assert found.mean_logit == pytest.approx(1 / 15)
    theirs, ours = (np.exp(row) / np.exp(row).sum() for row in (told["logits"][0], logits[0]))
    expected = (theirs * np.log(theirs / ours)).sum()
    assert (found.max_kl, found.mean_kl) == pytest.approx((expected, expected / 3), rel=1e-5)
    assert found.same_best == pytest.approx(2 / 3)


def test_a_shift_of_all_logits_is_no_divergence():
    told = reference()
    found = compare_answers(told, same_prompt=True, logits=told["logits"] + 3, greedy=[1, 2, 3])
    assert found.max_kl == pytest.approx(0, abs=1e-12)
    assert found.max_logit == 3


def test_the_last_line_sums_up_all_conversations():
    told = reference()
    same = compare_answers(told, same_prompt=True, logits=told["logits"], greedy=[1, 2, 3])
    other = compare_answers(told, same_prompt=False, logits=told["logits"] + 1, greedy=[1, 2, 4])
    table = build_agreement_table({"a": same, "b": other}, title="t")
    assert [line[0] for line in table.lines] == ["a", "b", "all"]
    assert table.lines[0][-2:] == ["3 of 3", ""]
    assert table.lines[1][-2:] == ["2 of 3", "5.0e-01"]
    assert table.lines[2] == [
        "all",
        "differs",
        "8",
        "1.0e+00",
        "5.0e-01",
        *table.lines[1][5:7],
        "100.0%",
        "5 of 6",
        "5.0e-01",
    ]


def test_strings_whose_tokens_or_texts_differ_are_counted():
    theirs = {"ids": [[1], [2], [3]], "texts": ["a", "b", "c"]}
    ours = {"ids": [[1], [2], [4]], "texts": ["a", "x", "y"]}
    lines = build_tokens_table(["a", "b", "c"], theirs, ours).lines
    assert [line[1:] for line in lines] == [["3", "2"], ["3", "1"]]


def test_positions_hold_every_token_of_the_answer_and_some_of_the_prompt():
    positions = choose_positions(1000, 1064)
    assert set(range(999, 1063)) <= set(positions.tolist())
    assert positions[0] == 0
    assert len(positions) == PROMPT_POSITIONS - 1 + 64
    assert choose_positions(3, 5).tolist() == [0, 1, 2, 3]


def test_the_corpus_is_large_varied_and_the_same_every_time():
    strings, conversations = build_strings(), build_conversations()
    assert strings == build_strings()
    assert set(EDGES) <= set(strings)
    assert len(strings) > 3_000
    "".join(strings).encode()  # no lone surrogates
    assert len(conversations) >= 20
    assert {m.role for asked in conversations.values() for m in asked} == {
        "system",
        "user",
        "assistant",
    }
    assert max(len(m.content) for asked in conversations.values() for m in asked) > 20_000
