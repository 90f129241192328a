"""Configuration of one node, gathered from flags, `AITBC_*` variables and a TOML file."""

from __future__ import annotations

import ipaddress
import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ledger.errors import StoreError

Mode = Literal["auto", "dev", "strict"]

DEFAULT_PORT = 8001
DEFAULT_DATA = Path("data")
EMBEDDED_MODEL = "smollm2:135m"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSettings:
    """What `aitbc run` needs to know."""

    data: Path
    host: str
    port: int
    """0 lets the system choose; the address is printed."""
    mode: Mode
    """dev: what the API reference leaves open is open. auto: dev on loopback, strict elsewhere."""
    default_model: str
    price_token_micros: int
    price_gpu_second_micros: int
    batch_delay_ms: int
    """How long the first transaction of a block waits for company."""
    max_pending_per_key: int
    peers: tuple[str, ...] = ()
    """Addresses of other nodes, besides those that the authority set names."""
    follow: tuple[str, ...] = ()
    """Addresses of the nodes that a follower asks for blocks; empty for other nodes."""
    checkpoint: Path | None = None
    """A pinned checkpoint that a new follower begins at."""


def choose_mode(settings: NodeSettings) -> Literal["dev", "strict"]:
    """Decide how open the API is.

    Raises:
        StoreError: dev mode was asked for on an address that others can reach.
    """
    loopback = _is_loopback(settings.host)
    if settings.mode == "auto":
        return "dev" if loopback else "strict"
    if settings.mode == "dev" and not loopback:
        raise StoreError(
            f"dev mode leaves prompts and miner calls open, so it is refused on {settings.host}; "
            "use --mode strict, or --host 127.0.0.1"
        )
    return settings.mode


def read_config_file(path: Path) -> dict[str, Any]:
    """Read a flat TOML file whose keys are option names with underscores.

    Raises:
        StoreError: missing or not TOML.
    """
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise StoreError(f"{path}: is not TOML: {error}") from error


def format_options(options: Mapping[str, str | int | list[str]]) -> bytes:
    """Return the bytes of a file that `read_config_file` reads."""
    # Strings, integers and lists of them are spelled in TOML as in JSON.
    return b"".join(
        f"{name} = {json.dumps(value, ensure_ascii=False)}\n".encode()
        for name, value in options.items()
    )


def watch_parent() -> None:
    """Block until standard input closes, then end this process as SIGTERM would."""
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), 15)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
