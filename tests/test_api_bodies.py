"""Parsing of request bodies, and the exact decimals in and out."""

import contextlib
import json
from decimal import Decimal

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from api import bodies
from api.bodies import (
    ClaimBody,
    decode_body,
    parse_order,
    parse_registration,
    parse_report,
    parse_webhook,
)
from api.errors import RequestError
from api.render import format_micros, format_time
from ledger.jobs import JobOrder, Registration, Report
from ledger.transaction import Signature

MAX = 2**53 - 1


def order(**fields):
    return parse_order(json.dumps({"prompt": "p", **fields}).encode(), default_model="default")


def report(**fields):
    return parse_report(json.dumps({"miner_id": "m", "result": "r", **fields}).encode())


def registration(**fields):
    return parse_registration(json.dumps({"miner_id": "m", "capabilities": [], **fields}).encode())


def refused_path(parse, body: bytes) -> str:
    with pytest.raises(RequestError) as caught:
        parse(body)
    assert caught.value.code == "VALIDATION_FAILED"
    (error,) = caught.value.errors
    return error.path


def test_a_bare_prompt_gets_the_reference_defaults():
    assert order() == JobOrder(
        prompt="p",
        model="default",
        max_tokens=256,
        temperature_micros=700_000,
        top_p_micros=900_000,
        seed=None,
        stop=(),
    )


def test_everything_a_client_may_ask_for_arrives():
    params = {"max_tokens": 8192, "temperature": 2, "top_p": 1, "seed": MAX, "stop": ["a", "b"]}
    assert order(model="M", params=params) == JobOrder(
        prompt="p",
        model="M",
        max_tokens=8192,
        temperature_micros=2_000_000,
        top_p_micros=1_000_000,
        seed=MAX,
        stop=("a", "b"),
    )


def test_null_counts_as_absent_where_a_field_is_optional_and_unknown_fields_are_ignored():
    params = dict.fromkeys(("max_tokens", "temperature", "top_p", "seed", "stop"))
    assert order(model=None, params=params, later="field") == order()
    assert order(params=None) == order()
    assert report(completed_at=None, signature=None, units=None) == report()


def test_an_integer_may_be_spelled_with_a_zero_fraction():
    body = b'{"prompt":"p","params":{"max_tokens":256.0,"seed":1e3}}'
    parsed = parse_order(body, default_model="d")
    assert (parsed.max_tokens, parsed.seed) == (256, 1000)


def test_an_empty_prompt_is_a_prompt():
    assert order(prompt="").prompt == ""


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": 1}, "prompt"),
        ({"prompt": "a\0b"}, "prompt"),
        ({"model": ""}, "model"),
        ({"model": "x" * 129}, "model"),
        ({"model": "a\nb"}, "model"),
        ({"model": "a\n"}, "model"),
        ({"params": []}, "params"),
        ({"params": {"max_tokens": 0}}, "params.max_tokens"),
        ({"params": {"max_tokens": 8193}}, "params.max_tokens"),
        ({"params": {"max_tokens": 1.5}}, "params.max_tokens"),
        ({"params": {"max_tokens": True}}, "params.max_tokens"),
        ({"params": {"max_tokens": "1"}}, "params.max_tokens"),
        ({"params": {"max_tokens": 2**65}}, "params.max_tokens"),
        ({"params": {"temperature": -0.000001}}, "params.temperature"),
        ({"params": {"temperature": 2.000001}}, "params.temperature"),
        ({"params": {"top_p": 0}}, "params.top_p"),
        ({"params": {"top_p": 0.0000009}}, "params.top_p"),
        ({"params": {"top_p": 1.000001}}, "params.top_p"),
        ({"params": {"seed": -1}}, "params.seed"),
        ({"params": {"seed": 2**53}}, "params.seed"),
        ({"params": {"seed": 0.5}}, "params.seed"),
        ({"params": {"stop": "end"}}, "params.stop"),
        ({"params": {"stop": ["a"] * 5}}, "params.stop"),
        ({"params": {"stop": ["a", ""]}}, "params.stop[1]"),
        ({"params": {"stop": ["a", "x" * 65]}}, "params.stop[1]"),
        ({"params": {"stop": ["a", "\0"]}}, "params.stop[1]"),
    ],
)
def test_a_bad_order_is_refused_by_the_path_of_its_field(fields, path):
    body = json.dumps({"prompt": "p", **fields}).encode()
    assert refused_path(lambda b: parse_order(b, default_model="d"), body) == path


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b'{"prompt": "p"} {}',
        b"nul",
        b'{"prompt": NaN}',
        b'{"prompt": "p", "params": {"temperature": Infinity}}',
        b'{"prompt": "p", "x": -Infinity}',
        b'{"prompt": "\xff"}',
        b'{"prompt": "p", "x": "\xc0\x80"}',
        b'{"prompt": "\xed\xa0\x80"}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "\\udc00\\ud800"}',
        b'{"\\ud800": 1, "prompt": "p"}',
        b'{"prompt": "a\nb"}',
        b"\xef\xbb\xbf{}",
        b'{"prompt": "p"'.decode().encode("utf-16"),
        b'{"prompt": "p", "x": ' + b"[" * 10_000 + b"]" * 10_000 + b"}",
        b'{"prompt": "p", "x": ' + b'{"a":' * 10_000 + b"1" + b"}" * 10_001,
        b"\0",
    ],
)
def test_what_is_not_json_is_refused_as_such(body):
    with pytest.raises(RequestError) as caught:
        parse_order(body, default_model="d")
    assert caught.value.code == "VALIDATION_MALFORMED_JSON"


