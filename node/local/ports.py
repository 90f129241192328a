"""Ports of nodes that know each other's address before any of them listens."""

from __future__ import annotations

import secrets
import socket

from ledger.errors import StoreError

HOST = "127.0.0.1"
FIRST_PORT, LAST_PORT = 20_000, 32_767
"""Linux gives connections ports above these. Such a port could be gone again before its node
listens on it; one of these stays free unless somebody asks for it."""
MAX_TRIES = 10_000


def choose_ports(base_port: int, count: int) -> list[int]:
    """Return `count` free ports from `base_port` on, or any if that is 0.

    Raises:
        StoreError: one of those that were asked for is in use, or there are not so many.
    """
    if base_port:
        return [_check(base_port + i) for i in range(count)]
    chosen: list[int] = []
    for _ in range(MAX_TRIES):
        if len(chosen) == count:
            return chosen
        port = FIRST_PORT + secrets.randbelow(LAST_PORT - FIRST_PORT + 1)
        if port not in chosen and _is_free(port):
            chosen.append(port)
    raise StoreError(f"{count} ports are not free between {FIRST_PORT} and {LAST_PORT}")


def _check(port: int) -> int:
    try:
        socket.create_server((HOST, port)).close()
    except OSError as error:
        raise StoreError(
            f"cannot listen on {HOST} port {port}: {error.strerror}; choose another --base-port"
        ) from error
    return port


def _is_free(port: int) -> bool:
    try:
        _check(port)
    except StoreError:
        return False
    return True
