"""From directories to engines: a model is loaded, named and tried, if there is memory for it."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Final

from blake3 import blake3

from miner.engine import InferenceThread, LlamaEngine
from miner.errors import ModelError
from miner.models.digest import cached_digest
from miner.models.layout import find_model
from miner.runtime import LlamaRuntime
from miner.runtime.memory import MIB, read_free_ram
from miner.settings import OTHER_SLOTS, MinerSettings
from miner.tokenizer import ChatTokenizer

log = logging.getLogger(__name__)

KEPT_FREE: Final = 256 * MIB
"""With less free memory than this the miner takes no work."""


def load_engines(settings: MinerSettings, inference: InferenceThread) -> dict[str, LlamaEngine]:
    """Load all models; each has to fit beside all that those before it may take.

    Raises:
        ModelError: one cannot be used.
        SettingsError: one is not there, or does not fit.
    """
    engines: dict[str, LlamaEngine] = {}
    for name, path in settings.models.items():
        promised_bytes = sum(engine.promised_bytes for engine in engines.values())
        engines[name] = load_engine(
            path, settings, name=name, inference=inference, promised_bytes=promised_bytes
        )
    return engines


def load_engine(
    path: Path,
    settings: MinerSettings,
    *,
    name: str,
    inference: InferenceThread,
    promised_bytes: int = 0,
) -> LlamaEngine:
    """Load, name and try a model.

    Raises:
        ModelError: it cannot be used.
        SettingsError: it is not there, or does not fit.
    """
    try:
        settings.cache.mkdir(parents=True, exist_ok=True)
        place = blake3(os.fsencode(path.resolve())).hexdigest(16)
        digest = cached_digest(path, settings.cache / f"{place}.digest.json")
        runtime = LlamaRuntime(
            path,
            threads=settings.threads,
            context=settings.context,
            slots=settings.slots + OTHER_SLOTS,
            least_slots=(settings.least_slots or settings.slots) + OTHER_SLOTS,
            provider=settings.provider,
            gpu=settings.gpu,
            promised_bytes=promised_bytes,
        )
        tokenizer = ChatTokenizer(find_model(path).root)
        engine = LlamaEngine(runtime, tokenizer, model_digest=digest, inference=inference)
    except OSError as error:
        raise ModelError(f"model {name}: {path}: {error.strerror or error}") from error
    engine.warm_up()
    log.info(
        "model %s: digest %s, on %s, %d slots of %d tokens",
        *(name, digest, engine.provider, engine.slots, runtime.context),
    )
    return engine


def find_obstacle() -> str | None:
    """Why this machine should take no work now."""
    free = read_free_ram()
    if free is None or free >= KEPT_FREE:
        return None
    return f"{free // MIB} MiB of memory are free, and {KEPT_FREE // MIB} MiB are to stay so"
