"""The rules of the market: who fits what, who may do what, and what a receipt may say."""

import contextlib
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from ledger.block import hash_genesis
from ledger.encoding import MAX_INTEGER, decode_base64url
from ledger.errors import MarketError
from ledger.hashing import hash_text, hash_tokens
from ledger.jobs import (
    GENERIC_CAPABILITIES,
    JOB_ID_BYTES,
    Claim,
    Job,
    JobOrder,
    Lease,
    Prices,
    Report,
    build_job_id,
    build_registration_message,
    check_cancellable,
    check_claimable,
    check_completable,
    check_held,
    format_job_id,
    list_served_models,
    normalize_model,
    parse_job_id,
)
from ledger.metering import (
    CLOCK_TOLERANCE_MS,
    SPECIAL_TOKENS,
    TEMPLATE_TOKENS,
    build_receipt,
    build_terms,
    build_work_order,
)
from ledger.rules import validate_receipt
from ledger.transaction import Signature
from tests.builders import CREATED_MS, build_genesis, build_key, build_salt

GENESIS_HASH = hash_genesis(build_genesis())
COORDINATOR = build_key("authority 0").account
START_MS = CREATED_MS + 10_000
ORDER = JobOrder(
    prompt="Why is the sky blue?",
    model="llama3.2",
    max_tokens=100,
    temperature_micros=700_000,
    top_p_micros=900_000,
)
JOB = Job(
    id=build_job_id(now_ms=CREATED_MS, entropy=bytes(10)),
    state="running",
    status_reason="running",
    client="client-1",
    owner="key1",
    order=ORDER,
    seed=7,
    prompt_salt=build_salt("prompt"),
    result_salt=build_salt("result"),
    prices=Prices(tokens=3, gpu_seconds=500),
    created_at_ms=CREATED_MS,
    started_at_ms=START_MS,
    attempt=1,
    miner_id="m1",
    provider="m1",
    lease_expires_at_ms=START_MS + 60_000,
)
TERMS = build_terms(JOB, coordinator=COORDINATOR, genesis_hash=GENESIS_HASH)
SIGNATURE = Signature(key_id=build_key("miner").account, role="provider", sig="")
NOW_MS = START_MS + 4_000
MAX_RUN_MS = 600_000


def receipt(now_ms: int = NOW_MS, job: Job = JOB, **report):
    report = {"miner_id": "m1", "result": "Rayleigh scattering.", **report}
    return build_receipt(job, Report(**report), terms=TERMS, now_ms=now_ms, max_run_ms=MAX_RUN_MS)


# --- which miner fits which job ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("capabilities", "model", "serves"),
    [
        (["llama3.2"], "llama3.2", True),
        (["llama3.2"], "LLAMA3.2", True),
        (["LLaMA3.2"], "llama3.2", True),
        (["llama3.2"], "llama3.2:latest", True),
        (["llama3.2:latest"], "llama3.2", True),
        (["llama3.2"], "llama3.2:1b", False),
        (["llama3.2:1b"], "llama3.2", False),
        (["llama3"], "llama3.2", False),
        (["model:llama3.2"], "llama3.2", True),
        (["Model:LLaMA3.2:latest"], "llama3.2", True),
        (["model:llama3.2"], "model:llama3.2", False),
        ([" llama3.2 "], "llama3.2", True),
        (["*"], "anything", True),
        (["llama3.2", "*"], "other", True),
        (["model:*"], "other", True),
        (["mistral", "llama3.2"], "llama3.2", True),
        (["mistral", "llama3.2"], "phi3", False),
        # Words that say nothing about models match any, but only alone.
        *((sorted({word}), "llama3.2", True) for word in GENERIC_CAPABILITIES),
        (["gpu", "text-generation"], "llama3.2", True),
        (["GPU", "Inference"], "llama3.2", True),
        (["gpu", "mistral"], "llama3.2", False),
        (["gpu", "mistral"], "mistral", True),
        ([], "llama3.2", False),
    ],
)
def test_capabilities_fit_models(capabilities, model, serves):
    served = list_served_models(capabilities)
    assert (served is None or normalize_model(model) in served) is serves


# --- ids --------------------------------------------------------------------------------------


