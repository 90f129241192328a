"""A whole audit on this machine: from a case and a model's directory to a finding."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ledger.proof import Claim
from ledger.replay import Measures, judge_measures
from miner.audit.case import Case, build_answer, check_case
from miner.audit.replay import find_end, read_limits, replay
from miner.audit.steady import MOST_UNSTEADY, TEXT_TOKENS, describe_unsteadiness, find_unsteadiness
from miner.errors import ModelError, UnsupportedModelError
from miner.models.digest import digest_model
from miner.models.layout import find_model
from miner.runtime import LlamaRuntime
from miner.tokenizer import ChatTokenizer

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What an audit found."""

    model_digest: str
    """Of the auditor's model."""
    measures: Measures | None
    """None if a claim failed before anything was replayed."""
    claims: tuple[Claim, ...]

    @property
    def passed(self) -> bool:
        """Whether the answer was replayed and nothing failed."""
        return self.measures is not None and all(c.status != "failed" for c in self.claims)


def audit_alone(case: Case, model: Path, *, threads: int) -> Finding:
    """Check and replay a case with a model: its directory, or one of several ONNX files in it.

    Raises:
        ModelError: the model cannot be used.
        JobError: its chat template refuses the conversation, or its context is too small.
    """
    try:
        digest = digest_model(model)
    except OSError as error:
        raise ModelError(f"model {model}: {error.strerror or error}") from error
    checks = check_case(case, model_digest=digest)
    if any(claim.status == "failed" for claim in checks):
        return Finding(model_digest=digest, measures=None, claims=checks)
    tokenizer = ChatTokenizer(find_model(model).root)
    answer = build_answer(case, tokenizer)
    needed = max(len(answer.prompt_token_ids) + len(answer.token_ids), TEXT_TOKENS)
    runtime = LlamaRuntime(model, threads=threads, context=needed)
    unsteadiness = _run(find_unsteadiness(runtime, 0, vocabulary=runtime.vocabulary))
    if unsteadiness > MOST_UNSTEADY:
        raise UnsupportedModelError(f"model {model}: {describe_unsteadiness(unsteadiness)}")
    measures = _run(replay(answer, find_end(answer, tokenizer, read_limits(runtime)), runtime, 0))
    judged = judge_measures(
        measures,
        prompt_tokens=case.receipt.prompt_tokens,
        completion_tokens=case.receipt.completion_tokens,
    )
    return Finding(model_digest=digest, measures=measures, claims=(*checks, *judged))


def _run(pieces: Generator[None, None, T]) -> T:
    while True:
        try:
            next(pieces)
        except StopIteration as ended:
            result: T = ended.value
            return result
