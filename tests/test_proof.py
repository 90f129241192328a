import json
from pathlib import Path

import msgspec
import pytest

from ledger.block import parse_genesis
from ledger.encoding import encode
from ledger.errors import InvalidProofError
from ledger.proof import (
    MAX_BUNDLE_BYTES,
    MAX_DISCLOSURE_BYTES,
    NOT_PROVED,
    Disclosure,
    parse_bundle,
    parse_disclosure,
    verify_bundle,
)
from scripts import verify_receipt as script
from tests.builders import Chain, build_chain, build_disclosure, build_members, build_receipt

VECTORS = json.loads(
    (Path(__file__).parent / "vectors" / "bundles.json").read_text(encoding="utf-8")
)
CASES = VECTORS["cases"]
JUDGED = [case for case in CASES if case["failed"] is not None]
MALFORMED = [case for case in CASES if case["failed"] is None]
CLAIMS = [
    "receipt",
    "provider_signature",
    "coordinator_signature",
    "inclusion",
    "header",
    "quorum",
    "authority_chain",
    "coordinator",
]


def judge(case):
    """The verdicts of both implementations, as plain JSON."""
    genesis = VECTORS["genesis"][case["genesis"]].encode()
    shown = json.dumps(case["disclosure"]).encode() if "disclosure" in case else None
    ours = verify_bundle(
        case["bundle"].encode(),
        genesis=parse_genesis(genesis),
        disclosure=parse_disclosure(shown) if shown else None,
    )
    theirs = script.verify(
        script.parse_bundle(case["bundle"].encode()),
        script.parse_genesis(genesis),
        script.parse_disclosure(shown) if shown else {},
    )
    return json.loads(msgspec.json.encode(ours)), json.loads(json.dumps(theirs))


@pytest.mark.parametrize("case", JUDGED, ids=lambda case: case["why"])
def test_both_implementations_find_what_must_fail_and_nothing_else(case):
    ours, theirs = judge(case)
    for verdict in (ours, theirs):
        claims = [[claim["name"], claim["status"]] for claim in verdict["claims"]]
        assert [name for name, status in claims if status == "failed"] == case["failed"]
        assert claims == case["claims"]
        assert verdict["verified"] is (case["failed"] == [])
        assert [name for name, _ in claims][: len(CLAIMS)] == CLAIMS
        assert all(claim.pop("detail") for claim in verdict["claims"])
    assert ours == theirs
    assert list(ours) == list(theirs)


@pytest.mark.parametrize("case", MALFORMED, ids=lambda case: case["why"])
def test_both_implementations_refuse_what_is_no_bundle(case):
    with pytest.raises(InvalidProofError, match=r"^bundle: "):
        parse_bundle(case["bundle"].encode())
    with pytest.raises(script.MalformedError):
        script.parse_bundle(case["bundle"].encode())


@pytest.mark.parametrize("kind", ["authority_set", "evidence"])
def test_both_implementations_say_that_another_type_has_no_bundle(kind):
    (case,) = [case for case in VECTORS["cases"] if f'"type":"{kind}"' in case["bundle"]]
    with pytest.raises(InvalidProofError, match=f"of a receipt, got one of type {kind}"):
        parse_bundle(case["bundle"].encode())
    with pytest.raises(script.MalformedError, match=f"expected a receipt, got type '{kind}'"):
        script.parse_bundle(case["bundle"].encode())


def test_the_vectors_hold_every_claim_in_every_state():
    states = {(name, status) for case in JUDGED for name, status in case["claims"]}
    names = [*CLAIMS, "prompt_digest", "result_digest", "tokens_digest"]
    expected = {(name, status) for name in names for status in ("failed", "verified")}
    assert states == expected | {("provider_signature", "not_applicable")}


@pytest.mark.parametrize("make", ["one authority", "a change of authorities"])
def test_a_bundle_with_any_single_byte_changed_is_not_verified_by_either(make):
    chain = build_small_chain() if make == "one authority" else build_changed_chain()
    genesis = chain.genesis
    script_genesis = script.parse_genesis(encode(genesis))
    data = encode(chain.bundle(chain.tip.tree_size - 1)) + b"\n"
    assert verify_bundle(data, genesis=genesis).verified
    for position in range(len(data)):
        changed = data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]
        assert not is_verified(changed, genesis), position
        assert not is_verified_by_script(changed, script_genesis), position


def build_small_chain() -> Chain:
    return build_chain(1, blocks=[2])


def build_changed_chain() -> Chain:
    chain = build_chain(1, blocks=[1])
    chain.change_authorities(build_members(2, epoch=1), build_receipt(chain.genesis, 2))
    chain.append(build_receipt(chain.genesis, 3))
    return chain


