"""API keys: `aik_<prefix>_<secret>`, shown once.

Only the prefix and a keyed digest of the secret are stored; the digest's key is the network's
genesis hash, so a key of one network opens nothing on another.
"""

from __future__ import annotations

import base64
import contextlib
import hmac
import secrets
from collections.abc import Callable, Iterator

import msgspec
from blake3 import blake3

from ledger.block import hash_genesis
from ledger.errors import StoreError
from ledger.jobs import Caller, KeyRole
from ledger.quotas import KeyLimits
from ledger.store.marketstore import MarketStore
from ledger.store.registry import ApiKey, insert_key
from ledger.store.sessions import Connection
from ledger.transaction import Identifier
from node.datadir import DataDirectory
from node.opening import open_own_market

_PREFIX_BYTES = 5
_SECRET_BYTES = 32
_MAX_KEY_LENGTH = 100
NO_LIMITS = KeyLimits()

FindKey = Callable[[str], ApiKey | None]
"""Returns the key with a prefix, revoked or not."""


@contextlib.contextmanager
def open_keys(data: DataDirectory, database: str = "") -> Iterator[MarketStore]:
    """Open where a node keeps its keys, whether it runs or not: in its database, or its node.db."""
    store = open_own_market(data, database, hash_genesis(data.load_genesis()))
    with contextlib.closing(store):
        yield store


def issue_key(
    data: DataDirectory,
    role: KeyRole,
    *,
    client: str | None = None,
    now_ms: int,
    limits: KeyLimits = NO_LIMITS,
    database: str = "",
) -> str:
    """Make a key of a data directory, as `create_key` does. A running node takes it at once."""
    genesis_hash = hash_genesis(data.load_genesis())
    with open_keys(data, database) as store:
        return store.write(
            lambda connection: create_key(
                connection,
                genesis_hash=genesis_hash,
                role=role,
                client=client,
                now_ms=now_ms,
                limits=limits,
            )
        ).result()


def create_key(
    connection: Connection,
    *,
    genesis_hash: bytes,
    role: KeyRole,
    client: str | None,
    now_ms: int,
    limits: KeyLimits = NO_LIMITS,
) -> str:
    """Make and store a key; returns it whole, for the only time.

    `client` names the holder on receipts; without one it is the key's prefix.

    Raises:
        StoreError: `client` is a name that no receipt can carry.
    """
    try:
        msgspec.convert(client, Identifier | None)
    except msgspec.ValidationError as error:
        raise StoreError(
            f"client name {client!r}: expected a letter or digit, then letters, digits and "
            "_ . : @ -, at most 128"
        ) from error
    prefix = base64.b32encode(secrets.token_bytes(_PREFIX_BYTES)).decode().lower()
    secret = secrets.token_urlsafe(_SECRET_BYTES)
    key = ApiKey(
        prefix=prefix,
        digest=_digest(genesis_hash, secret),
        role=role,
        client=client or f"{role}-{prefix}",
        created_at_ms=now_ms,
        revoked_at_ms=None,
        limits=limits,
    )
    insert_key(connection, key)
    return f"aik_{prefix}_{secret}"


def authenticate(find: FindKey, key: str, *, genesis_hash: bytes) -> Caller | None:
    """Return whose key this is, or None. Takes as long for a wrong secret as for a right one."""
    parts = key.split("_", 2)
    if len(parts) != 3 or parts[0] != "aik" or len(key) > _MAX_KEY_LENGTH or not key.isascii():
        return None
    stored = find(parts[1])
    given = _digest(genesis_hash, parts[2])
    if stored is None or not hmac.compare_digest(stored.digest, given):
        return None
    if stored.revoked_at_ms is not None:
        return None
    return Caller(key=stored.prefix, client=stored.client, role=stored.role)


def _digest(genesis_hash: bytes, secret: str) -> bytes:
    return blake3(secret.encode(), key=genesis_hash).digest()
