"""What a model directory holds, without loading it: for people who choose one."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from blake3 import blake3
from onnx import ModelProto, NodeProto, TensorProto, helper

from miner.errors import MinerError, ModelError
from miner.models.digest import cached_digest, list_files
from miner.models.embedded import DIGEST, DIRECTORY, HALF_DIGEST, HALF_DIRECTORY, MODEL_NAME
from miner.models.layout import CONFIG, GENAI_CONFIG, find_model
from miner.runtime.config import read_config
from miner.runtime.memory import plan_memory
from miner.runtime.session import ModelSource, read_source
from miner.template import read_template
from miner.tokenizer import read_json

MAX_LISTED: Final = 1_000
EMBEDDED: Final = {DIRECTORY: DIGEST, HALF_DIRECTORY: HALF_DIGEST}
"""Directories of the embedded model and of its variant for GPUs, and what they must hold."""
WEIGHTS: Final = {
    TensorProto.FLOAT,
    TensorProto.FLOAT16,
    TensorProto.BFLOAT16,
    TensorProto.INT8,
    TensorProto.UINT8,
    TensorProto.INT4,
    TensorProto.UINT4,
}
"""Types of tensors that are weights; the others are sizes and positions of the graph."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightKind:
    """Tensors that are stored in the same way."""

    kind: str
    tensors: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryEstimate:
    """What the miner plans for on a CPU."""

    context: int
    slots: int
    fixed_bytes: int
    """Weights and working memory."""
    cache_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """One model."""

    path: str
    digest: str
    layout: str
    architecture: str
    layers: int
    context: int
    vocabulary: int
    kv_heads: int
    head_size: int
    weights: list[WeightKind]
    size_bytes: int
    has_chat_template: bool
    memory: MemoryEstimate


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownModel:
    """One directory of the cache."""

    name: str
    """The name it is served by if it is the embedded model, else the directory's."""
    path: str
    layout: str = ""
    size_bytes: int = 0
    digest: str = ""
    """Empty if the model is not there, or `problem` says why it cannot be used."""
    problem: str = ""


def describe_model(
    path: Path, *, cache: Path, context: int | None = None, slots: int = 1
) -> ModelInfo:
    """Describe a model.

    Args:
        path: its directory, or one of several ONNX files in it.
        cache: where digests are remembered.
        context: tokens of a slot; None: as many as the model allows.
        slots: texts at once.

    Raises:
        ModelError, SettingsError: there is no such model, or it cannot be read.
    """
    location = find_model(path)
    config = read_config(location)
    source = read_source(config, cut_head=False)
    graph = source.content.model
    described = read_json(location.root / (GENAI_CONFIG if location.is_genai else CONFIG))
    sizes = {tensor.name: _size(tensor) for tensor in graph.graph.initializer}
    return ModelInfo(
        path=str(path),
        digest=find_digest(path, cache),
        layout=_layout(is_genai=location.is_genai),
        architecture=_architecture(described),
        layers=config.layers,
        context=config.context,
        vocabulary=config.vocabulary,
        kv_heads=config.kv_heads,
        head_size=config.head_size,
        weights=_group_weights(graph, sizes),
        size_bytes=sum(file.stat().st_size for file, _ in list_files(path)),
        has_chat_template=_has_template(location.root),
        memory=_estimate(
            source, context=min(context or config.context, config.context), slots=slots
        ),
    )


def find_digest(path: Path, cache: Path) -> str:
    """The digest of a model, remembered where the miner remembers it too."""
    place = blake3(bytes(path.resolve())).hexdigest(16)
    return cached_digest(path, cache / f"{place}.digest.json")


def list_models(cache: Path) -> Iterator[KnownModel]:
    """The embedded model, and every other directory of the cache."""
    directories = sorted(path for path in cache.glob("[!.]*") if path.is_dir())
    if cache / DIRECTORY not in directories:
        yield KnownModel(name=MODEL_NAME, path=str(cache / DIRECTORY), problem="not downloaded yet")
    for path in directories[:MAX_LISTED]:
        name = MODEL_NAME if path.name in EMBEDDED else path.name
        try:
            location = find_model(path)
            digest = find_digest(path, cache)
            size = sum(file.stat().st_size for file, _ in list_files(path))
        except (MinerError, OSError) as error:
            yield KnownModel(name=name, path=str(path), problem=str(error))
            continue
        is_foreign = EMBEDDED.get(path.name, digest) != digest
        yield KnownModel(
            name=name,
            path=str(path),
            layout=_layout(is_genai=location.is_genai),
            size_bytes=size,
            digest=digest,
            problem="its files were changed; the miner makes it anew" if is_foreign else "",
        )


def _layout(*, is_genai: bool) -> str:
    return "genai" if is_genai else "transformers.js"


def _architecture(described: dict[str, Any]) -> str:
    model = described.get("model")
    kind = model.get("type") if isinstance(model, dict) else described.get("model_type")
    return kind if isinstance(kind, str) else "unknown"


def _has_template(root: Path) -> bool:
    try:
        return bool(read_template(root, read_json(root / "tokenizer_config.json")))
    except (ModelError, OSError, ValueError):
        return False


def _size(tensor: TensorProto) -> int:
    try:
        size: int = helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    except KeyError:
        return 0
    return math.prod(map(int, tensor.dims), start=size)


def _group_weights(graph: ModelProto, sizes: dict[str, int]) -> list[WeightKind]:
    """Matrices by how they are packed, then all other tensors by their type."""
    found: dict[str, list[int]] = defaultdict(list)
    counted: set[str] = set()
    for node in graph.graph.node:
        if node.op_type == "MatMulNBits":
            names = [name for name in node.input[1:] if name in sizes]
            found[_packing(node)].append(sum(sizes[n] for n in names if n not in counted))
            counted.update(names)
    for tensor in graph.graph.initializer:
        if tensor.name not in counted and tensor.data_type in WEIGHTS:
            found[TensorProto.DataType.Name(tensor.data_type).lower()].append(sizes[tensor.name])
    return [
        WeightKind(kind=kind, tensors=len(each), size_bytes=sum(each))
        for kind, each in sorted(found.items())
    ]


def _packing(node: NodeProto) -> str:
    numbers = {attribute.name: attribute.i for attribute in node.attribute}
    return f"{numbers.get('bits', 4)} bits in groups of {numbers.get('block_size', 0)}"


def _estimate(source: ModelSource, *, context: int, slots: int) -> MemoryEstimate:
    plan = plan_memory(
        free_bytes=0,
        weights_bytes=source.weights_bytes,
        token_bytes=source.facts.token_bytes,
        context=context,
        slots=slots,
        is_cuda=False,
    )
    return MemoryEstimate(
        context=plan.context,
        slots=slots,
        fixed_bytes=plan.fixed_bytes,
        cache_bytes=plan.needed_bytes - plan.fixed_bytes,
        total_bytes=plan.needed_bytes,
    )
