import json

import msgspec
import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from ledger.encoding import (
    MAX_INTEGER,
    Hex32,
    decode,
    decode_base64url,
    decode_hash,
    encode,
    encode_base64url,
)
from ledger.errors import EncodingError
from ledger.transaction import Envelope
from scripts.verify_receipt import ENVELOPE as SCRIPT_ENVELOPE
from scripts.verify_receipt import MalformedError, canonical, read_canonical
from tests.builders import build_genesis, build_receipt

INTEGERS = st.integers(-MAX_INTEGER, MAX_INTEGER)
TEXT = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(
    ["\x00\b\t\n\f\r\x1f\x7f\x80", "\u2028\u2029", "😀\U0010ffff", '"\\/', "\ufeff", "\uffff"]
)
KEYS = st.text(st.characters(min_codepoint=0, max_codepoint=127), max_size=8)
FENCED = st.recursive(
    st.booleans() | INTEGERS | TEXT,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(KEYS, inner, max_size=5),
)
ENVELOPE = build_receipt(build_genesis()).envelope


@given(FENCED)
def test_canonical_bytes_are_those_of_rfc_8785(value):
    assert encode(value) == rfc8785.dumps(value) == canonical(value)


@given(FENCED)
def test_canonical_bytes_parse_back_into_the_value(value):
    assert json.loads(encode(value)) == value == read_canonical(encode(value) + b"\n")


def test_a_struct_sorts_its_tag_like_any_other_key():
    payload = build_receipt(build_genesis()).payload
    assert encode(payload) == rfc8785.dumps(msgspec.to_builtins(payload))


@pytest.mark.parametrize("value", ["\ud800", {"a": "\udfff"}, object(), {1j: 2}])
def test_a_value_without_canonical_form_is_refused(value):
    with pytest.raises(EncodingError, match="no canonical form"):
        encode(value)


def test_every_truncation_of_an_envelope_is_refused():
    assert encode(decode(ENVELOPE, Envelope)) == ENVELOPE
    for length in range(len(ENVELOPE)):
        with pytest.raises(EncodingError):
            decode(ENVELOPE[:length], Envelope)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"v":1', b'"v":1,"v":1'),
        (b'"attempt":1', b'"attempt":1.0'),
        (b'"attempt":1', b'"attempt":1e0'),
        (b'"attempt":1', b'"attempt":01'),
        (b'"price_micros":46', b'"price_micros":-0'),
        (b'"price_micros":46', b'"price_micros":9007199254740992'),
        (b'"price_micros":46', b'"price_micros":' + b"9" * 5000),
        (b'"price_micros":46', b'"price_micros":true'),
        (b'"price_micros":46', b'"price_micros":null'),
        (b'"price_micros":46', b'"price_micros":"46"'),
        (b'"price_micros":46', b'"price_micros":[[[[46]]]]'),
        (b'"price_micros":46', b'"price_micros": 46'),
        (b'"tokens"', b'"\\u0074okens"'),
        (b'"smollm2:135m"', b'"\\ud800"'),
        (b'"smollm2:135m"', b'"\xed\xa0\x80"'),
        (b'"smollm2:135m"', b'"\xff"'),
        (b'"smollm2:135m"', b'"\xc0\x80"'),
        (b'"smollm2:135m"', b'"a\n"'),
        (b'"smollm2:135m"', b'"a\\n"'),
        (b'"client-1"', b'"client-1\\n"'),
        (b'{"payload"', b'\xef\xbb\xbf{"payload"'),
        (b'{"payload"', b' {"payload"'),
        (b'"type":"receipt",', b""),
        (b'"receipt",', b'"receipt","x":1,'),
    ],
)
def test_a_second_spelling_or_a_wrong_value_is_refused(old, new):
    assert ENVELOPE.count(old) >= 1
    changed = ENVELOPE.replace(old, new, 1)
    with pytest.raises(EncodingError):
        decode(changed, Envelope)
    with pytest.raises(MalformedError):
        SCRIPT_ENVELOPE(read_canonical(changed), "envelope")


@pytest.mark.parametrize("text", [b"[" * 100_000, b'{"payload":' * 50_000, b'[{"a":' * 50_000])
def test_deep_nesting_is_refused(text):
    with pytest.raises(EncodingError):
        decode(text, Envelope)
    with pytest.raises(MalformedError):
        read_canonical(text)


def test_a_document_over_its_bound_is_refused_before_it_is_parsed():
    with pytest.raises(EncodingError, match="expected at most 10 bytes, got 11"):
        decode(b"x" * 11, Envelope, max_bytes=10)
    assert decode(b"[]", tuple, max_bytes=2) == ()


@given(st.binary(max_size=200))
def test_hostile_bytes_raise_nothing_but_our_errors(data):
    with pytest.raises(EncodingError):
        decode(data, Envelope)
    try:
        read_canonical(data)
    except MalformedError:
        return
    assert canonical(json.loads(data)) == data.removesuffix(b"\n")


@given(st.binary(max_size=64))
def test_base64url_has_one_spelling(data):
    text = encode_base64url(data)
    assert "=" not in text
    assert decode_base64url(text, size_bytes=len(data)) == data


@pytest.mark.parametrize("text", ["AA==", "AB", "A", "AAA", "A+", "A/", "A A", "AA\n", "é", "ÀÀ"])
def test_another_spelling_of_base64url_is_refused(text):
    with pytest.raises(EncodingError):
        decode_base64url(text, size_bytes=1)


@pytest.mark.parametrize(
    "text", ["", "ab" * 31, "ab" * 33, "AB" * 32, "ab" * 32 + "\n", "ab " * 21 + "a", "é" * 64]
)
def test_only_64_lower_case_digits_are_a_hash(text):
    with pytest.raises(EncodingError):
        decode_hash(text)
    with pytest.raises(EncodingError):
        decode(json.dumps([text]).encode(), tuple[Hex32, ...])
    assert decode_hash("ab" * 32) == b"\xab" * 32
