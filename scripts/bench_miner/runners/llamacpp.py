"""llama.cpp on the GGUF itself, through the C functions that llama-cpp-python binds."""

from __future__ import annotations

import ctypes
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import llama_cpp  # type: ignore[import-not-found]
import numpy as np
from numpy.typing import NDArray

from scripts.bench_miner.work import (
    CONTEXT,
    MAX_ROWS,
    TEMPERATURE,
    TOP_P,
    Answer,
    Request,
    Setup,
    Stopwatch,
    take_likeliest,
)

BATCH = 512
"""Tokens of one run at most, llama.cpp's own default."""


def open_runner(setup: Setup) -> AbstractContextManager[LlamaCppRunner]:
    """Load the model."""
    return nullcontext(LlamaCppRunner(setup))


class LlamaCppRunner:
    """Prompts of all rows together, then a token of each row a run."""

    def __init__(self, setup: Setup) -> None:
        info = llama_cpp.llama_print_system_info().decode()
        flags = [flag.split(" = ")[0].strip() for flag in info.split("|") if "= 1" in flag]
        built = ", ".join(flag for flag in flags if "AVX" in flag) or "plain"
        self.version = f"llama-cpp-python {llama_cpp.__version__}, {built}"
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(
            setup.model.encode(), llama_cpp.llama_model_default_params()
        )
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = CONTEXT * MAX_ROWS
        params.n_seq_max = MAX_ROWS
        params.n_batch = params.n_ubatch = BATCH
        params.n_threads = params.n_threads_batch = setup.threads
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        vocabulary = llama_cpp.llama_model_get_vocab(self._model)
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(vocabulary)
        self._batch = llama_cpp.llama_batch_init(BATCH, 0, 1)

    def generate(self, request: Request) -> Answer:
        """See `Runner`."""
        rows, length = len(request.prompts), len(request.prompts[0])
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), 1)
        samplers = [_open_sampler(row) for row in range(rows)] if request.sampled else []
        watch = Stopwatch()
        fitting = max(1, BATCH // length)
        tokens: list[int] = []
        for first in range(0, rows, fitting):
            prompts = request.prompts[first : first + fitting]
            entries = [
                (token, position, first + row, position + 1 == length)
                for row, prompt in enumerate(prompts)
                for position, token in enumerate(prompt)
            ]
            tokens += self._choose(entries, samplers[first:])
        drawn = [tokens]
        watch.note_token()
        for step in range(1, request.new_tokens):
            entries = [(token, length + step - 1, row, True) for row, token in enumerate(tokens)]
            tokens = self._choose(entries, samplers)
            drawn.append(tokens)
            watch.note_token()
        for sampler in samplers:
            llama_cpp.llama_sampler_free(sampler)
        return watch.build_answer(np.transpose(drawn).tolist())

    def _choose(self, entries: list[tuple[int, int, int, bool]], samplers: list[Any]) -> list[int]:
        """Run tokens, given as (token, position, row, wanted); a token for each that is wanted."""
        wanted = self._fill(entries)
        status = llama_cpp.llama_decode(self._context, self._batch)
        if status:
            raise RuntimeError(f"llama_decode: {status}")
        if samplers:
            pairs = zip(samplers, wanted, strict=False)
            return [llama_cpp.llama_sampler_sample(s, self._context, at) for s, at in pairs]
        return take_likeliest(self._logits(len(wanted)))

    def _fill(self, entries: list[tuple[int, int, int, bool]]) -> list[int]:
        batch = self._batch
        batch.n_tokens = len(entries)
        for at, (token, position, row, wanted) in enumerate(entries):
            batch.token[at], batch.pos[at] = token, position
            batch.n_seq_id[at], batch.seq_id[at][0] = 1, row
            batch.logits[at] = wanted
        return [at for at, entry in enumerate(entries) if entry[-1]]

    def _logits(self, rows: int) -> NDArray[np.float32]:
        pointer = llama_cpp.llama_get_logits(self._context)
        floats = ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float))
        return np.ctypeslib.as_array(floats, (rows, self._vocabulary))


def _open_sampler(seed: int) -> Any:
    chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
    for sampler in (
        llama_cpp.llama_sampler_init_temp(TEMPERATURE),
        llama_cpp.llama_sampler_init_top_p(TOP_P, 1),
        llama_cpp.llama_sampler_init_dist(seed),
    ):
        llama_cpp.llama_sampler_chain_add(chain, sampler)
    return chain
