"""Accounts and signatures.

An account is an Ed25519 public key, written once and everywhere as bech32m (BIP 350) with prefix
`ait`. A signature's `key_id` is that same string: a signature names its own key, and the checksum
catches a typing error.

Signatures are Ed25519 exactly as libsodium accepts them: S < L, canonical A, small-order A and R
refused, cofactorless. Every node must accept the same set or the chain splits, so `self_test`
pins it at start-up.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache

import bech32
from nacl.exceptions import BadSignatureError, CryptoError
from nacl.signing import SigningKey, VerifyKey

from ledger.encoding import decode_base64url, encode_base64url
from ledger.errors import EncodingError, InvalidKeyError, InvalidSignatureError

ACCOUNT_PREFIX = "ait"
PUBLIC_KEY_BYTES = 32
SEED_BYTES = 32
SIGNATURE_BYTES = 64

_BECH32M_CONSTANT = 0x2BC830A3  # BIP 350
_CHECKSUM_SYMBOLS = 6
_ACCOUNT_LENGTH = len(ACCOUNT_PREFIX) + 1 + 52 + _CHECKSUM_SYMBOLS
_CACHED_KEYS = 4096
_CACHED_SIGNATURES = 8192
"""Good ones that are not verified again, of 4000 receipts. With their messages about 10 MB."""
_MAX_REMEMBERED_BYTES = 2048
"""Longer messages, which are rare, are not kept; those of receipts have about a kilobyte."""


def encode_account(public_key: bytes) -> str:
    """Return the `ait1…` account (62 characters) of a 32-byte public key."""
    if len(public_key) != PUBLIC_KEY_BYTES:
        raise InvalidKeyError(f"public key: expected 32 bytes, got {len(public_key)}")
    symbols = _convert_bits(public_key, 8, 5, pad=True)
    expanded = bech32.bech32_hrp_expand(ACCOUNT_PREFIX)
    checksum = bech32.bech32_polymod([*expanded, *symbols, *[0] * _CHECKSUM_SYMBOLS])
    checksum ^= _BECH32M_CONSTANT
    symbols += [(checksum >> 5 * (5 - i)) & 31 for i in range(_CHECKSUM_SYMBOLS)]
    return ACCOUNT_PREFIX + "1" + "".join(bech32.CHARSET[symbol] for symbol in symbols)


@lru_cache(maxsize=_CACHED_KEYS)
def decode_account(account: str) -> bytes:
    """Return the 32-byte public key of an `ait1…` account.

    Only the lower-case spelling is one: an account must compare equal as text.

    Raises:
        InvalidKeyError: wrong prefix, length, alphabet, checksum or padding.
    """
    head, symbols = ACCOUNT_PREFIX + "1", account[len(ACCOUNT_PREFIX) + 1 :]
    if len(account) != _ACCOUNT_LENGTH or not account.startswith(head):
        raise InvalidKeyError("account: expected 62 characters that start with ait1")
    if not set(symbols) <= set(bech32.CHARSET):
        raise InvalidKeyError("account: holds a character outside the bech32 alphabet")
    values = [bech32.CHARSET.index(symbol) for symbol in symbols]
    expanded = bech32.bech32_hrp_expand(ACCOUNT_PREFIX)
    if bech32.bech32_polymod([*expanded, *values]) != _BECH32M_CONSTANT:
        raise InvalidKeyError("account: the checksum does not fit, look for a typing error")
    return bytes(_convert_bits(values[:-_CHECKSUM_SYMBOLS], 5, 8, pad=False))


def is_account(text: str) -> bool:
    """Tell whether `text` is a well-formed account."""
    try:
        decode_account(text)
    except InvalidKeyError:
        return False
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyPair:
    """An Ed25519 key that can sign. Its representation never shows the seed."""

    account: str
    _signing_key: SigningKey

    @classmethod
    def from_seed(cls, seed: bytes) -> KeyPair:
        """Build the key pair of a 32-byte seed (RFC 8032, section 5.1.5)."""
        if len(seed) != SEED_BYTES:
            raise InvalidKeyError(f"key seed: expected 32 bytes, got {len(seed)}")
        key = SigningKey(seed)
        return cls(account=encode_account(bytes(key.verify_key)), _signing_key=key)

    def sign(self, message: bytes) -> str:
        """Return the signature of `message` as unpadded base64url.

        It is good, so this process need not verify it when it meets it again.
        """
        signature = encode_base64url(self._signing_key.sign(message).signature)
        _good.add(self.account, message, signature)
        return signature

    def __repr__(self) -> str:
        return f"KeyPair(account={self.account!r})"


def verify_signature(account: str, message: bytes, signature: str) -> None:
    """Check a base64url signature by `account` over `message`.

    Raises:
        InvalidKeyError: `account` is not an account.
        InvalidSignatureError: the signature is malformed or does not verify.
    """
    if not _good.holds(account, message, signature):
        _verify(account, message, signature)
        _good.add(account, message, signature)


def _verify(account: str, message: bytes, signature: str) -> None:
    key = _verify_key(account)
    try:
        key.verify(message, decode_base64url(signature, size_bytes=SIGNATURE_BYTES))
    except EncodingError as error:
        raise InvalidSignatureError(f"signature of {account}: {error}") from error
    except (BadSignatureError, CryptoError) as error:
        raise InvalidSignatureError(f"signature of {account} does not verify") from error


class _Good:
    """Signatures that are known to be good, the newest ones. Any thread may ask and add.

    What is good stays good. A signature is met up to four times: when its receipt is issued or
    handed over, in a block that is built or proposed, and in one that is fetched.
    """

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, bytes, str], None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def holds(self, account: str, message: bytes, signature: str) -> bool:
        """Tell whether just this was added lately."""
        return (account, message, signature) in self._known

    def add(self, account: str, message: bytes, signature: str) -> None:
        """Remember it, unless its message is long."""
        if len(message) <= _MAX_REMEMBERED_BYTES:
            self._known[account, message, signature] = None
            if len(self._known) > _CACHED_SIGNATURES:
                self._known.popitem(last=False)

    def clear(self) -> None:
        """Forget all."""
        self._known.clear()


_good = _Good()


def forget_signatures() -> None:
    """Verify every signature anew from here on: for whoever measures how long that takes."""
    _good.clear()


@lru_cache(maxsize=_CACHED_KEYS)
def _verify_key(account: str) -> VerifyKey:
    return VerifyKey(decode_account(account))


def _convert_bits(values: bytes | list[int], source: int, target: int, *, pad: bool) -> list[int]:
    converted = bech32.convertbits(values, source, target, pad)
    if converted is None:
        raise InvalidKeyError("account: the padding bits must be zero")
    return list(converted)


# Public keys and signatures over the empty message whose verdict pins libsodium's rules.
# The first is RFC 8032 test 1; the second is the same with L added to S; the third and fourth have
# a small-order public key (the identity) and a small-order R, which satisfy the bare equation.
_SELF_TEST = (
    (
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
        "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
        True,
    ),
    (
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
        "4c8c7872aa064e049dbb3013fbf29380d25bf5f0595bbe24655141438e7a101b",
        False,
    ),
    (
        "0100000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000000"
        "0000000000000000000000000000000000000000000000000000000000000000",
        False,
    ),
    (
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "0100000000000000000000000000000000000000000000000000000000000000"
        "0000000000000000000000000000000000000000000000000000000000000000",
        False,
    ),
)


def self_test() -> None:
    """Check that this libsodium accepts and refuses the pinned vectors.

    Raises:
        InvalidKeyError: it does not; running on would split the chain.
    """
    for public_key, signature, expected in _SELF_TEST:
        account = encode_account(bytes.fromhex(public_key))
        try:
            verify_signature(account, b"", encode_base64url(bytes.fromhex(signature)))
            accepted = True
        except InvalidSignatureError:
            accepted = False
        if accepted is not expected:
            raise InvalidKeyError(
                f"libsodium self-test: expected accepted={expected} for {signature[:16]}…; "
                "install the PyNaCl release named in requirements/base.txt"
            )
