import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl.signing import SigningKey

from ledger import keys
from ledger.errors import InvalidKeyError, InvalidSignatureError
from ledger.keys import (
    KeyPair,
    decode_account,
    encode_account,
    forget_signatures,
    is_account,
    self_test,
    verify_signature,
)
from scripts import verify_receipt as script
from tests import edwards
from tests.builders import build_key

VECTORS = Path(__file__).parent / "vectors"
ACCOUNTS = json.loads((VECTORS / "accounts.json").read_text(encoding="utf-8"))
SIGNATURES = json.loads((VECTORS / "signatures.json").read_text(encoding="utf-8"))
ACCOUNT = build_key("miner").account
PRINTABLE = [chr(code) for code in range(0x20, 0x7F)]


@given(st.binary(min_size=32, max_size=32))
def test_an_account_carries_its_key(public_key):
    account = encode_account(public_key)
    assert len(account) == 62
    assert decode_account(account) == public_key == script.public_key(account)


@pytest.mark.parametrize("case", ACCOUNTS["valid"], ids=lambda case: case["account"][:12])
def test_valid_accounts(case):
    assert decode_account(case["account"]).hex() == case["public_key"]
    assert script.public_key(case["account"]).hex() == case["public_key"]


@pytest.mark.parametrize("case", ACCOUNTS["invalid"], ids=lambda case: case["why"])
def test_invalid_accounts(case):
    with pytest.raises(InvalidKeyError):
        decode_account(case["account"])
    assert not is_account(case["account"])
    assert script.public_key(case["account"]) is None


def test_every_substituted_character_is_noticed():
    for position, original in enumerate(ACCOUNT):
        for other in PRINTABLE:
            changed = ACCOUNT[:position] + other + ACCOUNT[position + 1 :]
            assert is_account(changed) is (other == original)


@given(st.text(max_size=80))
def test_hostile_text_is_no_account(text):
    assert not is_account(text)
    assert script.public_key(text) is None


@pytest.mark.parametrize("size", [0, 31, 33])
def test_keys_of_another_size_are_refused(size):
    with pytest.raises(InvalidKeyError):
        encode_account(bytes(size))
    with pytest.raises(InvalidKeyError):
        KeyPair.from_seed(bytes(size))


def test_a_key_pair_never_shows_its_seed():
    seed = bytes(range(32))
    shown = repr(KeyPair.from_seed(seed))
    assert seed.hex() not in shown
    assert repr(seed) not in shown
    assert "SigningKey" not in shown


@given(st.binary(max_size=100), st.integers(0, 511))
def test_a_signature_verifies_until_one_bit_of_it_changes(message, bit):
    key = build_key("miner")
    signature = key.sign(message)
    verify_signature(key.account, message, signature)
    changed = bytearray(keys.decode_base64url(signature, size_bytes=64))
    changed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(InvalidSignatureError):
        verify_signature(key.account, message, keys.encode_base64url(bytes(changed)))
    with pytest.raises(InvalidSignatureError):
        verify_signature(key.account, message + b"x", signature)


def is_good(account, message, signature) -> bool:
    try:
        verify_signature(account, message, signature)
    except (InvalidKeyError, InvalidSignatureError):
        return False
    return True


@given(st.lists(st.tuples(*[st.integers(0, 1)] * 5), max_size=20), st.binary(max_size=50))
def test_remembered_signatures_change_no_verdict(asked, text):
    pairs = [build_key("miner"), build_key("other")]
    messages = [text, text + b"\n"]
    for who, what, signer, signed, spoilt in asked:
        signature = pairs[signer].sign(messages[signed])
        if spoilt:
            signature = ("B" if signature[0] == "A" else "A") + signature[1:]
        expected = (who, what, 0) == (signer, signed, spoilt)
        assert is_good(pairs[who].account, messages[what], signature) is expected


@pytest.mark.parametrize("size", [0, 2048, 2049, 5000])
def test_only_good_signatures_of_short_messages_are_kept(size):
    key, message = build_key(f"kept {size}"), bytes(size)
    signature = key.sign(message)
    forget_signatures()
    assert not is_good(key.account, message, "A" * 86)
    assert len(keys._good) == 0
    assert is_good(key.account, message, signature)
    assert is_good(key.account, message, signature)
    assert not is_good(key.account, message + b"x", signature)
    assert len(keys._good) == (size <= 2048)


@pytest.mark.parametrize("signature", ["", "A" * 85, "A" * 87, "=" * 86, "é" * 86, "A" * 85 + "B"])
def test_a_malformed_signature_is_refused(signature):
    with pytest.raises(InvalidSignatureError):
        verify_signature(ACCOUNT, b"", signature)


def test_a_signature_by_no_account_is_refused():
    with pytest.raises(InvalidKeyError):
        verify_signature("nobody", b"", "A" * 86)
    with pytest.raises(script.ClaimError, match="'nobody' is not an account"):
        script.check_signature("nobody", b"", "A" * 86)


@pytest.mark.parametrize("case", SIGNATURES["cases"], ids=lambda case: case["why"])
def test_hostile_signatures(case):
    message = SIGNATURES["message"].encode()
    for verify, refusal in (
        (verify_signature, InvalidSignatureError),
        (script.check_signature, script.ClaimError),
    ):
        if case["accepted"]:
            verify(case["account"], message, case["signature"])
        else:
            with pytest.raises(refusal):
                verify(case["account"], message, case["signature"])


def test_the_forging_arithmetic_is_that_of_ed25519():
    seed, message = bytes(range(32)), b"message"
    genuine = SigningKey(seed)
    assert edwards.multiply(edwards.L, edwards.BASE) == edwards.IDENTITY
    assert edwards.multiply(8, edwards.TORSION) == edwards.IDENTITY
    assert len(set(edwards.SMALL_ORDER)) == 8
    digest = bytearray(edwards.sha512(seed).digest())
    digest[0] &= 248
    digest[31] = digest[31] & 127 | 64
    nonce = edwards.sha512(digest[32:] + message).digest()
    public_key, signature, _ = edwards.forge(
        message,
        secret=int.from_bytes(digest[:32], "little"),
        nonce=int.from_bytes(nonce, "little") % edwards.L,
        key_torsion=edwards.IDENTITY,
        nonce_torsion=edwards.IDENTITY,
    )
    assert public_key == bytes(genuine.verify_key)
    assert signature == genuine.sign(message).signature


def test_this_libsodium_passes_the_self_test():
    self_test()


@pytest.mark.parametrize("vector", range(len(keys._SELF_TEST)))
def test_the_self_test_notices_another_verdict(monkeypatch, vector):
    wrong = list(keys._SELF_TEST)
    public_key, signature, accepted = wrong[vector]
    wrong[vector] = (public_key, signature, not accepted)
    monkeypatch.setattr(keys, "_SELF_TEST", tuple(wrong))
    with pytest.raises(InvalidKeyError, match="libsodium self-test"):
        self_test()