@pytest.mark.parametrize("body", [b"null", b"[]", b"1", b'"p"', b"[" * 10_000])
def test_json_that_is_no_object_is_refused(body):
    assert refused_path(lambda b: parse_order(b, default_model="d"), body) == "$"


def test_a_missing_field_is_named():
    assert refused_path(lambda b: parse_order(b, default_model="d"), b"{}") == "prompt"
    body = b'{"miner_id":"m","result":"r","signature":{"sig":"x"}}'
    assert refused_path(parse_report, body) == "signature.key_id"


@pytest.mark.parametrize(
    ("body", "path"),
    [
        (b'{"prompt":"a","prompt":"b"}', "prompt"),
        (b'{"prompt":"a","params":{"seed":1,"seed":2}}', "seed"),
        (b'{"prompt":"a","x":[{"y":1,"y":1}]}', "y"),
        (b'{"prompt":"a","pro\\u006dpt":"b"}', "prompt"),
    ],
)
def test_a_key_that_stands_twice_is_refused(body, path):
    assert refused_path(lambda b: parse_order(b, default_model="d"), body) == path


def test_numbers_that_no_machine_holds_are_harmless_in_fields_nobody_reads():
    body = b'{"prompt":"p","x":' + b"9" * 10_000 + b',"y":1e999}'
    assert parse_order(body, default_model="d").prompt == "p"


@pytest.mark.parametrize("part", [b"{},", b"[],", b'"",', b"1,", b"1e1,", b'{"a":{}},'])
def test_a_body_of_too_many_parts_is_refused_unread(part, monkeypatch):
    monkeypatch.setattr(bodies, "_structure", None)  # reading it would take a second
    many = b'{"miner_id":"m","result":"r","z":[' + part * 200_000 + b"0]}"
    with pytest.raises(RequestError) as caught:
        parse_report(many)
    assert caught.value.code == "VALIDATION_MALFORMED_JSON"


def test_parts_count_outside_texts_only():
    text = '\\"[{,' * 200_000
    assert report(result=text, output_token_ids=[1] * 100_000, completion_tokens=1).result == text


def test_a_report_arrives_whole():
    signature = {"alg": "Ed25519", "key_id": "ait1x", "sig": "abc"}
    parsed = report(
        completed_at_ms=5,
        unit_type="tokens",
        units=7,
        prompt_tokens=3,
        completion_tokens=4,
        output_token_ids=[0, 2**32 - 1],
        model_digest="ab" * 32,
        sampler="greedy.v1",
        signature=signature,
    )
    assert parsed == Report(
        miner_id="m",
        result="r",
        completed_at_ms=5,
        unit_type="tokens",
        units_micros=7_000_000,
        prompt_tokens=3,
        completion_tokens=4,
        output_token_ids=(0, 2**32 - 1),
        model_digest="ab" * 32,
        sampler="greedy.v1",
        signature=Signature(key_id="ait1x", role="provider", sig="abc"),
    )


def test_completed_at_counts_only_where_a_report_is_signed_without_milliseconds():
    signature = {"key_id": "ait1x", "sig": "abc"}
    time = "2026-01-31T13:00:00.250+01:00"
    assert report(completed_at=time).completed_at_ms is None
    assert report(completed_at="whenever").completed_at_ms is None
    assert report(completed_at=time, signature=signature).completed_at_ms == 1_769_860_800_250
    assert report(completed_at=time, completed_at_ms=7, signature=signature).completed_at_ms == 7