def is_verified(data, genesis):
    try:
        return verify_bundle(data, genesis=genesis).verified
    except InvalidProofError:
        return False


def is_verified_by_script(data, genesis):
    try:
        return script.verify(script.parse_bundle(data), genesis, {})["verified"]
    except script.MalformedError:
        return False


def test_every_truncation_of_a_bundle_is_refused():
    chain = build_small_chain()
    data = encode(chain.bundle(1))
    for length in range(len(data)):
        assert not is_verified(data[:length], chain.genesis)


def test_votes_under_a_set_that_genesis_does_not_lead_to_prove_nothing():
    chain = build_small_chain()
    chain.members = build_members(4, epoch=9)[1:]
    chain.change_authorities(chain.members, build_receipt(chain.genesis, 8))
    chain.append(build_receipt(chain.genesis, 9))
    verdict = verify_bundle(encode(chain.bundle(4)), genesis=chain.genesis)
    status = {claim.name: claim.status for claim in verdict.claims}
    assert [status["quorum"], status["authority_chain"], status["coordinator"]] == ["failed"] * 3
    assert status["receipt"] == status["inclusion"] == status["header"] == "verified"


def test_a_verdict_names_what_it_is_about_and_what_it_does_not_prove():
    chain = build_chain(1, blocks=[2, 2])
    receipt = chain.transactions[3]
    verdict = verify_bundle(encode(chain.bundle(3)), genesis=chain.genesis)
    assert verdict.verified
    assert verdict.receipt_id == receipt.payload.receipt_id
    assert verdict.transaction_id == receipt.id.hex()
    assert verdict.genesis == chain.tip.genesis_hash.hex()
    assert verdict.block_height == 2
    assert verdict.block_hash == chain.blocks[1].hash.hex()
    assert verdict.not_proved == NOT_PROVED
    assert len(NOT_PROVED) == 3


def test_bundles_and_disclosures_over_their_bounds_are_refused():
    with pytest.raises(InvalidProofError, match="at most"):
        parse_bundle(b" " * (MAX_BUNDLE_BYTES + 1))
    with pytest.raises(InvalidProofError, match="at most"):
        parse_disclosure(b" " * (MAX_DISCLOSURE_BYTES + 1))


def test_a_digest_that_the_receipt_leaves_empty_is_told_from_a_wrong_one():
    chain = build_chain(1, blocks=[1])
    chain.append(build_receipt(chain.genesis, 2, tokens_digest=""))
    verdict = verify_bundle(
        encode(chain.bundle(1)), genesis=chain.genesis, disclosure=build_disclosure(2)
    )
    (failed,) = [claim for claim in verdict.claims if claim.status == "failed"]
    assert failed.name == "tokens_digest"
    assert failed.detail == "tokens_digest: the receipt names none to compare with"


def test_a_disclosure_may_have_any_spelling():
    text = b' {"prompt_salt" : "", "prompt":"\\u0061"}\n'
    assert parse_disclosure(text) == Disclosure(prompt="a")
    assert script.parse_disclosure(text) == {"prompt_salt": "", "prompt": "a"}
    whole = msgspec.json.encode(build_disclosure())
    assert parse_disclosure(whole) == build_disclosure()
    assert script.parse_disclosure(b'{"result":null,"prompt":"a"}')["result"] is None


def test_the_answer_about_a_job_is_a_disclosure():
    answer = {
        "job_id": "job_1",
        "prompt": "a",
        "params": {"temperature": 0.7},
        "result": "b",
        "disclosure": {"prompt_salt": "c", "result_salt": "d"},
    }
    data = json.dumps(answer).encode()
    expected = {"prompt": "a", "result": "b", "prompt_salt": "c", "result_salt": "d"}
    assert script.parse_disclosure(data) == expected
    assert parse_disclosure(data) == Disclosure(**expected)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b'{"prompt_salt":"AAAA"}',
        b'{"disclosure":{"prompt_salt":"AAAA"}}',
        b"[]",
        b"null",
        b'{"prompt":1}',
        b'{"prompt_salt":null}',
        b'{"salt":""}',
        b'{"output_token_ids":[1.0]}',
        b'{"output_token_ids":["1"]}',
        b'{"output_token_ids":[true]}',
        b'{"output_token_ids":[NaN]}',
        b'{"prompt":"\\ud800"}',
        b'{"prompt":"\xff"}',
        b'{"prompt":' * 50_000,
        b"[" * 100_000,
    ],
)
def test_what_is_no_disclosure_is_refused(data):
    with pytest.raises(InvalidProofError):
        parse_disclosure(data)
    with pytest.raises(script.MalformedError):
        script.parse_disclosure(data)
