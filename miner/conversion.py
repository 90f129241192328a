"""A GGUF file to a model directory that is whole, tried and final, or not there at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from miner.errors import JobError, ModelFormatError, SettingsError, UnsupportedModelError
from miner.models.convert import Head, Progress, write_model
from miner.models.digest import digest_model
from miner.models.gguf import GgufFile, open_gguf
from miner.models.half import write_half_model
from miner.models.packing import PACKINGS
from miner.runtime import LlamaRuntime
from miner.tokenizer import ChatTokenizer, Message

TRIAL_CONTEXT: Final = 32
OTHER_BYTES: Final = 256 << 20
"""Room for rotary tables and the vocabulary, at most."""
MAX_TEMPLATE_BYTES: Final = 1 << 20


def convert_file(
    source: Path,
    target: Path,
    *,
    head: Head,
    context: int | None,
    chat_template: str | None,
    progress: Progress,
    half: bool = False,
) -> str:
    """Convert, try the result, put it in its place; its digest.

    With `half` what is put there is the variant in half precision, for GPUs.

    Raises:
        SettingsError: the target is there already.
        ModelError: the file is damaged, or of a kind that is not converted.
        OSError: the target cannot be written.
    """
    if target.exists() or target.is_symlink():
        raise SettingsError(f"{target} is there already: remove it, or name another directory")
    gguf = open_gguf(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    _check_room(target.parent, gguf, head, half=half)
    with _scratch(target) as fresh:
        try:
            write_model(
                gguf,
                fresh,
                head=head,
                context=context,
                chat_template=chat_template,
                progress=progress,
            )
        except (ModelFormatError, UnsupportedModelError) as error:
            raise type(error)(f"{source}: {error}") from error
        if not half:
            return _finish(fresh, target, progress)
        with _scratch(target) as halved:
            progress("halving the precision")
            write_half_model(fresh, halved)
            return _finish(halved, target, progress)


def _finish(fresh: Path, target: Path, progress: Progress) -> str:
    progress("trying the model")
    _try(fresh)
    progress("reading it once more for its digest")
    digest = digest_model(fresh)
    for path in fresh.iterdir():
        _sync(path)
    fresh.rename(target)
    _sync(target.parent)
    return digest


def _check_room(directory: Path, gguf: GgufFile, head: Head, *, half: bool) -> None:
    needed = OTHER_BYTES
    for name, tensor in gguf.tensors.items():
        weights = tensor.blocks.size * tensor.kind.block_weights
        if tensor.kind.is_float:
            needed += weights * tensor.kind.record.itemsize
        else:
            packing = PACKINGS[tensor.kind]
            constants = 1 if packing.rests is None else 2
            needed += weights * packing.bits // 8 + 4 * constants * (weights // packing.group)
        if head == "fp32" and name in {"output.weight", "token_embd.weight"}:
            needed += 4 * weights
    needed *= 2 if half else 1
    if shutil.disk_usage(directory).free < needed:
        room = f"about {needed // 1_000_000} MB are needed"
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {room}", str(directory))


@contextmanager
def _scratch(target: Path) -> Iterator[Path]:
    """A directory beside the target that is gone afterwards, unless it was renamed."""
    prefix = f".{target.name}.converting-"
    for left in target.parent.glob(f"{glob.escape(prefix)}*"):
        _remove_if_dead(left)
    scratch = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    scratch.chmod(0o755)  # as other directories, whoever runs the miner
    handle = os.open(scratch, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        os.close(handle)


def _remove_if_dead(left: Path) -> None:
    """Remove what a killed process left; a living one holds the directory's lock."""
    with contextlib.suppress(OSError):
        handle = os.open(left, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left, ignore_errors=True)
        finally:
            os.close(handle)


def _try(directory: Path) -> None:
    """Load it as the miner does, and let it see a conversation.

    Raises:
        ModelError: it cannot be used.
    """
    tokenizer = ChatTokenizer(directory)
    try:
        ids = tokenizer.encode_chat([Message(role="user", content="Hello")])
    except JobError as error:
        raise UnsupportedModelError(f"the chat template does not work: {error}") from error
    runtime = LlamaRuntime(directory, threads=1, context=TRIAL_CONTEXT, provider="cpu")
    if not ids or max(ids) >= runtime.vocabulary:
        raise ModelFormatError("the tokenizer makes tokens that the model does not have")


def _sync(path: Path) -> None:
    """Let a file or a directory reach the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
