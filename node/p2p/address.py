"""Where nodes reach each other: their addresses, and the paths below one."""

from __future__ import annotations

from urllib.parse import urlsplit

from ledger.errors import LedgerError

STATUS_PATH = "/p2p/status"
MESSAGES_PATH = "/p2p/messages"
TRANSACTIONS_PATH = "/p2p/transactions"
BLOCKS_PATH = "/p2p/blocks"
MAX_URL_LENGTH = 256


class PeerError(LedgerError):
    """The other node is at fault: it answers wrongly, slowly or not at all."""


def parse_url(text: str) -> str:
    """Return the address of a node without its last slash.

    Raises:
        PeerError: not `http://host` or `https://host`, with a port and a path perhaps.
    """
    try:
        parts = urlsplit(text)
        plain = parts.scheme in {"http", "https"} and bool(parts.hostname)
        plain = plain and (parts.port is None or parts.port > 0)
    except ValueError:
        plain = False
    # What stands before an @ is a password, which would end up in logs and on pages.
    if "@" in text:
        raise PeerError("address of a node: expected http(s)://host:port without user or password")
    if not plain or parts.query or parts.fragment or not text.isascii():
        raise PeerError(f"address of a node: expected http(s)://host:port, got {text[:80]!r}")
    if len(text) > MAX_URL_LENGTH or not text.isprintable():
        raise PeerError(f"address of a node: expected at most {MAX_URL_LENGTH} characters")
    return text.rstrip("/")
