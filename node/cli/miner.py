"""`aitbc miner`: runs jobs of a node until it is stopped."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from miner.models.embedded import MODEL_NAME, default_cache, prepare_embedded_model
from miner.runtime.device import CUDA, ProviderChoice, choose_device
from miner.service import run_miner
from miner.settings import (
    CPU_SLOTS,
    DEFAULT_CONTEXT,
    GPU_SLOTS,
    MAX_SLOTS,
    MinerSettings,
    suggest_slots,
)
from node.cli.options import (
    default_url_option,
    file_type,
    follow_parent,
    log_format_option,
    log_option,
    option,
    stdin_option,
)
from node.datadir import create_key, load_key
from node.logs import LogFormat, configure_logging


@click.command()
@default_url_option
@option("--key", default="", show_default=False, help="API key of role miner.")
@option(
    "--keyfile",
    type=file_type,
    required=True,
    help="The miner's signing key; it is made if missing.",
)
@option("--miner-id", default="miner-1", help="This miner's name on the node.")
@option(
    "--model",
    "models",
    multiple=True,
    help="NAME=PATH of a model to serve: its directory, or one of several ONNX files in it. "
    f"Repeatable. {MODEL_NAME} alone is the embedded model, on a GPU in half precision, which is "
    "served if no model is named.",
)
@option("--threads", type=click.IntRange(0, 256), default=0, help="0: as many as there are cores.")
@option(
    "--provider",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    help="What runs the models. auto: a GPU that can be used, else the CPU; the log says which. "
    "cuda: a GPU or nothing.",
)
@option(
    "--gpu",
    type=click.IntRange(0, 255),
    default=0,
    help="Which GPU, counted as nvidia-smi does among those that CUDA_VISIBLE_DEVICES shows. "
    "One process uses one GPU.",
)
@option(
    "--slots",
    type=click.IntRange(0, MAX_SLOTS),
    default=0,
    help=f"Jobs that each model works on at once. 0: {CPU_SLOTS}, with a GPU {GPU_SLOTS}, or as "
    "many as there is memory for.",
)
@option(
    "--context",
    type=click.IntRange(16, 1 << 20),
    default=DEFAULT_CONTEXT,
    help="Most tokens of a job's prompt and answer together, if the model allows as many.",
)
@option(
    "--metrics-port",
    type=click.IntRange(0, 65535),
    default=None,
    show_default=False,
    help="Serve figures for Prometheus there, at /metrics; 0 lets the system choose.",
)
@option("--metrics-host", default="127.0.0.1", help="Address of --metrics-port.")
@option(
    "--grace",
    "grace_s",
    type=click.FloatRange(0, 86_400),
    default=10.0,
    help="Seconds that running jobs have to end after SIGTERM; the rest is given back.",
)
@option(
    "--audits/--no-audits",
    default=True,
    help="Audit answers of other miners too, in the gaps that jobs leave.",
)
@log_option
@log_format_option
@stdin_option
def miner(
    *,
    url: str,
    key: str,
    keyfile: Path,
    miner_id: str,
    models: tuple[str, ...],
    threads: int,
    provider: ProviderChoice,
    gpu: int,
    slots: int,
    context: int,
    metrics_port: int | None,
    metrics_host: str,
    grace_s: float,
    audits: bool,
    log_file: Path | None,
    log_format: LogFormat,
    until_stdin_closes: bool,
) -> None:
    """Run jobs of a node on ONNX Runtime, and sign their receipts."""
    configure_logging(log_file, log_format)
    follow_parent(enabled=until_stdin_closes)
    signing_key = load_key(keyfile)[0] if keyfile.exists() else create_key(keyfile)
    cache = default_cache(os.environ)
    asked = dict(_parse_model(model) for model in models or (MODEL_NAME,))
    device = choose_device(provider, gpu)
    half = device.provider == CUDA
    served = {name: path or _prepare_embedded(cache, half=half) for name, path in asked.items()}
    settings = MinerSettings(
        url=url,
        api_key=key,
        miner_id=miner_id,
        key=signing_key,
        models=served,
        cache=cache,
        threads=threads or os.cpu_count() or 1,
        slots=slots or suggest_slots(device.provider),
        least_slots=slots or 1,
        provider=provider,
        gpu=gpu,
        context=context,
        metrics_host=metrics_host,
        metrics_port=metrics_port,
        grace_s=grace_s,
        audits=audits,
    )
    sys.exit(run_miner(settings))


def _prepare_embedded(cache: Path, *, half: bool) -> Path:
    return prepare_embedded_model(cache, lambda line: click.echo(line, err=True), half=half).path


def _parse_model(text: str) -> tuple[str, Path | None]:
    """A name and where its model is; None for the embedded one, of which there are variants."""
    name, separator, path = text.partition("=")
    if text == MODEL_NAME:
        return text, None
    if not (name and separator and path):
        raise click.BadParameter(f"expected NAME=PATH, got {text}", param_hint="--model")
    return name, Path(path)
