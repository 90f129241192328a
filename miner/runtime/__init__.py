"""Running a model on ONNX Runtime: load it, keep its cache, compute logits."""

from miner.runtime.llama import PREFILL_CHUNK, LlamaRuntime
from miner.runtime.session import CPU, CUDA, ProviderChoice

__all__ = ["CPU", "CUDA", "PREFILL_CHUNK", "LlamaRuntime", "ProviderChoice"]
