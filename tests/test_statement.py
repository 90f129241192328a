"""Statement bundles under both verifiers: what must fail fails, and nothing else."""

import json
from pathlib import Path

import msgspec
import pytest

from ledger.block import parse_genesis
from ledger.encoding import encode
from ledger.errors import InvalidProofError
from ledger.proof import NOT_PROVED, parse_bundle, verify_bundle
from ledger.statement import (
    MAX_STATEMENT_BYTES,
    MAX_STATEMENT_LINES,
    STATEMENT_NOT_PROVED,
    is_statement,
    parse_statement,
    verify_statement,
)
from scripts import verify_receipt as script
from tests.builders import Chain, build_chain, build_members, build_receipt
from tests.statement_tampering import CLIENT, MINER, build_market

VECTORS = json.loads(
    (Path(__file__).parent / "vectors" / "statements.json").read_text(encoding="utf-8")
)
CASES = VECTORS["cases"]
JUDGED = [case for case in CASES if case["failed"] is not None]
MALFORMED = [case for case in CASES if case["failed"] is None]
CLAIMS = [
    "account",
    "receipt",
    "provider_signature",
    "coordinator_signature",
    "inclusion",
    "header",
    "quorum",
    "authority_chain",
    "coordinator",
    "period",
]


def judge(data, genesis):
    """The verdicts of both implementations, as plain JSON."""
    ours = verify_statement(data, genesis=parse_genesis(genesis))
    theirs = script.verify_statement(script.parse_statement(data), script.parse_genesis(genesis))
    return json.loads(msgspec.json.encode(ours)), json.loads(json.dumps(theirs))


@pytest.mark.parametrize("case", JUDGED, ids=lambda case: case["why"])
def test_both_implementations_find_what_must_fail_and_nothing_else(case):
    data = case["statement"].encode()
    ours, theirs = judge(data, VECTORS["genesis"][case["genesis"]].encode())
    assert is_statement(data)
    assert script.is_statement(data)
    for verdict in (ours, theirs):
        claims = [[claim["name"], claim["status"]] for claim in verdict["claims"]]
        assert [name for name, _ in claims] == CLAIMS
        assert [name for name, status in claims if status == "failed"] == case["failed"]
        assert claims == case["claims"]
        assert verdict["verified"] is (case["failed"] == [])
        assert [line["leaf"] for line in verdict["failed_lines"]] == case["failed_lines"]
        assert verdict["totals"] == case["totals"]
        assert all(claim.pop("detail") for claim in verdict["claims"])
        assert all(c.pop("detail") for line in verdict["failed_lines"] for c in line["claims"])
    assert ours == theirs
    assert list(ours) == list(theirs)
    assert list(ours["totals"]) == list(theirs["totals"])


@pytest.mark.parametrize("case", MALFORMED, ids=lambda case: case["why"])
def test_both_implementations_refuse_what_is_no_statement(case):
    with pytest.raises(InvalidProofError, match=r"^statement: "):
        parse_statement(case["statement"].encode())
    with pytest.raises(script.MalformedError):
        script.parse_statement(case["statement"].encode())


def test_the_vectors_hold_every_claim_in_every_state():
    states = {(name, status) for case in JUDGED for name, status in case["claims"]}
    expected = {(name, status) for name in CLAIMS for status in ("failed", "verified")}
    assert states == expected | {("provider_signature", "not_applicable")}


def build_small_statement() -> tuple[Chain, bytes]:
    """One line in a period that fits it closely, and its neighbours outside."""
    chain = build_chain(1, blocks=[1, 1, 1])
    return chain, fit(chain, first=2, last=2)


def build_changed_statement() -> tuple[Chain, bytes]:
    """One line after a change of the authorities, in a period that fits it closely."""
    chain = build_chain(1, blocks=[1])
    chain.change_authorities(build_members(2, epoch=1), build_receipt(chain.genesis, 2))
    chain.append(build_receipt(chain.genesis, 3))
    return chain, fit(chain, first=3, last=3)


def fit(chain: Chain, *, first: int, last: int) -> bytes:
    from_ms, to_ms = (chain.blocks[height - 1].header.time_ms for height in (first, last))
    return encode(chain.statement(CLIENT, from_ms=from_ms, to_ms=to_ms + 1)) + b"\n"


@pytest.mark.parametrize(
    ("build", "begins"), [(build_small_statement, b"{"), (build_changed_statement, b'"epochs"')]
)
def test_a_changed_byte_is_found_by_both_or_says_less_in_plain_sight(build, begins):
    """Nobody signs the period that was asked for. A wider one is true as well, and is named."""
    chain, data = build()
    genesis = chain.genesis
    document = script.parse_genesis(encode(genesis))
    proved = verify_statement(data, genesis=genesis)
    assert proved.verified
    assert script.verify_statement(script.parse_statement(data), document)["verified"]
    wider = 0
    for position in range(data.index(begins), len(data)):
        changed = data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]
        ours, theirs = verify(changed, genesis), verify_by_script(changed, document)
        assert (ours is None) == (theirs is None), position
        if ours is not None:
            wider += 1
            assert (ours.from_ms, ours.to_ms) == (theirs["from_ms"], theirs["to_ms"])
            assert ours.from_ms <= proved.from_ms
            assert ours.to_ms >= proved.to_ms
            assert (ours.from_ms, ours.to_ms) != (proved.from_ms, proved.to_ms)
            assert (ours.account, ours.totals) == (CLIENT, proved.totals)
    assert 0 < wider < 26


