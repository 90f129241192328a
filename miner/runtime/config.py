"""What a model's configuration says of its graph, from either layout, checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from miner.errors import MinerError, ModelFormatError, UnsupportedModelError
from miner.models.layout import CONFIG, GENAI_CONFIG, ModelLocation
from miner.tokenizer import read_json

MAX_LAYERS: Final = 1_024
GENERATION_CONFIG: Final = "generation_config.json"
_PARTS: Final = ("encoder", "vision", "speech", "embedding", "vision_config", "audio_config")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A decoder's numbers, and the names of its graph's inputs and outputs."""

    file: Path
    layers: int
    context: int
    eos_token_ids: frozenset[int]
    kv_heads: int
    head_size: int
    vocabulary: int
    input_ids: str
    attention_mask: str
    position_ids: str
    past_names: tuple[str, ...]
    """Keys then values, layer by layer; in the order of `present_names`."""
    present_names: tuple[str, ...]
    logits: str


def read_config(location: ModelLocation) -> ModelConfig:
    """Read genai_config.json, or config.json with generation_config.json.

    Raises:
        ModelFormatError: missing or malformed.
        UnsupportedModelError: not a decoder in one piece.
    """
    path = location.root / (GENAI_CONFIG if location.is_genai else CONFIG)
    content = read_json(path)
    try:
        config = (_genai if location.is_genai else _transformers)(location, content)
    except MinerError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise ModelFormatError(f"{path}: not a decoder description: {error!r}") from error
    numbers = (config.context, config.kv_heads, config.head_size, config.vocabulary)
    if min(numbers) < 1:
        raise ModelFormatError(f"{path}: context, heads, head size, vocabulary: {numbers}")
    return config


def _genai(location: ModelLocation, content: dict[str, Any]) -> ModelConfig:
    model = content["model"]
    _refuse_parts(location, model)
    decoder = model["decoder"]
    if decoder.get("pipeline"):
        raise UnsupportedModelError(f"{location.root}: a decoder in several graphs is not run")
    if (decoder.get("sliding_window") or {}).get("slide_key_value_cache"):
        raise UnsupportedModelError(f"{location.root}: its cache slides, which is not run")
    inputs, outputs = decoder["inputs"], decoder["outputs"]
    layers = _layers(decoder["num_hidden_layers"])
    return ModelConfig(
        file=location.file,
        layers=layers,
        context=int(model["context_length"]),
        eos_token_ids=_token_ids(model.get("eos_token_id", _generation_end(location.root))),
        kv_heads=int(decoder["num_key_value_heads"]),
        head_size=int(decoder["head_size"]),
        vocabulary=int(model["vocab_size"]),
        input_ids=str(inputs["input_ids"]),
        attention_mask=str(inputs["attention_mask"]),
        position_ids=str(inputs.get("position_ids", "position_ids")),
        past_names=_names(inputs["past_key_names"], inputs["past_value_names"], layers),
        present_names=_names(outputs["present_key_names"], outputs["present_value_names"], layers),
        logits=str(outputs["logits"]),
    )


def _transformers(location: ModelLocation, content: dict[str, Any]) -> ModelConfig:
    _refuse_parts(location, content)
    if content.get("is_encoder_decoder"):
        raise UnsupportedModelError(f"{location.root}: a model with an encoder is not run")
    heads = int(content["num_attention_heads"])
    layers = _layers(content["num_hidden_layers"])
    return ModelConfig(
        file=location.file,
        layers=layers,
        context=int(content["max_position_embeddings"]),
        eos_token_ids=_token_ids(_generation_end(location.root) or content.get("eos_token_id")),
        kv_heads=int(content.get("num_key_value_heads") or heads),
        head_size=int(content.get("head_dim") or content["hidden_size"] // heads),
        vocabulary=int(content["vocab_size"]),
        input_ids="input_ids",
        attention_mask="attention_mask",
        position_ids="position_ids",
        past_names=_names("past_key_values.%d.key", "past_key_values.%d.value", layers),
        present_names=_names("present.%d.key", "present.%d.value", layers),
        logits="logits",
    )


def _refuse_parts(location: ModelLocation, content: dict[str, Any]) -> None:
    parts = [part for part in _PARTS if content.get(part)]
    if parts:
        raise UnsupportedModelError(f"{location.root}: only plain decoders are run, not {parts}")


def _layers(value: Any) -> int:
    layers = int(value)
    if not 1 <= layers <= MAX_LAYERS:  # before as many names are made
        raise ModelFormatError(f"{layers} layers")
    return layers


def _names(key: str, value: str, layers: int) -> tuple[str, ...]:
    return tuple(face % layer for layer in range(layers) for face in (key, value))


def _generation_end(root: Path) -> Any:
    """The end tokens of generation_config.json, which go before those of config.json."""
    path = root / GENERATION_CONFIG
    return read_json(path).get("eos_token_id") if path.exists() else None


def _token_ids(eos: Any) -> frozenset[int]:
    ids = frozenset(map(int, eos if isinstance(eos, list) else [eos]))
    if not ids:
        raise ValueError("no eos_token_id")
    return ids