@pytest.mark.parametrize("text", ["", "whenever", "2026-01-31", "2026-01-31T12:00:00", "0"])
def test_a_signed_report_needs_a_time_that_means_one_moment(text):
    body = json.dumps(
        {
            "miner_id": "m",
            "result": "r",
            "completed_at": text,
            "signature": {"key_id": "k", "sig": "s"},
        }
    )
    assert refused_path(parse_report, body.encode()) == "completed_at"


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"miner_id": ""}, "miner_id"),
        ({"miner_id": "-m"}, "miner_id"),
        ({"miner_id": "m\n"}, "miner_id"),
        ({"miner_id": "m" * 129}, "miner_id"),
        ({"result": None}, "result"),
        ({"result": "\0"}, "result"),
        ({"completed_at_ms": -1}, "completed_at_ms"),
        ({"completed_at_ms": 1.5}, "completed_at_ms"),
        ({"unit_type": "hours"}, "unit_type"),
        ({"units": -1}, "units"),
        ({"units": 1e300}, "units"),
        ({"units": "1"}, "units"),
        ({"prompt_tokens": -1}, "prompt_tokens"),
        ({"output_token_ids": [2**32]}, "output_token_ids[0]"),
        ({"output_token_ids": [-1]}, "output_token_ids[0]"),
        ({"output_token_ids": [0] * 100_001}, "output_token_ids"),
        ({"model_digest": "AB" * 32}, "model_digest"),
        ({"model_digest": "ab" * 32 + "\n"}, "model_digest"),
        ({"sampler": "Greedy"}, "sampler"),
        ({"signature": {"alg": "RS256", "key_id": "k", "sig": "s"}}, "signature.alg"),
        ({"signature": {"key_id": "k" * 91, "sig": "s"}}, "signature.key_id"),
        ({"signature": {"key_id": "k", "sig": "s" * 87}}, "signature.sig"),
    ],
)
def test_a_bad_report_is_refused_by_the_path_of_its_field(fields, path):
    body = json.dumps({"miner_id": "m", "result": "r", **fields}).encode()
    assert refused_path(parse_report, body) == path


def test_a_result_is_bounded_in_bytes_not_characters(monkeypatch):
    monkeypatch.setattr(bodies, "MAX_RESULT_BYTES", 4)
    assert report(result="éé").result == "éé"
    with pytest.raises(RequestError) as caught:
        report(result="ééé")
    assert caught.value.code == "VALIDATION_BODY_TOO_LARGE"


def test_a_registration_arrives_whole():
    proof = {"alg": "Ed25519", "key_id": "ait1x", "sig": "abc"}
    parsed = registration(
        miner_id="gpu-1.local:8080@x_Y",
        capabilities=["llama3.2", "gpu"],
        gpu_info={"name": "RTX", "memory": "24 GB"},
        public_key="ait1x",
        proof=proof,
    )
    assert parsed == Registration(
        miner_id="gpu-1.local:8080@x_Y",
        capabilities=("llama3.2", "gpu"),
        gpu_name="RTX",
        gpu_memory="24 GB",
        account="ait1x",
        proof="abc",
    )
    assert registration(gpu_info={}) == Registration(miner_id="m", capabilities=())


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"capabilities": None}, "capabilities"),
        ({"capabilities": ["x"] * 65}, "capabilities"),
        ({"capabilities": ["x" * 129]}, "capabilities[0]"),
        ({"capabilities": ["a\x1bb"]}, "capabilities[0]"),
        ({"capabilities": [1]}, "capabilities[0]"),
        ({"gpu_info": "RTX"}, "gpu_info"),
        ({"gpu_info": {"name": "\0"}}, "gpu_info.name"),
        ({"public_key": "ait1x"}, "proof"),
        ({"proof": {"key_id": "ait1x", "sig": "s"}}, "proof"),
        ({"public_key": "ait1x", "proof": {"key_id": "ait1y", "sig": "s"}}, "proof.key_id"),
    ],
)
def test_a_bad_registration_is_refused_by_the_path_of_its_field(fields, path):
    body = json.dumps({"miner_id": "m", "capabilities": [], **fields}).encode()
    assert refused_path(parse_registration, body) == path


def test_a_claim_may_ask_for_heartbeats():
    assert decode_body(b'{"miner_id":"m"}', ClaimBody).heartbeat is None
    assert decode_body(b'{"miner_id":"m","heartbeat":true}', ClaimBody).heartbeat is True


