import json
from pathlib import Path

import msgspec
import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from ledger.encoding import MAX_INTEGER, encode
from ledger.errors import InvalidTransactionError
from ledger.hashing import build_receipt_id
from ledger.transaction import (
    MAX_ENVELOPE_BYTES,
    Signature,
    _parse,
    build_signed_message,
    build_transaction,
    hash_payload,
    parse_transaction,
    sign_payload,
    sign_transaction,
)
from tests.builders import (
    build_audit,
    build_chain,
    build_change_payload,
    build_evidence,
    build_genesis,
    build_key,
    build_payload,
    build_receipt,
    sign_change,
    sign_receipt,
)
from tests.strategies import draw_changed_byte

VECTORS = json.loads(
    (Path(__file__).parent / "vectors" / "transactions.json").read_text(encoding="utf-8")
)
GENESIS = build_genesis()
RECEIPT = build_receipt(GENESIS)


def change_envelope(change):
    """Envelope bytes after `change` to the parsed document."""
    document = json.loads(RECEIPT.envelope)
    change(document)
    return encode(document)


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: case["why"])
def test_golden_transactions(case):
    transaction = parse_transaction(case["envelope"].encode())
    assert transaction.envelope == case["envelope"].encode()
    assert transaction.id.hex() == case["transaction_id"]
    assert transaction.signed_message == case["signed_message"].encode()
    assert build_signed_message(transaction.payload) == case["signed_message"].encode()
    assert blake3(case["signed_message"].encode()).hexdigest() == case["transaction_id"]


def test_a_built_transaction_parses_into_itself():
    assert parse_transaction(RECEIPT.envelope) == RECEIPT


def test_the_id_leaves_the_signatures_out():
    bare = build_transaction(RECEIPT.payload, [])
    assert bare.id == RECEIPT.id == hash_payload(RECEIPT.payload)
    assert bare.envelope != RECEIPT.envelope


@pytest.mark.parametrize("model", ["}", ',"signatures":[', '"\\', "\u00fc\u2028\U0001f600"])
def test_the_signed_message_is_a_piece_of_the_envelope_whatever_is_in_it(model):
    payload = msgspec.structs.replace(RECEIPT.payload, model=model)
    for signatures in ([], sign_receipt(payload)):
        transaction = build_transaction(payload, signatures)
        assert transaction.signed_message == build_signed_message(payload)
        assert transaction.id == hash_payload(payload)


@given(
    model=st.text(min_size=1, max_size=200),
    client=st.text(min_size=1, max_size=100),
    started_at_ms=st.integers(0, MAX_INTEGER),
    provided=st.booleans(),
)
def test_what_is_signed_here_is_what_parsing_it_gives(model, client, started_at_ms, provided):
    """Whatever values a receipt can have: those that conversion lets in, none refuses later."""
    fields = msgspec.structs.asdict(build_payload(GENESIS)) | {
        "v": 1,
        "type": "receipt",
        "model": model,
        "client": client,
        "started_at_ms": started_at_ms,
    }
    try:
        payload = msgspec.convert(fields, type(RECEIPT.payload))
    except msgspec.ValidationError:
        return
    others = [sign_payload(payload, build_key("miner"), "provider")] if provided else []
    key = build_key("authority 0")
    signed = sign_transaction(payload, key, "coordinator", others)
    assert signed == _parse(signed.envelope)
    assert signed == build_transaction(
        payload, [*others, sign_payload(payload, key, "coordinator")]
    )
    if len(signed.envelope) <= 2048:
        assert parse_transaction(signed.envelope) is signed, "nor is it parsed when it is read"


def test_nothing_is_signed_that_would_be_refused(monkeypatch):
    payload, key = RECEIPT.payload, build_key("authority 0")
    twice = sign_payload(payload, key, "coordinator")
    with pytest.raises(InvalidTransactionError, match="distinct"):
        sign_transaction(payload, key, "coordinator", [twice])
    monkeypatch.setattr("ledger.transaction.MAX_ENVELOPE_BYTES", len(RECEIPT.envelope) - 1)
    with pytest.raises(InvalidTransactionError, match="at most"):
        sign_transaction(payload, key, "coordinator", RECEIPT.signatures[1:])


