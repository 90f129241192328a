"""All peers of the miner are asked the same. How fast anybody is, no test says."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import onnx
import pytest

import scripts.bench_miner.__main__ as command
from scripts.bench_miner.fleet import (
    KINDS,
    Models,
    RunnerError,
    build_command,
    build_environment,
    open_workers,
)
from scripts.bench_miner.models import round_inputs
from scripts.bench_miner.speed import (
    CELLS,
    GREEDY,
    NEW_TOKENS,
    PREFILL,
    PROMPT,
    SAMPLED,
    ask_in_turns,
    build_request,
    compute_agreement,
    compute_drawing_s,
    compute_rate,
    compute_rates,
    compute_whole_rates,
)
from scripts.bench_miner.table import (
    Table,
    build_cost_table,
    build_speed_table,
    format_markdown,
    format_text,
)
from scripts.bench_miner.work import CONTEXT, MAX_ROWS, Answer, Request, Setup
from tests.tiny_model import LAYERS

TEXT_IDS = list(range(2000))


def answer(*, first=1.0, steps=(1.0,), cpu=(1.0,), tokens=((1, 2),), peak=1_000_000) -> Answer:
    return Answer(
        first_s=first,
        first_cpu_s=first,
        steps_s=steps,
        steps_cpu_s=cpu,
        token_ids=tokens,
        peak_bytes=peak,
    )


def answers(*, runtime: float, genai: float, llamacpp: float):
    """Of three runners that need so many seconds for anything."""
    return {
        runner: {cell: [answer(first=pace, steps=[pace], cpu=[pace * 2])] for cell in CELLS}
        for runner, pace in (("runtime", runtime), ("genai", genai), ("llamacpp", llamacpp))
    }


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.title)
def test_a_request_has_as_many_different_prompts_of_one_length_as_its_cell_says(cell):
    request = build_request(cell, TEXT_IDS, NEW_TOKENS)
    assert len({tuple(prompt) for prompt in request.prompts}) == cell.rows <= MAX_ROWS
    (length,) = {len(prompt) for prompt in request.prompts}
    assert length == (512 if cell.prefill else PROMPT)
    assert length + request.new_tokens <= CONTEXT
    assert request.sampled == cell.sampled


def test_a_slow_step_or_round_does_not_move_the_rate():
    given = [answer(steps=[0.5, 0.5, 9.0], cpu=[0.25, 0.25, 0.5]), answer(steps=[0.5], cpu=[0.25])]
    rate = compute_rate(GREEDY[1], given)
    assert (rate.per_second, rate.per_cpu_second) == (8, 16)


def test_the_rate_of_a_prompt_counts_its_tokens_and_not_those_of_the_answer():
    given = [answer(first=first, steps=[]) for first in (2.0, 2.0, 50.0)]
    assert compute_rate(PREFILL, given).per_second == 256


def test_a_whole_rate_counts_the_time_for_prompts_too():
    given = {"runtime": {GREEDY[0]: [answer(first=1.0, steps=[0.5, 0.5], tokens=[[1, 2, 3]])]}}
    rate = compute_whole_rates(given)["runtime"][GREEDY[0]]
    assert rate.per_second == 3 / 2


def test_runners_that_time_no_steps_have_whole_rates_only():
    given = answers(runtime=1, genai=1, llamacpp=1)
    given["engine"] = {cell: [answer(steps=[], cpu=[])] for cell in CELLS}
    assert "engine" not in compute_rates(given)
    whole = compute_whole_rates(given)
    assert list(whole) == ["runtime", "genai", "llamacpp", "engine"]
    assert PREFILL not in whole["engine"]
    ratios = build_speed_table(whole, title="t", cpu=False).lines[-2:]
    assert [line[0] for line in ratios] == [
        "miner, runtime, by the best other",
        "miner, engine, by the best other",
    ]


def test_agreement_ends_with_the_first_token_that_differs():
    ours = [answer(tokens=[[1, 2, 3, 4], [5, 6, 7, 8]])]
    theirs = [answer(tokens=[[1, 2, 3, 4], [5, 0, 7, 8]])]
    assert compute_agreement(ours, ours) == 1
    assert compute_agreement(ours, theirs) == 5 / 8


def test_drawing_costs_what_a_drawn_token_takes_longer_than_a_likeliest_one():
    rates = compute_rates(answers(runtime=1, genai=1, llamacpp=1))["runtime"]
    rates[SAMPLED[0]] = dataclasses.replace(rates[SAMPLED[0]], per_cpu_second=0.25)
    assert compute_drawing_s(rates, SAMPLED[0]) == 2


def test_the_miner_is_compared_with_the_best_runner_of_the_same_files_only():
    table = build_speed_table(
        compute_rates(answers(runtime=1, genai=2, llamacpp=0.1)), title="t", cpu=False
    )
    assert [line[0] for line in table.lines] == [
        "miner, runtime",
        "ONNX Runtime GenAI",
        "llama.cpp",
        "miner, runtime, by the best other",
    ]
    assert table.lines[0][1:4] == ["512.0", "1.0", "4.0"]
    assert set(table.lines[-1][1:]) == {"2.00"}


def test_processor_time_has_a_table_of_its_own():
    given = answers(runtime=1, genai=2, llamacpp=4)
    assert build_speed_table(compute_rates(given), title="t", cpu=True).lines[0][2] == "0.5"


def test_without_a_peer_on_the_same_files_nothing_is_compared():
    given = answers(runtime=1, genai=2, llamacpp=4)
    del given["genai"]
    assert len(build_speed_table(compute_rates(given), title="t", cpu=False).lines) == 2


def test_costs_name_drawing_memory_and_agreement_with_the_miner():
    given = answers(runtime=1, genai=1, llamacpp=1)
    given["llamacpp"] = {cell: [answer(tokens=[[1, 3]], peak=5_000_000)] for cell in CELLS}
    lines = build_cost_table(given, title="t").lines
    assert lines[0][-2:] == ["1 MB", "100.0%"]
    assert lines[2][-2:] == ["5 MB", "50.0%"]


def test_a_table_is_aligned_as_text_and_escaped_as_markdown():
    table = Table(title="speed", headings=["", "1 row"], lines=[["a|b", "9.0"], ["c", "10.0"]])
    assert format_text(table) == "speed\n     1 row\na|b    9.0\nc     10.0"
    assert format_markdown(table).splitlines() == [
        "**speed**",
        "",
        "|  | 1 row |",
        "| --- | ---: |",
        "| a\\|b | 9.0 |",
        "| c | 10.0 |",
    ]


def test_peers_run_in_their_own_environment_with_bounded_threads_and_offline():
    setup = Setup(model="m.gguf", threads=3)
    python, *others = build_command(KINDS["genai"], setup)
    assert python.endswith("build/peers/bin/python")
    assert others[:3] == ["-m", "scripts.bench_miner.worker", "genai"]
    assert python != build_command(KINDS["runtime"], setup)[0]
    environment = build_environment({"PATH": "p", "OMP_NUM_THREADS": "8"}, 3)
    assert environment["PATH"] == "p"
    assert environment["OMP_NUM_THREADS"] == "3"
    assert environment["HF_HUB_OFFLINE"] == environment["ORT_DISABLE_TELEMETRY"] == "1"


def test_rounding_changes_how_layers_multiply_and_nothing_else(tiny_directory, tmp_path):
    path = shutil.copy(tiny_directory / "model.onnx", tmp_path)
    round_inputs(Path(path))
    before, after = (
        onnx.load(str(file), load_external_data=False)
        for file in (tiny_directory / "model.onnx", path)
    )
    changed = [
        new for old, new in zip(before.graph.node, after.graph.node, strict=True) if old != new
    ]
    assert [node.op_type for node in changed] == ["MatMulNBits"] * 4 * LAYERS
    del before.graph.node[:], after.graph.node[:]
    assert before == after


@pytest.fixture
def tiny_models(tiny_directory, tmp_path):
    missing = tmp_path / "missing"
    return Models(onnx=tiny_directory, rounded=missing, gguf=missing)


def test_a_runner_answers_every_row_and_times_every_token(tiny_models):
    request = Request(prompts=[[3, 4, 5], [6, 7, 8]], new_tokens=4, sampled=False)
    with open_workers([KINDS["runtime"]], tiny_models, 1) as [worker]:
        got = worker.ask(request)
        alone = worker.ask(dataclasses.replace(request, prompts=request.prompts[1:]))
        drawn = worker.ask(dataclasses.replace(request, sampled=True))
    assert worker.version.startswith("onnxruntime ")
    assert [len(row) for row in got.token_ids] == [4, 4]
    assert got.token_ids[1:] == alone.token_ids
    assert drawn.token_ids != got.token_ids
    assert len(got.steps_s) == len(got.steps_cpu_s) == 3
    assert got.peak_bytes > 1_000_000


class ScriptedWorker:
    """Writes down who was asked for how many rows."""

    def __init__(self, runner: str, asked: list[tuple[str, int]]) -> None:
        self.kind = KINDS[runner]
        self.asked = asked

    def ask(self, request: Request) -> Answer:
        self.asked.append((self.kind.key, len(request.prompts)))
        return answer(tokens=request.prompts)


def test_runners_take_turns_at_every_cell_in_every_round():
    asked: list[tuple[str, int]] = []
    workers = [ScriptedWorker(runner, asked) for runner in ("runtime", "genai")]
    got = ask_in_turns(workers, GREEDY[:2], TEXT_IDS, rounds=2, new_tokens=3)
    turns = [("runtime", 1), ("genai", 1), ("runtime", 4), ("genai", 4)]
    assert asked == [*turns[:2], *turns, *turns], "the first two warm up"
    assert [len(given) for given in got["genai"].values()] == [2, 2]


def test_the_engine_answers_what_the_runtime_answers(tiny_models):
    request = Request(prompts=[[3, 4, 5], [6, 7, 8]], new_tokens=4, sampled=False)
    kinds = [KINDS["runtime"], KINDS["engine"]]
    with open_workers(kinds, tiny_models, 1) as (runtime, engine):
        got = engine.ask(request)
        assert got.token_ids == runtime.ask(request).token_ids
    assert got.steps_s == []
    assert got.whole_s > 0


def test_a_runner_that_ends_says_why(tiny_models):
    broken = dataclasses.replace(tiny_models, onnx=tiny_models.gguf)
    with (
        pytest.raises(RunnerError, match=r"miner, runtime ended too early: .*no such directory"),
        open_workers([KINDS["runtime"]], broken, 1),
    ):
        pytest.fail("it cannot have been opened")


def test_tables_are_printed_as_they_come_and_written_once_all_are_there(
    tmp_path, monkeypatch, capsys
):
    tables = [Table(title=name, headings=["", "n"], lines=[["x", "1"]]) for name in ("a", "b")]
    monkeypatch.setattr(command, "prepare_models", lambda _: None)
    monkeypatch.setattr(command, "measure_speed", lambda *_: iter(tables))
    path = tmp_path / "tables.md"
    assert command.main(["--only", "runtime", "--markdown", str(path)]) == 0
    assert [*map(format_text, tables)] == capsys.readouterr().out.strip().split("\n\n")[1:]
    assert "\n\n".join(map(format_markdown, tables)) in path.read_text()


def test_a_runner_that_fails_ends_the_command_and_leaves_what_was_printed(monkeypatch, capsys):
    def fail_later(*_):
        yield Table(title="a", headings=["", "n"], lines=[["x", "1"]])
        raise RunnerError("it ended too early")

    monkeypatch.setattr(command, "prepare_models", lambda _: None)
    monkeypatch.setattr(command, "measure_speed", fail_later)
    assert command.main(["--only", "runtime"]) == 1
    said = capsys.readouterr()
    assert said.out.endswith("x  1\n")
    assert said.err == "not measured: it ended too early\n"
