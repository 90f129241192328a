"""Replays what providers answered, as it is or altered, and keeps what was measured."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from ledger.replay import Measures
from miner.audit.replay import Answer, find_end, read_limits, replay
from miner.models.embedded import DIGEST
from miner.runtime import LlamaRuntime, ProviderChoice
from miner.tokenizer import ChatTokenizer
from scripts.calibration.drawing import (
    CONTEXT,
    Drawn,
    Task,
    append_to,
    decode,
    draw,
    encode_prompt,
    list_tasks,
    read_lines,
)
from scripts.calibration.models import Workshop
from scripts.calibration.providers import HONEST

ALTERED: Final = 40
"""Answers that are altered in each way."""
ALTERED_SHARE: Final = 2
"""They are of one of so many jobs, so that all kinds of prompts are among them."""
TIMED: Final = 16
"""Answers whose making and auditing is timed."""


class Audited(msgspec.Struct, frozen=True, kw_only=True):
    """What one replay measured."""

    number: int
    measures: Measures


class Auditor:
    """One who has a model."""

    def __init__(self, shop: Workshop, model: str, runs_on: ProviderChoice = "cpu") -> None:
        directory = shop.find(model)
        self.runtime = LlamaRuntime(directory, threads=1, context=CONTEXT, provider=runs_on)
        self.tokenizer = ChatTokenizer(directory)
        self._limits = read_limits(self.runtime)

    def build(self, task: Task, drawn: Drawn) -> Answer:
        """The answer as its receipt would state it."""
        return Answer(
            job_id=task.job_id,
            model_digest=DIGEST,
            prompt_token_ids=tuple(encode_prompt(self.tokenizer, task.prompt)),
            token_ids=drawn.token_ids,
            result=drawn.text,
            params=task.params,
            stop=(),
        )

    def measure(self, answer: Answer) -> Measures:
        """Replay it."""
        pieces = replay(answer, find_end(answer, self.tokenizer, self._limits), self.runtime, 0)
        while True:
            try:
                next(pieces)
            except StopIteration as ended:
                measures: Measures = ended.value
                return measures

    def with_tokens(self, answer: Answer, token_ids: Sequence[int]) -> Answer:
        """Other tokens, and the text that they have."""
        text = decode(self.tokenizer, [i for i in token_ids if i not in self._limits.end_tokens])
        return dataclasses.replace(answer, token_ids=tuple(token_ids), result=text)


def _wrong_seed(auditor: Auditor, answer: Answer, _other: Answer) -> Answer:
    seed = answer.params.seed ^ 1
    return dataclasses.replace(answer, params=dataclasses.replace(answer.params, seed=seed))


def _one_token_altered(auditor: Auditor, answer: Answer, _other: Answer) -> Answer:
    """One token becomes another of the same answer: it fits the subject."""
    middle = len(answer.token_ids) // 2
    ids = list(answer.token_ids)
    ids[middle] = next((i for i in ids if i != ids[middle]), ids[middle] ^ 1)
    return auditor.with_tokens(answer, ids)


def _cut_in_half(auditor: Auditor, answer: Answer, _other: Answer) -> Answer:
    return auditor.with_tokens(answer, answer.token_ids[: max(1, len(answer.token_ids) // 2)])


def _another_answer(_auditor: Auditor, answer: Answer, other: Answer) -> Answer:
    return dataclasses.replace(answer, token_ids=other.token_ids, result=other.result)


ALTERATIONS: Final[Mapping[str, Callable[[Auditor, Answer, Answer], Answer]]] = {
    "wrong seed": _wrong_seed,
    "one token altered": _one_token_altered,
    "cut in half": _cut_in_half,
    "answer to another prompt": _another_answer,
}


def audit_all(name: str, auditor: Auditor, drawn: Sequence[Drawn], path: Path) -> list[Audited]:
    """Audit answers to a set; what the file holds already is not audited again."""
    tasks = {task.number: task for task in list_tasks(name)}
    wanted = {one.number for one in drawn}
    known = [one for one in read_lines(path, Audited) if one.number in wanted]
    seen = {one.number for one in known}
    with append_to(path) as file:
        for one in drawn:
            if one.number not in seen:
                measures = auditor.measure(auditor.build(tasks[one.number], one))
                known.append(_keep(file, one.number, measures))
    return known


def audit_altered(
    name: str, alteration: str, auditor: Auditor, drawn: Sequence[Drawn], path: Path
) -> list[Audited]:
    """Audit honest answers that were altered in one way."""
    tasks = {task.number: task for task in list_tasks(name, ALTERED_SHARE)}
    alter = ALTERATIONS[alteration]
    # At temperature 0 the seed is of no consequence.
    chosen = [
        one
        for one in sorted(drawn, key=lambda one: one.number)
        if one.number in tasks
        and (alteration != "wrong seed" or tasks[one.number].temperature_micros)
    ][:ALTERED]
    known = read_lines(path, Audited)
    seen = {one.number for one in known}
    with append_to(path) as file:
        for at, one in enumerate(chosen):
            if one.number in seen:
                continue
            other = chosen[(at + 5) % len(chosen)]
            given = auditor.build(tasks[one.number], one)
            foreign = auditor.build(tasks[other.number], other)
            measures = auditor.measure(alter(auditor, given, foreign))
            known.append(_keep(file, one.number, measures))
    return known


def _keep(file: BinaryIO, number: int, measures: Measures) -> Audited:
    audited = Audited(number=number, measures=measures)
    file.write(msgspec.json.encode(audited) + b"\n")
    file.flush()
    return audited


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Processor milliseconds an answer, in one thread."""

    drawn_alone: float
    drawn_by_eight: float
    audited: float


def measure_costs(shop: Workshop) -> Costs:
    """Make some answers one by one, then eight at a time, and audit them."""
    honest = HONEST[0]
    tasks = list_tasks("report")[:TIMED]
    auditor = Auditor(shop, "base")
    spent = []
    drawn: list[Drawn] = []
    for slots in (1, 8):
        runtime = LlamaRuntime(
            shop.find("base"), threads=1, context=CONTEXT, slots=slots, provider="cpu"
        )
        began = time.process_time()
        drawn = list(draw(tasks, honest, runtime, auditor.tokenizer))
        spent.append(time.process_time() - began)
    numbered = {task.number: task for task in tasks}
    began = time.process_time()
    for one in drawn:
        auditor.measure(auditor.build(numbered[one.number], one))
    spent.append(time.process_time() - began)
    alone, by_eight, audited = (1000 * seconds / TIMED for seconds in spent)
    return Costs(drawn_alone=alone, drawn_by_eight=by_eight, audited=audited)
