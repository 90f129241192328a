"""Running a model on ONNX Runtime: load it, keep its cache, compute logits."""

from miner.runtime.device import CPU, CUDA, ProviderChoice
from miner.runtime.llama import PREFILL_CHUNK, LlamaRuntime

__all__ = ["CPU", "CUDA", "PREFILL_CHUNK", "LlamaRuntime", "ProviderChoice"]