@given(st.integers(0, 2**48 - 1), st.binary(min_size=10, max_size=20))
def test_a_job_id_is_read_back_from_its_text(now_ms, entropy):
    job_id = build_job_id(now_ms=now_ms, entropy=entropy)
    assert len(job_id) == JOB_ID_BYTES
    assert parse_job_id(format_job_id(job_id)) == job_id


@given(st.binary(min_size=16, max_size=16), st.binary(min_size=16, max_size=16))
def test_job_ids_sort_by_their_text_as_by_their_bytes(one, two):
    assert (one < two) == (format_job_id(one) < format_job_id(two))


@given(st.text(max_size=40))
def test_no_other_text_is_a_job_id(text):
    parsed = parse_job_id(text)
    assert parsed is None or format_job_id(parsed) == text


@pytest.mark.parametrize(
    "text",
    ["", "job_", "job_" + "0" * 25, "job_" + "0" * 27, "0" * 26, "job_8" + "0" * 25]
    + ["job_" + "0" * 25 + letter for letter in "ILOUilou\n -"],
)
def test_a_text_that_is_almost_a_job_id_is_none(text):
    assert parse_job_id(text) is None


def test_a_registration_is_signed_for_one_network_name_and_account():
    given_facts = {"genesis_hash": GENESIS_HASH, "miner_id": "m1", "account": COORDINATOR}
    message = build_registration_message(**given_facts)
    for field, other in (("genesis_hash", bytes(32)), ("miner_id", "m2"), ("account", "ait1x")):
        assert build_registration_message(**{**given_facts, field: other}) != message


# --- who may do what --------------------------------------------------------------------------

PENDING = replace(JOB, state="pending", miner_id=None, attempt=0, started_at_ms=None)
REQUEUED = replace(JOB, state="pending", miner_id=None, excluded_miner="m1")
HELD_BY_OTHER = replace(JOB, miner_id="m2", attempt=2, excluded_miner="m1")
COMPLETED = replace(JOB, state="completed", receipt_id="rcp_1")
FAILED = replace(JOB, state="failed")
CANCELLED = replace(JOB, state="cancelled")
JOBS = (PENDING, REQUEUED, JOB, HELD_BY_OTHER, COMPLETED, FAILED, CANCELLED)

DONE, GONE = "JOB_ALREADY_COMPLETED", "JOB_ALREADY_CANCELLED"
VERDICTS = {
    check_claimable: (None, None, None, "JOB_ALREADY_CLAIMED", DONE, DONE, GONE),
    check_held: ("JOB_LEASE_LOST", "JOB_LEASE_LOST", None, "JOB_LEASE_LOST", DONE, DONE, GONE),
    check_completable: ("JOB_LEASE_LOST", None, None, "JOB_LEASE_LOST", DONE, DONE, GONE),
}


@pytest.mark.parametrize(
    ("check", "job", "expected"),
    [
        (check, job, verdict)
        for check, verdicts in VERDICTS.items()
        for job, verdict in zip(JOBS, verdicts, strict=True)
    ],
)
def test_what_a_miner_may_do_depends_on_the_state_of_the_job(check, job, expected):
    if expected is None:
        check(job, "m1")
        return
    with pytest.raises(MarketError) as caught:
        check(job, "m1")
    assert caught.value.code == expected
    assert job.state in str(caught.value)


@pytest.mark.parametrize("job", JOBS)
def test_only_a_job_that_ended_otherwise_cannot_be_cancelled(job):
    if job.state in {"completed", "failed"}:
        with pytest.raises(MarketError) as caught:
            check_cancellable(job)
        assert caught.value.code == DONE
    else:
        check_cancellable(job)


# --- what the receipt says --------------------------------------------------------------------


def test_a_receipt_repeats_the_terms_and_digests_the_texts():
    got = receipt(output_token_ids=(1, 2, 3), prompt_tokens=9, completion_tokens=3)
    validate_receipt(got, genesis_hash=GENESIS_HASH)
    assert {field: getattr(got, field) for field in TERMS if field not in {"v", "type"}} == {
        field: value for field, value in TERMS.items() if field not in {"v", "type"}
    }
    assert got.prompt_digest == hash_text(JOB.prompt_salt, ORDER.prompt).hex()
    assert got.result_digest == hash_text(JOB.result_salt, "Rayleigh scattering.").hex()
    assert got.tokens_digest == hash_tokens(JOB.result_salt, (1, 2, 3)).hex()


