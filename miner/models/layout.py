"""Which files make up a model: the two layouts in which ONNX language models are shared.

- genai (ONNX Runtime GenAI): one directory with genai_config.json, which names the ONNX file, and
  tokenizer files. Every file in it belongs to the model.
- transformers.js: config.json and tokenizer files, and in `onnx/` the same model in several
  precisions, model.onnx, model_q4.onnx, …. One of them is chosen by naming the file itself. The
  model is that file, its data files, and the configuration beside.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from miner.errors import ModelFormatError, SettingsError, UnsupportedModelError
from miner.models.onnx_file import read_onnx
from miner.tokenizer import read_json

GENAI_CONFIG: Final = "genai_config.json"
CONFIG: Final = "config.json"
CONFIG_SUFFIXES: Final = (".json", ".jinja")
"""Files beside config.json that say how the model is used."""
MAX_CONFIG_FILES: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLocation:
    """Where a model's parts are."""

    root: Path
    """Holds the configuration and the tokenizer."""
    file: Path
    """The ONNX file."""
    is_genai: bool

    def used_files(self) -> list[Path]:
        """Every file of the transformers.js layout that this model is made of.

        Raises:
            ModelFormatError: a data file is missing, or outside the model.
        """
        configs = [path for path in self.root.iterdir() if path.suffix in CONFIG_SUFFIXES]
        if len(configs) > MAX_CONFIG_FILES:
            raise ModelFormatError(f"{self.root}: more than {MAX_CONFIG_FILES} configuration files")
        return [*configs, self.file, *data_files(self.file)]


def find_model(path: Path) -> ModelLocation:
    """The model in a directory, or the one whose ONNX file is named.

    Raises:
        SettingsError: there is none, or a choice to make; the message names the choices.
        ModelFormatError: a damaged genai_config.json.
        UnsupportedModelError: only exports that this runtime cannot run.
    """
    if path.suffix == ".onnx":
        return _named(path)
    if not path.is_dir():
        raise SettingsError(f"{path}: no such directory")
    if (path / GENAI_CONFIG).exists():
        return ModelLocation(root=path, file=path / _genai_file(path), is_genai=True)
    if not (path / CONFIG).exists():
        raise SettingsError(f"{path}: neither {GENAI_CONFIG} nor {CONFIG} is there")
    return ModelLocation(root=path, file=_only_choice(path), is_genai=False)


def holds_choices(directory: Path) -> bool:
    """Whether a directory is in the layout of transformers.js."""
    return (directory / CONFIG).exists() and not (directory / GENAI_CONFIG).exists()


def data_files(file: Path) -> list[Path]:
    """The files beside an ONNX file that hold its weights.

    Raises:
        ModelFormatError: one is missing, or outside the ONNX file's directory.
    """
    files = []
    for name in read_onnx(file).data_files:
        parts = PurePosixPath(name)
        if parts.is_absolute() or ".." in parts.parts or "\\" in name:
            raise ModelFormatError(f"{file}: weights outside its directory: {name!r:.100}")
        if not (file.parent / parts).is_file():
            raise ModelFormatError(f"{file}: its weights are missing: {file.parent / parts}")
        files.append(file.parent / parts)
    return files


def _named(file: Path) -> ModelLocation:
    if not file.is_file():
        raise SettingsError(f"{file}: no such file")
    for root in (file.parent, file.parent.parent):
        if (root / GENAI_CONFIG).exists():
            return ModelLocation(root=root, file=file, is_genai=True)
        if (root / CONFIG).exists():
            return ModelLocation(root=root, file=file, is_genai=False)
    raise SettingsError(f"{file}: no {GENAI_CONFIG} or {CONFIG} beside it or above")


def _genai_file(root: Path) -> str:
    try:
        return Path(read_json(root / GENAI_CONFIG)["model"]["decoder"]["filename"]).name
    except (KeyError, TypeError) as error:
        raise ModelFormatError(f"{root / GENAI_CONFIG}: names no ONNX file") from error


def _only_choice(root: Path) -> Path:
    files = sorted([*root.glob("*.onnx"), *root.glob("onnx/*.onnx")])
    whole = [file for file in files if file.name.startswith("model")]
    if len(whole) == 1:
        return whole[0]
    if whole:
        raise SettingsError(
            f"{root} holds {len(whole)} models: name one of {', '.join(map(str, whole))}"
        )
    if files:
        names = ", ".join(file.name for file in files)
        raise UnsupportedModelError(f"{root}: only models in one piece are run, not {names}")
    raise SettingsError(f"{root}: no onnx/model*.onnx is there")
