"""From conversations to answers: many at once on one loaded model (continuous batching).

answer.py      what is asked, what is answered, and what a worker needs of a model
slots.py       what every slot of the cache holds; who gets which slot; prefixes that are shared
sequence.py    one answer while it grows
batch.py       turns: who is admitted, a piece of prefill, one token for every answer
work.py        other work on the runtime between turns, such as an audit's replay
inference.py   the thread that takes the turns of all models
llama.py       one model, put together

Why it is built so: docs/adr/0023-engine.md.
"""

from miner.engine.answer import (
    Completion,
    Engine,
    FinishReason,
    Generation,
    GenerationRequest,
)
from miner.engine.inference import InferenceThread
from miner.engine.llama import LlamaEngine

__all__ = [
    "Completion",
    "Engine",
    "FinishReason",
    "Generation",
    "GenerationRequest",
    "InferenceThread",
    "LlamaEngine",
]
