"""PyTorch through transformers: the GGUF's weights unpacked to fp32, `generate` with its cache."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch  # type: ignore[import-not-found]
import transformers  # type: ignore[import-not-found]

from scripts.bench_miner.work import TEMPERATURE, TOP_P, Answer, Request, Setup, Stopwatch


def open_runner(setup: Setup) -> AbstractContextManager[TransformersRunner]:
    """Load the model."""
    return nullcontext(TransformersRunner(setup))


class TransformersRunner:
    """One call of `generate` for each request."""

    def __init__(self, setup: Setup) -> None:
        self.version = f"transformers {transformers.__version__}, torch {torch.__version__}, fp32"
        torch.set_num_threads(setup.threads)
        torch.set_grad_enabled(False)
        path = Path(setup.model)
        self._model = transformers.AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32
        )
        self._model.generation_config.eos_token_id = None

    def generate(self, request: Request) -> Answer:
        """See `Runner`."""
        prompts = torch.tensor(request.prompts)
        chosen: dict[str, Any] = {"do_sample": False}
        if request.sampled:
            chosen = {"do_sample": True, "temperature": TEMPERATURE, "top_p": TOP_P, "top_k": 0}
        watch = Stopwatch()

        def note_time(*_: Any) -> Any:
            watch.note_token()
            return torch.zeros(len(prompts), dtype=torch.bool)

        tokens = self._model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=request.new_tokens,
            stopping_criteria=[note_time],
            pad_token_id=0,
            **chosen,
        )
        return watch.build_answer(tokens[:, prompts.shape[1] :].tolist())