def test_signatures_are_sorted_whatever_their_order():
    signatures = sign_receipt(RECEIPT.payload)
    assert build_transaction(RECEIPT.payload, signatures[::-1]) == RECEIPT


def test_unsorted_or_repeated_signatures_are_refused():
    for order in ([1, 0], [0, 0, 1], [0, 1, 1]):
        changed = change_envelope(
            lambda d, order=order: d.update(signatures=[d["signatures"][i] for i in order])
        )
        with pytest.raises(InvalidTransactionError, match="sorted by role, key_id"):
            parse_transaction(changed)
    signatures = sign_receipt(RECEIPT.payload)
    with pytest.raises(InvalidTransactionError, match="distinct"):
        build_transaction(RECEIPT.payload, [*signatures, signatures[0]])


@pytest.mark.parametrize("kind", ["audits", "", "Receipt", "AuthoritySetPayload", None, 1])
def test_unknown_types_are_refused(kind):
    with pytest.raises(InvalidTransactionError, match=r"payload\.type"):
        parse_transaction(change_envelope(lambda d: d["payload"].update(type=kind)))


@pytest.mark.parametrize("kind", ["audit", "authority_set", "evidence"])
def test_a_receipt_under_another_types_name_is_refused(kind):
    with pytest.raises(InvalidTransactionError, match="unknown field"):
        parse_transaction(change_envelope(lambda d: d["payload"].update(type=kind)))


def test_every_transaction_tells_its_type():
    chain = build_chain(1)
    change = sign_change(build_change_payload(chain.tip, chain.tip.authority_set), chain.members)
    evidence = build_evidence(GENESIS, chain.members[0])
    for transaction, kind in (
        (RECEIPT, "receipt"),
        (build_audit(GENESIS), "audit"),
        (change, "authority_set"),
        (evidence, "evidence"),
    ):
        assert transaction.type == kind
        assert json.loads(transaction.envelope)["payload"]["type"] == kind
        assert parse_transaction(transaction.envelope) == transaction


@pytest.mark.parametrize("version", [0, 2, "1", True, None])
def test_other_versions_are_refused(version):
    with pytest.raises(InvalidTransactionError):
        parse_transaction(change_envelope(lambda d: d["payload"].update(v=version)))


@pytest.mark.parametrize("name", sorted(json.loads(RECEIPT.envelope)["payload"]))
def test_every_field_is_required_and_typed(name):
    with pytest.raises(InvalidTransactionError):
        parse_transaction(change_envelope(lambda d: d["payload"].pop(name)))
    for wrong in (None, [], {}, False, -1, "\n", "x\n", 2**53, 1.5):
        with pytest.raises(InvalidTransactionError):
            parse_transaction(
                change_envelope(lambda d, wrong=wrong: d["payload"].update({name: wrong}))
            )


