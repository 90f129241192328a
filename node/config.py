"""Configuration of one node, gathered from flags, `AITBC_*` variables and a TOML file."""

from __future__ import annotations

import ipaddress
import json
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from api.limits import RateLimits
from ledger.errors import StoreError
from node.webhooks.guard import Reach

Mode = Literal["auto", "dev", "strict"]
Role = Literal["api", "authority", "follower"]

DEFAULT_PORT = 8001
DEFAULT_DATA = Path("data")
EMBEDDED_MODEL = "smollm2:135m"
STRICT_LIMITS = RateLimits(key=1000, address=50)
"""Of strict mode: a key stands for somebody known, who may keep a whole data centre of miners."""

_OPTIONS_OF_ROLES: Mapping[str, tuple[Role, ...]] = {
    "--follow": ("api", "follower"),
    "--database": ("api", "authority"),
    "--coordinator-key": ("api",),
}
_NEEDS: Mapping[Role, tuple[str, ...]] = {
    "api": ("--follow", "--database", "--coordinator-key"),
    "authority": (),
    "follower": ("--follow",),
}


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
    webhook_allow_private: bool = False
    """Whether webhooks may lead into private networks."""
    text_retention_days: float = 7.0
    """How long texts of ended jobs are kept; 0 is for ever."""
    audit_rate: float = 0.05
    """Share of the completed jobs whose answers another miner replays; 0 for none."""
    peers: tuple[str, ...] = ()
    """Addresses of other nodes, besides those that the authority set names."""
    follow: tuple[str, ...] = ()
    """Addresses of the nodes that a follower asks for blocks; empty for other nodes."""
    checkpoint: Path | None = None
    """A pinned checkpoint that a new follower begins at."""
    lease_ms: int = 60_000
    """How long a claimed job stays a miner's without a heartbeat."""
    heartbeat_interval_ms: int = 20_000
    """How often a miner is told to send one."""
    execution_timeout_ms: int = 600_000
    """Longest run of one attempt, and the lease of a miner without heartbeats."""
    queue_timeout_ms: int = 3_600_000
    """How long a job waits for a miner before it fails."""
    rate_limit_key: float | None = None
    """Requests per second of one API key, 0 for any number; None: as the mode has it."""
    rate_limit_address: float | None = None
    """The same of one client address, for requests without a good key."""
    max_waiting: int = 1_000
    """Long polls, event streams and completions at once."""
    public_url: str = ""
    """Where others reach this node, without a slash at its end; its path is a proxy's prefix."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses and networks whose X-Forwarded-For is believed."""
    access_log: bool | None = None
    """Whether the log has a line for each request of the API; None: in strict mode."""
    role: Role | None = None
    """What this process is; None: a follower if it follows, else an authority."""
    database: str = field(default="", repr=False)
    """URL of the PostgreSQL database that holds the market, with its password; empty: node.db."""
    coordinator_key: Path | None = None
    """The key file that a process of role api signs receipts with."""


def choose_role(settings: NodeSettings) -> Role:
    """Decide what part this process is, and check that it has what that takes.

    Raises:
        StoreError: an option is missing, or is another role's.
    """
    role = settings.role or ("follower" if settings.follow else "authority")
    given = {
        "--follow": bool(settings.follow),
        "--database": bool(settings.database),
        "--coordinator-key": settings.coordinator_key is not None,
    }
    for name, roles in _OPTIONS_OF_ROLES.items():
        if given[name] and role not in roles:
            raise StoreError(f"{name} is not for --role {role}")
    for name in _NEEDS[role]:
        if not given[name]:
            raise StoreError(f"--role {role} needs {name}; see docs/scaling.md")
    return role


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


def choose_rate_limits(settings: NodeSettings) -> RateLimits:
    """Decide how many requests per second are taken."""
    usual = STRICT_LIMITS if choose_mode(settings) == "strict" else RateLimits()
    key, address = settings.rate_limit_key, settings.rate_limit_address
    return RateLimits(
        key=usual.key if key is None else key,
        address=usual.address if address is None else address,
    )


def choose_access_log(settings: NodeSettings) -> bool:
    """Decide whether the log has a line for each request.

    In strict mode others use the node, and its operator is asked what became of their requests; in
    dev mode the miner's polls would bury what the log has to say.
    """
    return choose_mode(settings) == "strict" if settings.access_log is None else settings.access_log


def check_market_times(settings: NodeSettings) -> None:
    """Hold the times of the market against each other.

    Raises:
        StoreError: a miner that does as it is told would lose its job.
    """
    if 2 * settings.heartbeat_interval_ms > settings.lease_ms:
        raise StoreError(
            f"--heartbeat-interval-ms {settings.heartbeat_interval_ms}: expected at most half of "
            f"--lease-ms {settings.lease_ms}, so that one lost heartbeat does not cost the job"
        )
    if settings.lease_ms > settings.execution_timeout_ms:
        raise StoreError(
            f"--lease-ms {settings.lease_ms}: expected at most --execution-timeout-ms "
            f"{settings.execution_timeout_ms}, after which the attempt ends anyway"
        )


_PUBLIC_URL = re.compile(r"https?://[A-Za-z0-9.\[\]:-]+((?:/[A-Za-z0-9._~-]+)*)/?")


def parse_public_url(text: str) -> str:
    """Return an address without a slash at its end; empty for none.

    Raises:
        StoreError: this is no address, or has more than a path.
    """
    if text and not _PUBLIC_URL.fullmatch(text):
        raise StoreError(
            f"--public-url {text}: expected http(s)://host[:port][/path], such as "
            "https://node.example/aitbc"
        )
    return text.removesuffix("/")


def read_prefix(public_url: str) -> str:
    """Return the path of a public address: what a proxy serves the node under, mostly nothing."""
    match = _PUBLIC_URL.fullmatch(public_url)
    return match[1] if match else ""


def parse_trusted_proxies(texts: Sequence[str]) -> list[str]:
    """Return the networks of proxies, each also as a socket for IPv6 shows IPv4.

    Raises:
        StoreError: one is no address and no network, or takes in everybody.
    """
    trusted = []
    for text in texts:
        try:
            network = ipaddress.ip_network(text)
        except ValueError as error:
            raise StoreError(
                f"--trusted-proxy {text}: expected an address or a network, such as 10.0.0.2 or "
                f"10.0.0.0/24: {error}"
            ) from error
        if network.prefixlen == 0:
            raise StoreError(
                f"--trusted-proxy {text}: takes in everybody, so anybody could name any address"
            )
        trusted.append(str(network))
        if network.version == 4:
            trusted.append(f"::ffff:{network.network_address}/{96 + network.prefixlen}")
    return trusted


def choose_reach(settings: NodeSettings) -> Reach:
    """Decide where webhooks may lead.

    In dev mode whoever can ask is on this machine, and can reach it without the node's help.
    """
    if settings.webhook_allow_private:
        return "private"
    return "loopback" if choose_mode(settings) == "dev" else "public"


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