def verify(data, genesis):
    """The verdict of the node's verifier, None if it is not verified."""
    try:
        verdict = verify_statement(data, genesis=genesis)
    except InvalidProofError:
        return None
    return verdict if verdict.verified else None


def verify_by_script(data, genesis):
    try:
        verdict = script.verify_statement(script.parse_statement(data), genesis)
    except script.MalformedError:
        return None
    return verdict if verdict["verified"] else None


def test_every_truncation_of_a_statement_is_refused():
    chain, data = build_small_statement()
    for length in range(len(data) - 1):
        assert verify(data[:length], chain.genesis) is None


def test_every_line_with_the_rest_is_a_proof_bundle_of_its_own():
    chain = build_market()
    statement = chain.statement(MINER)
    for entry in statement.entries:
        bundle = {
            "v": 1,
            "envelope": entry.envelope,
            "index": entry.index,
            "path": entry.path,
            "header": statement.header,
            "certificate": statement.certificate,
            "epochs": statement.epochs,
        }
        verdict = verify_bundle(encode(bundle), genesis=chain.genesis)
        assert verdict.verified, verdict.claims


def test_totals_tell_earned_from_spent_and_tokens_from_seconds():
    chain = build_market()
    totals = verify_statement(encode(chain.statement(MINER)), genesis=chain.genesis).totals
    big = 2**53 - 1
    earned = {"lines": 6, "price_micros": 46 * 3 + 1_000_001 + 2 * big}
    units = {"tokens_micros": 5 * 46_000_000, "gpu_seconds_micros": 830_000}
    own = {"lines": 1, "price_micros": 46, "tokens_micros": 46_000_000, "gpu_seconds_micros": 0}
    assert msgspec.to_builtins(totals.earned) == earned | units
    assert msgspec.to_builtins(totals.spent) == own
    assert [share.name for share in totals.by_counterparty] == [MINER, "client-1", "client-2"]
    assert msgspec.to_builtins(totals.by_counterparty[0]) == {
        "name": MINER,
        "earned": own,
        "spent": own,
    }
    assert [share.name for share in totals.by_model] == ["=1+1 😀", "smollm2:135m"]
    for shares in (totals.by_model, totals.by_counterparty):
        assert sum(share.earned.price_micros for share in shares) == totals.earned.price_micros
        assert sum(share.spent.lines for share in shares) == totals.spent.lines
    assert totals.earned.price_micros > 2**53


def test_a_failed_line_is_named_with_what_fails_and_adds_nothing_if_it_is_not_the_accounts():
    chain = build_market()
    document = json.loads(encode(chain.statement(CLIENT)))
    document["entries"][0]["envelope"]["payload"]["client"] = "client-9"
    verdict = verify_statement(encode(document), genesis=chain.genesis)
    (line,) = verdict.failed_lines
    assert line.receipt_id == chain.transactions[0].payload.receipt_id
    assert [claim.name for claim in line.claims] == [
        "account",
        "provider_signature",
        "coordinator_signature",
        "inclusion",
    ]
    assert verdict.lines == 5
    assert verdict.totals.spent.lines == 4
    (account,) = [claim for claim in verdict.claims if claim.name == "account"]
    assert account.detail.startswith("1 of 5 lines fail, the first: account: expected client-1")


def test_a_verdict_names_what_it_is_about_and_that_it_may_be_incomplete():
    chain = build_market()
    verdict = verify_statement(encode(chain.statement(CLIENT)), genesis=chain.genesis)
    assert (verdict.account, verdict.lines) == (CLIENT, 5)
    assert verdict.block_hash == chain.blocks[4].hash.hex()
    assert verdict.not_proved == STATEMENT_NOT_PROVED
    assert STATEMENT_NOT_PROVED[1:] == NOT_PROVED
    assert "left out" in STATEMENT_NOT_PROVED[0]
    assert STATEMENT_NOT_PROVED[0] == script.INCOMPLETE


def test_a_bundle_of_one_receipt_is_no_statement_and_the_other_way_round():
    chain = build_chain(1, blocks=[1])
    bundle, statement = encode(chain.bundle(0)), encode(chain.statement(CLIENT))
    assert (is_statement(bundle), script.is_statement(bundle)) == (False, False)
    for data, ours, theirs in (
        (bundle, parse_statement, script.parse_statement),
        (statement, parse_bundle, script.parse_bundle),
    ):
        with pytest.raises(InvalidProofError):
            ours(data)
        with pytest.raises(script.MalformedError):
            theirs(data)


def test_statements_over_their_bounds_are_refused():
    with pytest.raises(InvalidProofError, match="at most"):
        parse_statement(b" " * (MAX_STATEMENT_BYTES + 1))
    chain = build_chain(1, blocks=[1])
    document = json.loads(encode(chain.statement(CLIENT)))
    entry = document["entries"][0]
    document["entries"] = [{**entry, "index": i} for i in range(MAX_STATEMENT_LINES + 1)]
    with pytest.raises(InvalidProofError, match="5000"):
        parse_statement(encode(document))
    with pytest.raises(script.MalformedError, match="1 to 5000"):
        script.parse_statement(encode(document))
    assert (MAX_STATEMENT_BYTES, MAX_STATEMENT_LINES) == (
        script.MAX_STATEMENT_BYTES,
        script.MAX_LINES,
    )