def test_unknown_fields_are_refused_everywhere():
    for place in (
        lambda d: d,
        lambda d: d["payload"],
        lambda d: d["signatures"][0],
        lambda d: d["signatures"][1],
    ):
        with pytest.raises(InvalidTransactionError, match="unknown field `extra`"):
            parse_transaction(change_envelope(lambda d, place=place: place(d).update(extra=1)))


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("attempt", 1, 1000),
        ("max_tokens", 1, 1_000_000),
        ("temperature_micros", 0, 2_000_000),
        ("top_p_micros", 1, 1_000_000),
        ("price_micros", 0, 2**53 - 1),
        ("seed", 0, 2**53 - 1),
        ("started_at_ms", 0, 2**53 - 1),
    ],
)
def test_numbers_have_exact_bounds(name, low, high):
    for value in (low, high):
        payload = build_payload(GENESIS, **{name: value})
        assert getattr(build_transaction(payload, []).payload, name) == value
    for value in (low - 1, high + 1):
        with pytest.raises(InvalidTransactionError, match=name):
            build_transaction(build_payload(GENESIS, **{name: value}), [])


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("client", ["a", "A.b_c:d@e-9", "x" * 128], ["", "-a", "a b", "a\n", "é", "x" * 129]),
        ("model", ["m", "é 😀", "x" * 128], ["", "a\x7f", "a\n", "\x00", "x" * 129]),
        ("sampler", ["", "aitbc-gumbel-v1", "x" * 64], ["A", "a_b", "a\n", "x" * 65]),
        ("model_digest", ["", "ab" * 32], ["ab", "AB" * 32, "ab" * 32 + "\n", "\n"]),
        ("prompt_digest", ["ab" * 32], ["", "ab" * 31, "ab" * 32 + "\n"]),
        ("job_id", ["job_" + "Z" * 26], ["job_" + "I" * 26, "job_" + "0" * 25, "job_\n"]),
        ("unit_type", ["tokens", "gpu_seconds"], ["", "Tokens", "joules"]),
        ("metered_by", ["coordinator", "provider"], ["", "client"]),
    ],
)
def test_texts_have_exact_forms(name, good, bad):
    for value in good:
        payload = build_payload(GENESIS, **{name: value})
        assert getattr(build_transaction(payload, []).payload, name) == value
    for value in bad:
        with pytest.raises(InvalidTransactionError, match=name):
            build_transaction(build_payload(GENESIS, **{name: value}), [])


def test_a_payload_built_in_memory_obeys_the_bounds_of_a_parsed_one():
    payload = msgspec.structs.replace(RECEIPT.payload, price_micros=2**60)
    with pytest.raises(InvalidTransactionError, match="price_micros"):
        build_transaction(payload, [])


def test_an_envelope_over_its_bound_is_refused():
    with pytest.raises(InvalidTransactionError, match=f"at most {MAX_ENVELOPE_BYTES} bytes"):
        parse_transaction(b" " * (MAX_ENVELOPE_BYTES + 1))
    signatures = [
        Signature(key_id=f"{i:03}" + "\1" * 87, role="provider", sig="A" * 86) for i in range(256)
    ]
    with pytest.raises(InvalidTransactionError, match=f"at most {MAX_ENVELOPE_BYTES} bytes"):
        build_transaction(RECEIPT.payload, signatures)


def test_257_signatures_are_refused():
    signatures = [Signature(key_id=f"{i:03}", role="auditor", sig="") for i in range(257)]
    assert len(build_transaction(RECEIPT.payload, signatures[:-1]).signatures) == 256
    with pytest.raises(InvalidTransactionError, match="length <= 256"):
        build_transaction(RECEIPT.payload, signatures)


@given(st.data())
def test_every_changed_byte_gives_another_transaction_or_none(data):
    changed = draw_changed_byte(data, RECEIPT.envelope)
    try:
        transaction = parse_transaction(changed)
    except InvalidTransactionError:
        return
    assert transaction.envelope == bytes(changed)
    same_payload = transaction.payload == RECEIPT.payload
    assert (transaction.id == RECEIPT.id) is same_payload


def test_a_receipt_id_names_network_coordinator_and_job():
    base = {"genesis": "ab" * 32, "coordinator": build_key("a").account, "job_id": "job_1"}
    changes = [{}, {"genesis": "cd" * 32}, {"coordinator": "b"}, {"job_id": "job_2"}]
    ids = {build_receipt_id(**{**base, **change}) for change in changes}
    assert len(ids) == len(changes)


def test_short_envelopes_of_equal_bytes_are_parsed_once():
    short = build_receipt(GENESIS, 1)
    assert parse_transaction(short.envelope) is parse_transaction(bytes(bytearray(short.envelope)))
    long = build_envelope_beyond_memory()
    assert parse_transaction(long) is not parse_transaction(long)
    assert parse_transaction(long) == parse_transaction(long)


def build_envelope_beyond_memory() -> bytes:
    signatures = [
        sign_payload(RECEIPT.payload, key, "authority") for key in map(build_key, "abcdefgh")
    ]
    envelope = build_transaction(RECEIPT.payload, signatures).envelope
    assert len(envelope) > 2048
    return envelope
