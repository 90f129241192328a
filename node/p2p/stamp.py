r"""Stamps: a node's signature over one request to another node.

    aitbc/p2p/v1\n<genesis hex>\n<recipient's account>\n<path>\n<BLAKE3 of the body, hex>\n

Votes and transactions carry signatures of their own, so a stamp adds nothing to their truth. It
keeps strangers out: it stands in three headers and is checked before the body is read, so only
members can make a node hold and judge a body. A stamp that is sent again brings the same body
again, which changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

from blake3 import blake3

from ledger.encoding import decode_hash
from ledger.errors import InvalidKeyError, InvalidSignatureError, LedgerError
from ledger.keys import KeyPair, verify_signature

ACCOUNT_HEADER = "x-aitbc-account"
DIGEST_HEADER = "x-aitbc-digest"
SIGNATURE_HEADER = "x-aitbc-signature"


class UnknownPeerError(LedgerError):
    """A request between nodes that no node with a say in this network has stamped."""


def build_stamp(
    key: KeyPair, *, genesis_hash: bytes, recipient: str, path: str, body: bytes
) -> dict[str, str]:
    """Return the headers that say who sends `body` to `path` of `recipient`."""
    digest = blake3(body).hexdigest()
    message = _stamp_message(genesis_hash, recipient, path, digest)
    return {
        ACCOUNT_HEADER: key.account,
        DIGEST_HEADER: digest,
        SIGNATURE_HEADER: key.sign(message),
    }


def verify_stamp(
    headers: Mapping[str, str], *, genesis_hash: bytes, recipient: str, path: str
) -> tuple[str, bytes]:
    """Return the account that stamped the request, and the digest that its body must have.

    Raises:
        UnknownPeerError: a header is missing or malformed, or the signature is for something else.
    """
    try:
        account, digest = headers[ACCOUNT_HEADER], headers[DIGEST_HEADER]
        message = _stamp_message(genesis_hash, recipient, path, digest)
        verify_signature(account, message, headers[SIGNATURE_HEADER])
        return account, decode_hash(digest)
    except KeyError as error:
        raise UnknownPeerError(f"stamp: the header {error} is missing") from error
    except (InvalidKeyError, InvalidSignatureError) as error:
        raise UnknownPeerError(f"stamp for {recipient} on this network: {error}") from error
    except LedgerError as error:
        raise UnknownPeerError(f"stamp: {DIGEST_HEADER}: {error}") from error


def is_body(body: bytes, digest: bytes) -> bool:
    """Tell whether `body` is the one that was stamped."""
    return blake3(body).digest() == digest


def _stamp_message(genesis_hash: bytes, recipient: str, path: str, digest: str) -> bytes:
    return f"aitbc/p2p/v1\n{genesis_hash.hex()}\n{recipient}\n{path}\n{digest}\n".encode()