def test_an_unsigned_report_that_counts_nothing_is_metered_by_the_coordinators_clock():
    got = receipt()
    assert (got.unit_type, got.units_micros, got.price_micros) == ("gpu_seconds", 4_000_000, 2_000)
    assert (got.metered_by, got.prompt_tokens, got.tokens_digest) == ("coordinator", 0, "")


def test_both_token_counts_make_the_units_tokens():
    got = receipt(prompt_tokens=9, completion_tokens=5)
    assert (got.unit_type, got.units_micros, got.price_micros) == ("tokens", 14_000_000, 42)
    assert got.metered_by == "provider"


@pytest.mark.parametrize("counts", [{"prompt_tokens": 9}, {"completion_tokens": 5}])
@pytest.mark.parametrize("unit_type", [None, "tokens", "gpu_seconds"])
def test_one_token_count_alone_is_refused(counts, unit_type):
    with pytest.raises(MarketError, match="expected prompt_tokens and completion_tokens"):
        receipt(unit_type=unit_type, **counts)


def test_tokens_cannot_be_billed_uncounted():
    with pytest.raises(MarketError, match="expected prompt_tokens and completion_tokens"):
        receipt(unit_type="tokens")


def test_seconds_can_be_billed_beside_token_counts():
    got = receipt(
        unit_type="gpu_seconds", units_micros=1_000_001, prompt_tokens=9, completion_tokens=5
    )
    assert (got.units_micros, got.price_micros) == (1_000_001, 500)
    assert (got.prompt_tokens, got.completion_tokens, got.metered_by) == (9, 5, "provider")


PROMPT_LIMIT = len(ORDER.prompt.encode()) + TEMPLATE_TOKENS
RESULT_LIMIT = len("Rayleigh scattering.") + SPECIAL_TOKENS


@pytest.mark.parametrize(
    ("report", "message"),
    [
        ({"prompt_tokens": PROMPT_LIMIT + 1, "completion_tokens": 1}, "prompt_tokens"),
        ({"prompt_tokens": 1, "completion_tokens": RESULT_LIMIT + 1}, "completion_tokens"),
        ({"prompt_tokens": -1, "completion_tokens": 2}, "prompt_tokens"),
        ({"unit_type": "gpu_seconds", "units_micros": 4_000_001}, "units"),
        ({"units_micros": 4_000_001}, "units"),
        ({"units_micros": -1}, "units_micros"),
        (
            {"unit_type": "tokens", "units_micros": 1, "prompt_tokens": 1, "completion_tokens": 1},
            "sum of both",
        ),
        ({"units_micros": 1, "prompt_tokens": 1, "completion_tokens": 1}, "sum of both"),
        ({"output_token_ids": (1, 2), "prompt_tokens": 1, "completion_tokens": 3}, "expected 2"),
        ({"model_digest": "nonsense"}, "model_digest"),
        ({"sampler": "A B"}, "sampler"),
    ],
)
def test_no_miner_can_bill_more_than_text_and_time_allow(report, message):
    with pytest.raises(MarketError, match=message) as caught:
        receipt(**report)
    assert caught.value.code == "VALIDATION_FAILED"


def test_the_bounds_themselves_are_allowed():
    got = receipt(prompt_tokens=PROMPT_LIMIT, completion_tokens=RESULT_LIMIT)
    assert got.units_micros == (PROMPT_LIMIT + RESULT_LIMIT) * 1_000_000
    assert receipt(unit_type="gpu_seconds", units_micros=4_000_000).units_micros == 4_000_000


def test_the_order_bounds_the_answer_too():
    short = replace(JOB, order=replace(ORDER, max_tokens=2))
    with pytest.raises(MarketError, match="completion_tokens: expected at most 2, got 3"):
        receipt(job=short, prompt_tokens=1, completion_tokens=3)


