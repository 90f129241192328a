"""Draws the answers of a provider, many rows at a time, and keeps them in a file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final, TypeVar

import msgspec
import numpy as np
from blake3 import blake3

from miner.models.embedded import DIGEST
from miner.runtime import PREFILL_CHUNK, LlamaRuntime
from miner.sampling import SamplingParams, build_key
from miner.tokenizer import ChatTokenizer, Message, TextStream
from scripts.calibration.models import Workshop
from scripts.calibration.prompts import REPORT, TUNING, Prompt
from scripts.calibration.providers import Provider

T = TypeVar("T")

CONTEXT: Final = 1_024
SETTINGS: Final = [(t, p) for t in (0, 300_000, 700_000, 1_000_000) for p in (900_000, 1_000_000)]
LENGTHS: Final = (48, 64, 80, 96)
JOBS_A_PROMPT: Final = 4
SETS: Final = {"tuning": TUNING, "report": REPORT}


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """A job as its receipt would state it."""

    number: int
    prompt: Prompt
    max_tokens: int
    temperature_micros: int
    top_p_micros: int
    seed: int

    @property
    def job_id(self) -> str:
        """An id of the right form."""
        return f"job_{self.number:026d}"

    @property
    def params(self) -> SamplingParams:
        """How it is to be drawn."""
        return SamplingParams(
            max_tokens=self.max_tokens,
            temperature_micros=self.temperature_micros,
            top_p_micros=self.top_p_micros,
            seed=self.seed,
        )


class Drawn(msgspec.Struct, frozen=True, kw_only=True):
    """An answer."""

    number: int
    token_ids: tuple[int, ...]
    text: str


def list_tasks(name: str, share: int = 1) -> list[Task]:
    """One of `share` jobs of a set, all settings alike."""
    prompts = SETS[name]
    tasks = []
    for number in range(len(prompts) * JOBS_A_PROMPT):
        # A prompt's four jobs take every other setting; the next prompt takes those between.
        at, turn = divmod(number, JOBS_A_PROMPT)
        temperature, top_p = SETTINGS[(2 * turn + at) % len(SETTINGS)]
        seed = blake3(f"{name} {number}".encode()).digest(length=6)
        task = Task(
            number=number,
            prompt=prompts[at],
            max_tokens=LENGTHS[(at + turn) % len(LENGTHS)],
            temperature_micros=temperature,
            top_p_micros=top_p,
            seed=int.from_bytes(seed, "little"),
        )
        # Whole prompts are left out, so that what stays has all settings.
        if (at // 2) % share == 0:
            tasks.append(task)
    return tasks


def encode_prompt(tokenizer: ChatTokenizer, prompt: Prompt) -> list[int]:
    """Token ids that a miner gives to the model."""
    turns = (prompt,) if isinstance(prompt, str) else prompt
    messages = [
        Message(role="assistant" if at % 2 else "user", content=turn)
        for at, turn in enumerate(turns)
    ]
    return tokenizer.encode_chat(messages)


def draw_all(name: str, provider: Provider, shop: Workshop, path: Path) -> list[Drawn]:
    """All answers of a provider to a set; those that the file holds already are not drawn again."""
    share = provider.share if name == "report" else provider.tuning_share
    tasks = {
        task.number: task
        for task in list_tasks(name, share)
        if task.temperature_micros or not provider.needs_temperature
    }
    known = [drawn for drawn in read_lines(path, Drawn) if drawn.number in tasks]
    missing = [tasks[number] for number in tasks.keys() - {drawn.number for drawn in known}]
    if missing:
        directory = shop.find(provider.model)
        runtime = LlamaRuntime(
            directory,
            threads=provider.threads,
            context=CONTEXT,
            slots=provider.slots,
            provider=provider.runs_on,
        )
        with append_to(path) as file:
            for drawn in draw(missing, provider, runtime, ChatTokenizer(directory)):
                file.write(msgspec.json.encode(drawn) + b"\n")
                file.flush()
                known.append(drawn)
    return known


def read_lines(path: Path, kind: type[T]) -> list[T]:
    """The whole lines of a file, if it is there."""
    whole = path.read_bytes().rpartition(b"\n")[0] if path.exists() else b""
    return [msgspec.json.decode(line, type=kind) for line in whole.split(b"\n") if line]


def append_to(path: Path) -> BinaryIO:
    """Open a file for more lines; half a line that a killed run left is removed."""
    file = path.open("a+b")
    file.seek(0)
    file.truncate(file.read().rfind(b"\n") + 1)
    return file


class _Row:
    """One slot's job in work."""

    def __init__(self, task: Task, provider: Provider, tokenizer: ChatTokenizer) -> None:
        claimed = encode_prompt(tokenizer, task.prompt)
        self.task = task
        self.prompt = encode_prompt(tokenizer, provider.read(task.prompt))
        self.params = provider.drawn(task.params)
        self.key = build_key(
            job_id=task.job_id,
            model_digest=DIGEST,
            prompt_token_ids=claimed,
            params=task.params,
        )
        self.drawn: list[int] = []

    @property
    def last(self) -> int:
        return self.drawn[-1] if self.drawn else self.prompt[-1]

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.drawn)


def draw(
    tasks: Sequence[Task], provider: Provider, runtime: LlamaRuntime, tokenizer: ChatTokenizer
) -> Iterator[Drawn]:
    """Draw answers; yields each when it is done."""
    waiting = list(reversed(tasks))
    rows: list[_Row | None] = [None] * runtime.slots
    while True:
        for slot, row in enumerate(rows):
            if row is None and waiting:
                rows[slot] = fresh = _Row(waiting.pop(), provider, tokenizer)
                _prefill(runtime, fresh.prompt, slot)
        if all(row is None for row in rows):
            return
        # A slot without a job steps one token that nobody looks at: rows are neighbours.
        logits = runtime.step(
            [row.last if row else 0 for row in rows], [row.length if row else 1 for row in rows]
        )
        for slot, row in enumerate(rows):
            if row is None:
                continue
            chosen = provider.choose(np.array(logits[slot]), row.params, row.key, len(row.drawn))
            row.drawn.append(chosen)
            ended = chosen in runtime.config.eos_token_ids
            if ended or len(row.drawn) == row.task.max_tokens:
                text = decode(tokenizer, row.drawn[:-1] if ended else row.drawn)
                yield Drawn(number=row.task.number, token_ids=tuple(row.drawn), text=text)
                rows[slot] = None


def decode(tokenizer: ChatTokenizer, token_ids: Sequence[int]) -> str:
    """Text of ids as a miner streams it."""
    stream = TextStream(tokenizer, ())
    for token in token_ids:
        stream.push(token)
    stream.finish()
    return stream.text


def _prefill(runtime: LlamaRuntime, prompt: Sequence[int], slot: int) -> None:
    last = len(prompt) - 1
    for start in range(0, last, PREFILL_CHUNK):
        runtime.prefill(prompt[start : min(start + PREFILL_CHUNK, last)], slot=slot, start=start)
