"""BLAKE3-256 identities, each under its own domain.

Every object of the chain is named by BLAKE3(domain ‖ bytes), where the domain is an ASCII line
that ends in a newline; so no object of one kind can be passed off as another. SHA-256 lives in
`merkle.py` and in the key ids of `note.py` alone, because transparency-log tools fix it there.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterable
from functools import lru_cache

from blake3 import blake3

HASH_BYTES = 32
SALT_BYTES = 32

GENESIS_DOMAIN = b"aitbc/genesis/v1\n"
TRANSACTION_DOMAIN = b"aitbc/tx/v1\n"
BLOCK_DOMAIN = b"aitbc/block/v1\n"
AUTHORITY_SET_DOMAIN = b"aitbc/set/v1\n"
TEXT_DOMAIN = b"aitbc/text/v1\n"
TOKENS_DOMAIN = b"aitbc/tokens/v1\n"
RECEIPT_ID_DOMAIN = b"aitbc/receipt-id/v1\n"

_RECEIPT_ID_BYTES = 16
_TOKEN_ID_BYTES = 4
_CACHED_IDS = 4096
"""The id of a receipt is asked for about five times until it is final."""


def hash_object(domain: bytes, data: bytes) -> bytes:
    """Return the 32-byte identity of `data` as an object of kind `domain`."""
    return blake3(domain + data).digest()


def hash_text(salt: bytes, text: str) -> bytes:
    """Digest of a prompt or result under its owner's 32-byte salt.

    Without the salt a short prompt could be guessed from its digest on the public chain.
    """
    return blake3(TEXT_DOMAIN + salt + text.encode()).digest()


def encode_tokens(token_ids: Iterable[int]) -> bytes:
    """Return token ids (unsigned 32-bit) as their digest covers them: little-endian.

    Raises:
        OverflowError: one of them is not unsigned, or longer.
    """
    ids = tuple(token_ids)
    try:
        return struct.pack(f"<{len(ids)}I", *ids)
    except struct.error as error:
        raise OverflowError(f"token ids: {error}") from None


def decode_tokens(data: bytes) -> tuple[int, ...]:
    """Return the token ids of `encode_tokens`."""
    return struct.unpack(f"<{len(data) // _TOKEN_ID_BYTES}I", data)


def hash_tokens(salt: bytes, token_ids: Iterable[int]) -> bytes:
    """Digest of output token ids (unsigned 32-bit little-endian) under the result's salt."""
    return blake3(TOKENS_DOMAIN + salt + encode_tokens(token_ids)).digest()


@lru_cache(maxsize=_CACHED_IDS)
def build_receipt_id(*, genesis: str, coordinator: str, job_id: str) -> str:
    """Return `rcp_` + 26 lower-case base32 characters, fixed before anybody signs.

    It names the coordinator, so no other coordinator can occupy a job's receipt id first.
    """
    data = RECEIPT_ID_DOMAIN + f"{genesis}\n{coordinator}\n{job_id}\n".encode()
    digest = blake3(data).digest(length=_RECEIPT_ID_BYTES)
    return "rcp_" + base64.b32encode(digest).decode().rstrip("=").lower()
