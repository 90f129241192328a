"""An answer of the tiny model with its receipt, and what can be made of both."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from ledger.encoding import encode, encode_base64url
from ledger.hashing import hash_text, hash_tokens
from ledger.replay import Measures
from ledger.transaction import MICROS, build_transaction
from miner.audit.case import Case, parse_case
from miner.audit.replay import Answer, find_end, read_limits, replay
from miner.models.convert import write_model
from miner.models.digest import digest_model
from miner.models.gguf import parse_gguf
from miner.runtime import LlamaRuntime
from miner.sampling import SamplingParams, build_key, choose_token
from miner.tokenizer import ChatTokenizer, Message, TextStream
from tests.builders import build_chain, build_payload, build_salt, sign_receipt
from tests.tiny_model import build_tiny_model

PROMPT = "Why the sky?"
PARAMS = SamplingParams(
    max_tokens=24, temperature_micros=700_000, top_p_micros=900_000, seed=7_000_000_000_000_001
)
JOB = "job_00000000000000000000000001"


def write_unsure_model(directory: Path) -> None:
    """The tiny model, less sure of itself: as it is, draws are mostly its likeliest tokens."""
    tiny = build_tiny_model()
    kind, shape, content = tiny.tensors["output_norm.weight"]
    weights = np.frombuffer(content, "<f4") * np.float32(0.3)
    tiny.tensors["output_norm.weight"] = (kind, shape, weights.tobytes())
    write_model(parse_gguf(tiny.gguf), directory)


def tame(directory: Path) -> None:
    """Let no token end an answer."""
    path = directory / "genai_config.json"
    content = path.read_text(encoding="utf-8")
    assert content.count('"eos_token_id": 2') == 1
    path.write_text(
        content.replace('"eos_token_id": 2', '"eos_token_id": 100000'), encoding="utf-8"
    )


class Stage:
    """A small model as an honest provider has it."""

    def __init__(self, directory: Path, *, is_tame: bool = False) -> None:
        """`directory` is empty. A tame model's answers all have `max_tokens`."""
        write_unsure_model(directory)
        if is_tame:
            tame(directory)
        self.directory = directory
        self.digest = digest_model(directory)
        self.tokenizer = ChatTokenizer(directory)
        self.runtime = LlamaRuntime(directory, threads=1, context=64, slots=2)
        self.limits = read_limits(self.runtime)

    def answer(
        self,
        params: SamplingParams = PARAMS,
        *,
        prompt: str = PROMPT,
        stop: tuple[str, ...] = (),
        drawn: SamplingParams | None = None,
        length: int | None = None,
    ) -> Answer:
        """What an honest provider answers; `drawn` with other parameters than it states."""
        messages = [Message(role="user", content=prompt)]
        ids = self.tokenizer.encode(self.tokenizer.render(messages))
        key = build_key(job_id=JOB, model_digest=self.digest, prompt_token_ids=ids, params=params)
        stream, token_ids = TextStream(self.tokenizer, stop), []
        room = min(params.max_tokens if length is None else length, 64 - len(ids))
        if len(ids) > 1:
            self.runtime.prefill(ids[:-1], slot=0, start=0)
        while len(token_ids) < room:
            last = token_ids[-1] if token_ids else ids[-1]
            logits = self.runtime.step([last], [len(ids) + len(token_ids)])
            token_ids.append(
                choose_token(logits[0], params=drawn or params, key=key, step=len(token_ids))
            )
            if token_ids[-1] in self.limits.end_tokens:
                break
            stream.push(token_ids[-1])
            if stream.stopped:
                break
        stream.finish()
        return Answer(
            job_id=JOB,
            model_digest=self.digest,
            prompt_token_ids=tuple(ids),
            token_ids=tuple(token_ids),
            result=stream.text,
            params=params,
            stop=stop,
        )

    def with_tokens(self, answer: Answer, token_ids: tuple[int, ...]) -> Answer:
        """Other tokens, with the text that they have."""
        stream = TextStream(self.tokenizer, answer.stop)
        for token in token_ids:
            if token not in self.limits.end_tokens:
                stream.push(token)
        stream.finish()
        return dataclasses.replace(answer, token_ids=token_ids, result=stream.text)

    def measure(self, answer: Answer, *, slot: int = 1) -> Measures:
        """Replay an answer."""
        pieces = replay(answer, find_end(answer, self.tokenizer, self.limits), self.runtime, slot)
        return drain(pieces)

    def files(self, answer: Answer, *, prompt: str = PROMPT, **changes: Any) -> Files:
        """A receipt of the answer, on a chain, and what its owner has."""
        salt, prompt_salt = build_salt("result 1"), build_salt("prompt 1")
        chain = build_chain()
        counts = len(answer.prompt_token_ids), len(answer.token_ids)
        fields: dict[str, Any] = {
            "model": "tiny:1b",
            "model_digest": self.digest,
            "prompt_digest": hash_text(prompt_salt, prompt).hex(),
            "result_digest": hash_text(salt, answer.result).hex(),
            "tokens_digest": hash_tokens(salt, answer.token_ids).hex(),
            "max_tokens": answer.params.max_tokens,
            "temperature_micros": answer.params.temperature_micros,
            "top_p_micros": answer.params.top_p_micros,
            "seed": answer.params.seed,
            "prompt_tokens": counts[0],
            "completion_tokens": counts[1],
        } | changes
        fields["units_micros"] = (fields["prompt_tokens"] + fields["completion_tokens"]) * MICROS
        payload = build_payload(chain.genesis, 1, **fields)
        chain.append(build_transaction(payload, sign_receipt(payload)))
        job = {
            "job_id": payload.job_id,
            "status": "completed",
            "prompt": prompt,
            "params": {"max_tokens": payload.max_tokens, "stop": list(answer.stop)},
            "result": answer.result,
            "disclosure": {
                "prompt_salt": encode_base64url(prompt_salt),
                "result_salt": encode_base64url(salt),
                "output_token_ids": list(answer.token_ids),
            },
        }
        return Files(encode(chain.bundle(0)), job, encode(chain.genesis))


@dataclasses.dataclass
class Files:
    """As an owner keeps them."""

    bundle: bytes
    job: dict[str, Any]
    genesis: bytes

    def case(self) -> Case:
        """What is audited."""
        return parse_case(self.bundle, encode(self.job))


def drain(pieces: Any) -> Any:
    """Run a generator to its end, for what it returns."""
    while True:
        try:
            next(pieces)
        except StopIteration as ended:
            return ended.value