def test_an_unsigned_report_cannot_choose_its_time():
    assert receipt(completed_at_ms=START_MS + 1).completed_at_ms == NOW_MS


def test_a_clock_that_went_back_does_not_make_a_job_end_before_it_began():
    got = receipt(now_ms=START_MS - 60_000)
    assert (got.completed_at_ms, got.units_micros) == (START_MS, 0)


def test_a_clock_that_went_back_leaves_it_to_the_provider_how_long_the_job_ran():
    report = {"now_ms": START_MS - 60_000, "signature": SIGNATURE}
    for ran_ms in (0, 4_000, MAX_RUN_MS):
        got = receipt(completed_at_ms=START_MS + ran_ms, **report)
        assert got.completed_at_ms == START_MS + ran_ms
    for time_ms in (START_MS - 1, START_MS + MAX_RUN_MS + 1):
        with pytest.raises(MarketError, match="completed_at_ms"):
            receipt(completed_at_ms=time_ms, **report)


@pytest.mark.parametrize("time_ms", [START_MS, NOW_MS, NOW_MS + CLOCK_TOLERANCE_MS])
def test_a_signed_report_says_its_own_time(time_ms):
    assert receipt(signature=SIGNATURE, completed_at_ms=time_ms).completed_at_ms == time_ms


@pytest.mark.parametrize("time_ms", [START_MS - 1, NOW_MS + CLOCK_TOLERANCE_MS + 1, None])
def test_a_signed_report_cannot_lie_before_the_start_or_in_the_future(time_ms):
    with pytest.raises(MarketError, match="completed_at_ms"):
        receipt(signature=SIGNATURE, completed_at_ms=time_ms)


@given(
    units=st.none() | st.integers(-10, 10**7),
    prompt=st.none() | st.integers(-2, PROMPT_LIMIT + 2),
    completion=st.none() | st.integers(-2, RESULT_LIMIT + 2),
    kind=st.sampled_from([None, "tokens", "gpu_seconds"]),
    now_ms=st.integers(START_MS - 10_000, START_MS + 20_000),
)
def test_every_receipt_that_is_built_obeys_the_rules_of_the_chain(
    units, prompt, completion, kind, now_ms
):
    report = {
        "unit_type": kind,
        "units_micros": units,
        "prompt_tokens": prompt,
        "completion_tokens": completion,
    }
    got = None
    with contextlib.suppress(MarketError):
        got = receipt(now_ms, **report)
    if got is None:
        return
    validate_receipt(got, genesis_hash=GENESIS_HASH)
    price = JOB.prices.tokens if got.unit_type == "tokens" else JOB.prices.gpu_seconds
    assert got.price_micros == got.units_micros * price // 1_000_000


# --- terms and work order ---------------------------------------------------------------------


def test_the_terms_change_with_everything_they_stand_for():
    others = [
        replace(JOB, id=build_job_id(now_ms=CREATED_MS, entropy=b"x" * 10)),
        replace(JOB, attempt=2),
        replace(JOB, started_at_ms=START_MS + 1),
        replace(JOB, client="client-2"),
        replace(JOB, seed=MAX_INTEGER),
        replace(JOB, prompt_salt=build_salt("other")),
        replace(JOB, order=replace(ORDER, prompt="Why?")),
        replace(JOB, order=replace(ORDER, model="other")),
    ]
    terms = [
        build_terms(job, coordinator=COORDINATOR, genesis_hash=GENESIS_HASH)
        for job in (JOB, *others)
    ]
    assert all(one != two for one, two in itertools.combinations(terms, 2))


def test_a_work_order_holds_what_the_miner_needs_and_the_salts():
    lease = Lease(
        attempt=1, expires_at_ms=1, expires_in_ms=1, run_ends_in_ms=1, heartbeat_interval_ms=0
    )
    order = build_work_order(Claim(job=JOB, lease=lease, terms=TERMS))
    assert order["receipt"] == TERMS
    assert order["unit_prices_micros"] == {"tokens": 3, "gpu_seconds": 500}
    assert decode_base64url(order["prompt_salt"], size_bytes=32) == JOB.prompt_salt
    assert decode_base64url(order["result_salt"], size_bytes=32) == JOB.result_salt
