"""The verifier as one file to keep: the modules of `static/verify` and what they import, inlined.

The same static files give the same bytes, so the file that a node hands out can be compared with
one made from a checkout (`python -m scripts.offline_verifier`). Nothing is minified: whoever wants
to know what it does can read it.

Modules are joined, imports first, into one script: each becomes a function that returns its
exports. Only the few forms of `import` and `export` below are known. Anything else raises, so that
a changed module is never half translated.
"""

from __future__ import annotations

import base64
import hashlib
import posixpath
import re
from pathlib import Path

from explorer_ui.assets import FOLDER

ENTRY = "verify/offline.js"
SHELL = "verify/offline.html"
STYLE = "explorer.css"
LICENCE = "LICENSE"

_STATEMENT = re.compile(r"^(?:import|export)\b", re.MULTILINE)
_IMPORT = re.compile(
    r"import (?:\* as (?P<all>\w+)|\{(?P<some>[^}]*)\}|(?P<default>\w+)) from \"(?P<path>[^\"]+)\";"
)
_EXPORTS = re.compile(r"export \{(?P<names>[\w\s,]*)\};")
_EXPORT = re.compile(
    r"export (?P<default>default )?"
    r"(?=(?:async function|function\*?|class|const) (?P<name>\w+))"
)
# A script element ends at the first of these, wherever it stands; and a line feed alone keeps the
# bytes that a browser hashes for the policy the bytes of the file.
_FORBIDDEN = re.compile(r"</script|<!--|\bimport\s*\(|\bimport\.meta\b|\r", re.IGNORECASE)


def build_offline(folder: Path = FOLDER) -> bytes:
    """Return the page, with a policy that lets only its own script and style run.

    Raises:
        ValueError: a module has a form of `import` or `export` that is not known here.
    """
    script = join_modules(folder, ENTRY)
    style, page = _read(folder / STYLE), _read(folder / SHELL)
    for mark, text in {
        "{script hash}": _hash(script),
        "{style hash}": _hash(style),
        "{style}": style,
        "{script}": script,
    }.items():
        if page.count(mark) != 1:
            raise ValueError(f"{SHELL}: expected {mark} once, got it {page.count(mark)} times")
        page = page.replace(mark, text)
    return page.encode()


def join_modules(folder: Path, entry: str) -> str:
    """Return `entry` and all modules it imports as one script without imports."""
    modules: dict[str, str] = {}
    _add_module(folder, entry, modules)
    return "\n".join(['"use strict";', "const modules = {};", *modules.values(), ""])


def _add_module(
    folder: Path, path: str, modules: dict[str, str], importers: tuple[str, ...] = ()
) -> None:
    """Add `path` to `modules`, behind whatever it imports."""
    if path in modules:
        return
    if path in importers:
        raise ValueError(f"{path}: it imports itself, by way of {', '.join(importers)}")
    text = _read(folder / path)
    if (found := _FORBIDDEN.search(text)) is not None:
        raise ValueError(f"{path}: {found[0]!r} cannot stand in the joined script")
    body, imported, exported = _translate(path, text)
    for other in imported:
        _add_module(folder, other, modules, (*importers, path))
    modules[path] = (
        f"{_read_licence(folder, path)}"
        f'modules["{path}"] = (() => {{\n{body}\nreturn {{ {", ".join(exported)} }};\n}})();\n'
    )


def _translate(path: str, text: str) -> tuple[str, list[str], list[str]]:
    """Return the body of a module, the paths it imports and what it exports."""
    parts, imported, exported, end = [], [], [], 0
    for start in (match.start() for match in _STATEMENT.finditer(text)):
        if start < end or text.rfind("/*", 0, start) > text.rfind("*/", 0, start):
            continue  # within the statement before it, or a comment
        replacement = ""
        if statement := _IMPORT.match(text, start):
            other = posixpath.normpath(posixpath.join(posixpath.dirname(path), statement["path"]))
            imported.append(other)
            replacement = f'const {_names_of(statement)} = modules["{other}"];'
        elif statement := _EXPORTS.match(text, start):
            exported += [name.strip() for name in statement["names"].split(",") if name.strip()]
        elif statement := _EXPORT.match(text, start):
            name = statement["name"]
            exported.append(f"default: {name}" if statement["default"] else name)
        else:
            line = text[start:].split("\n", 1)[0]
            raise ValueError(f"{path}: unknown form: {line}")
        parts += [text[end:start], replacement]
        end = statement.end()
    return "".join([*parts, text[end:]]), imported, exported


def _names_of(statement: re.Match[str]) -> str:
    """Return the left side of the assignment that stands for an import."""
    if statement["all"]:
        return statement["all"]
    if statement["default"]:
        return f"{{ default: {statement['default']} }}"
    return f"{{{statement['some'].replace(' as ', ': ')}}}"


def _read(file: Path) -> str:
    """Return a file as it is: reading it as text would hide carriage returns."""
    return file.read_bytes().decode()


def _read_licence(folder: Path, path: str) -> str:
    """Return the licence that stands beside a vendored module as a comment."""
    file = (folder / path).parent / LICENCE
    if not file.exists():
        return ""
    text = _read(file)
    if "*/" in text or _FORBIDDEN.search(text):
        raise ValueError(f"{path}: its licence cannot stand in a comment")
    return f"/* {path}\n\n{text.strip()}\n*/\n"


def _hash(text: str) -> str:
    """Return what a content security policy calls an inline script or style by."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