@given(micros=st.integers(0, MAX))
@example(micros=9_007_199_254_740_991)
def test_every_amount_is_written_exactly_and_with_six_decimals_at_most(micros):
    text = bytes(format_micros(micros)).decode()
    assert Decimal(text) * 1_000_000 == micros
    assert len(text.partition(".")[2]) <= 6
    assert not text.endswith(".")
    assert msgspec.json.decode(text.encode()) is not None


@given(micros=st.integers(0, 2_000_000))
def test_a_temperature_comes_back_as_it_was_sent(micros):
    sent = f'{{"prompt":"p","params":{{"temperature":{bytes(format_micros(micros)).decode()}}}}}'
    assert parse_order(sent.encode(), default_model="d").temperature_micros == micros


@pytest.mark.parametrize(
    ("sent", "micros"),
    [("0.7", 700_000), ("0.0000005", 0), ("0.0000015", 2), ("0.12345651", 123_457), ("1e-6", 1)],
)
def test_decimals_beyond_six_are_rounded_half_to_even(sent, micros):
    body = f'{{"prompt":"p","params":{{"temperature":{sent}}}}}'.encode()
    assert parse_order(body, default_model="d").temperature_micros == micros


@given(body=st.binary(max_size=200))
def test_no_bytes_make_the_parser_fail_in_another_way(body):
    for parse in (lambda b: parse_order(b, default_model="d"), parse_report, parse_registration):
        with pytest.raises(RequestError):
            parse(body)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
FIELDS = (
    *("prompt", "model", "params", "max_tokens", "temperature", "top_p", "seed", "stop"),
    *("miner_id", "result", "units", "signature", "capabilities", "gpu_info", "proof"),
)


@given(value=st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=8))
def test_any_json_parses_or_is_refused(value):
    body = json.dumps(value).encode()
    for parse in (lambda b: parse_order(b, default_model="d"), parse_report, parse_registration):
        with contextlib.suppress(RequestError):
            parse(body)


@pytest.mark.parametrize(
    ("time_ms", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (1_767_225_600_007, "2026-01-01T00:00:00.007Z"),
        (253_402_300_799_999, "9999-12-31T23:59:59.999Z"),
    ],
)
def test_times_are_rfc_3339_in_utc_with_milliseconds(time_ms, text):
    assert format_time(time_ms) == text


# --- what is said of a refused value --------------------------------------------------------------


def refused(parse, **fields) -> str:
    with pytest.raises(RequestError) as caught:
        parse(**fields)
    return str(caught.value)


def webhook(**fields):
    return parse_webhook(json.dumps({"url": "https://a.example", **fields}).encode())


@pytest.mark.parametrize(
    ("parse", "fields", "detail"),
    [
        (order, {"prompt": 5}, "prompt: expected a string, got an integer"),
        (order, {"model": "a\n"}, "model: expected no control characters"),
        (order, {"params": []}, "params: expected an object, got an array"),
        (order, {"params": {"stop": "x"}}, "params.stop: expected an array, got a string"),
        (order, {"params": {"seed": "x"}}, "params.seed: expected a number, got a string"),
        (order, {"params": {"top_p": 0}}, "params.top_p: expected a number in 0.000001..1"),
        (
            webhook,
            {"events": ["x"]},
            "events[0]: expected one of job.completed, job.failed, job.cancelled, receipt.final",
        ),
        (
            registration,
            {"miner_id": "a b"},
            "miner_id: expected 1 to 128 letters, digits and _.:@-, of which the first is a "
            "letter or digit",
        ),
        (report, {"unit_type": "x"}, "unit_type: expected one of gpu_seconds, tokens"),
        (report, {"finish_reason": "x"}, "finish_reason: expected one of length, stop"),
        (report, {"model_digest": "x"}, "model_digest: expected 64 lower-case hex digits"),
        (
            report,
            {"sampler": "X"},
            "sampler: expected at most 64 lower-case letters, digits, dots and hyphens",
        ),
        (
            report,
            {"signature": {"alg": "RSA", "key_id": "", "sig": ""}},
            "signature.alg: expected one of Ed25519",
        ),
        (report, {"prompt_tokens": -1}, "prompt_tokens: expected an integer >= 0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_refusal_says_what_is_expected_without_python_or_patterns(parse, fields, detail):
    assert refused(parse, **fields) == detail


def test_a_body_that_is_no_object_is_called_the_body():
    with pytest.raises(RequestError, match=r"^body: expected an object, got an array$"):
        parse_order(b"[]", default_model="d")
