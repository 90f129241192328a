"""The coordinator's audits: drawn by chance, done by somebody else, signed by both, once."""

import asyncio
from dataclasses import replace

import msgspec
import pytest
from msgspec import structs

from ledger import draws
from ledger.draws import (
    AUDIT_LEASE_MS,
    MAX_AUDIT_AGE_MS,
    MAX_CLOCK_ERROR_MS,
    MAX_TRIES,
    MEASURED,
    AuditReport,
    build_audit,
)
from ledger.errors import MarketError
from ledger.hashing import encode_tokens, hash_tokens
from ledger.jobs import Caller
from ledger.store import draws as draw_store
from ledger.store.chain import ChainStore
from ledger.transaction import Signature, sign_payload
from node.market import audits as module
from tests.builders import build_key
from tests.market_node import MINER, SETTINGS, MarketNode, refused, sign_report

TOKEN_IDS = (17206, 1116, 0, 2**32 - 1)
PRODUCER, AUDITOR, SECOND = (build_key(name) for name in ("miner", "auditor", "second auditor"))
AUDIT_CALLER = Caller(key="key2", client="auditor-key", role="miner")
SECOND_CALLER = Caller(key="key3", client="second-key", role="miner")
MEASURES = {
    "model_digest": "ab" * 32,
    "method": "aitbc-replay-v1",
    "prompt_tokens": 20,
    "tokens": len(TOKEN_IDS),
    "exact_tokens": 4,
    "outside_tokens": 0,
    "max_gap_micros": 0,
    "mean_gap_micros": 0,
    "ending": "end_token",
    "text_matches": True,
    "verdict": "pass",
}


class AuditNode(MarketNode):
    """A market that audits every job."""

    def finish_signed(self, **report) -> str:
        """One job of the producer; returns its receipt id."""
        self.register(key=PRODUCER)
        job = self.submit()
        claim = self.claim(job)
        self.now_ms += 500
        facts = {"output_token_ids": TOKEN_IDS, "prompt_tokens": 20, "completion_tokens": 4}
        signed = sign_report(
            claim, PRODUCER, now_ms=self.now_ms, result="Rayleigh.", **facts | report
        )
        return self.do(self.coordinator.complete(MINER, job.job_id, signed)).payload.receipt_id

    def enlist(self, name="auditor", key=AUDITOR, caller=AUDIT_CALLER, **changes) -> None:
        self.register(name, **{"key": key, "caller": caller, "audits": True} | changes)

    def sweep(self, later_ms: int = 0) -> None:
        self.now_ms += later_ms
        self.do(self.coordinator.sweep())

    def offer(self) -> str:
        """One audit that waits for an auditor; returns its receipt id."""
        receipt_id = self.finish_signed()
        self.seal()
        self.sweep()
        return receipt_id

    def find(self, name="auditor", caller=AUDIT_CALLER):
        return self.do(self.coordinator.find_audit(caller, name, 0))

    def take(self, name="auditor", caller=AUDIT_CALLER):
        audit = self.find(name, caller)
        assert audit is not None
        return self.do(self.coordinator.claim_audit(caller, audit.audit_id, name))

    def report(self, claim, key=AUDITOR, **changes) -> AuditReport:
        """What an auditor signs, built from nothing but its claim."""
        facts = MEASURES | {"audited_at_ms": self.now_ms} | changes
        draft = AuditReport(
            miner_id=claim.audit.miner_id,
            signature=Signature(key_id=key.account, role="auditor", sig=""),
            **facts,
        )
        payload = build_audit(
            claim.audit,
            draft,
            genesis_hash=bytes.fromhex(claim.receipt.genesis),
            coordinator=claim.coordinator,
            answer_tokens=draft.tokens,
            now_ms=draft.audited_at_ms,
        )
        return replace(draft, signature=sign_payload(payload, key, "auditor"))

    def deliver(self, claim, report, caller=AUDIT_CALLER):
        return self.do(self.coordinator.complete_audit(caller, claim.audit.audit_id, report))

    def open_audits(self) -> dict[str, int]:
        return draw_store.count_open_audits(self.store.reader)

    def events(self) -> dict[str, int]:
        return draw_store.count_audits(self.store.reader)


@pytest.fixture
def node(tmp_path):
    node = AuditNode(tmp_path, settings=replace(SETTINGS, audit_rate=1.0))
    node.enlist()
    yield node
    node.close()


# --- from the draw to the chain -----------------------------------------------------------------


def test_an_audit_goes_from_a_completed_job_to_the_chain(node):
    receipt_id = node.offer()
    claim = node.take()
    job = claim.job
    assert (claim.receipt.receipt_id, claim.coordinator) == (receipt_id, node.key.account)
    assert (job.order.prompt, job.result) == ("Why is the sky blue?", "Rayleigh.")
    assert hash_tokens(job.result_salt, TOKEN_IDS).hex() == claim.receipt.tokens_digest
    assert draws.build_audit_order(claim)["output_token_ids"] == TOKEN_IDS
    kicks = node.kicks
    shown = node.deliver(claim, node.report(claim))
    assert (shown.type, shown.finality, node.kicks) == ("audit", "pending", kicks + 1)
    assert [a.id for a in node.views.audits(receipt_id, limit=9)] == [shown.id]
    node.seal()
    (final,) = node.views.audits(receipt_id, limit=9)
    assert (final.id, final.finality) == (shown.id, "final")
    totals = node.coordinator.audit_totals(PRODUCER.account)
    assert (totals.passed, totals.failed, totals.tokens) == (1, 0, 4)
    assert node.events() == {"drawn": 1, "passed": 1, "failed": 0, "expired": 0}
    assert node.verify() == 2
    assert node.find() is None


def test_an_audit_is_offered_only_once_its_receipt_is_final(node):
    node.finish_signed()
    node.sweep()
    assert node.find() is None
    node.seal()
    assert node.find() is None, "the next sweep notes it"
    node.sweep()
    assert node.find() is not None


def test_what_was_drawn_and_claimed_survives_a_restart(node):
    node.offer()
    claim = node.take()
    node.restart()
    again = node.do(node.coordinator.claim_audit(AUDIT_CALLER, claim.audit.audit_id, "auditor"))
    assert again == claim
    node.deliver(claim, node.report(claim))
    node.restart()
    node.seal()
    assert node.verify() == 2


@pytest.mark.parametrize(
    ("rate", "draw", "is_drawn"),
    [(0.0, 0.0, False), (0.05, 0.0499, True), (0.05, 0.05, False), (1.0, 0.999999, True)],
)
def test_jobs_are_drawn_at_the_rate(tmp_path, monkeypatch, rate, draw, is_drawn):
    class Fixed:
        def random(self):
            return draw

    monkeypatch.setattr(module, "_random", Fixed())
    node = AuditNode(tmp_path, settings=replace(SETTINGS, audit_rate=rate))
    try:
        node.finish_signed()
        assert node.events()["drawn"] == is_drawn
    finally:
        node.close()


def test_a_job_without_token_ids_is_not_drawn(node):
    node.finish_signed(output_token_ids=None)
    node.finish()
    assert node.events()["drawn"] == 0


@pytest.mark.parametrize("bound", ["MAX_OPEN_AUDITS", "MAX_OPEN_PER_MODEL"])
def test_while_too_many_audits_are_open_none_is_drawn(node, monkeypatch, bound):
    monkeypatch.setattr(draw_store, bound, 2)
    for _ in range(4):
        node.finish_signed()
    assert node.open_audits() == {"pending": 2, "running": 0}
    assert node.events()["drawn"] == 2


# --- who may ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "caller"),
    [
        ({"audits": False}, AUDIT_CALLER),
        ({"key": None}, AUDIT_CALLER),
        ({"key": PRODUCER}, AUDIT_CALLER),
        ({"caller": MINER}, MINER),
        ({"capabilities": ("another-model",)}, AUDIT_CALLER),
    ],
    ids=["not willing", "no key", "the provider's account", "its API key", "another model"],
)
def test_an_audit_is_offered_to_nobody_who(tmp_path, change, caller):
    node = AuditNode(tmp_path, settings=replace(SETTINGS, audit_rate=1.0))
    try:
        node.enlist(**change)
        node.offer()
        assert node.find(caller=caller) is None
        node.enlist("willing", SECOND, SECOND_CALLER)
        audit = node.find("willing", SECOND_CALLER)
        assert audit is not None
        with refused("AUDIT_NOT_ELIGIBLE"):
            node.do(node.coordinator.claim_audit(caller, audit.audit_id, "auditor"))
    finally:
        node.close()


def test_the_miner_that_gave_the_answer_does_not_audit_it(node):
    node.offer()
    node.register(key=SECOND, caller=MINER, audits=True)  # with another account
    assert node.find("m1", MINER) is None


def test_a_draining_miner_gets_no_audits(node):
    node.offer()
    node.do(node.coordinator.drain(AUDIT_CALLER, "auditor"))
    assert node.find() is None


def test_an_audit_has_one_auditor_at_a_time(node):
    node.offer()
    node.enlist("second", SECOND, SECOND_CALLER)
    claim = node.take()
    assert node.find("second", SECOND_CALLER) is None
    with refused("AUDIT_ALREADY_CLAIMED"):
        node.do(node.coordinator.claim_audit(SECOND_CALLER, claim.audit.audit_id, "second"))
    with refused("AUDIT_LEASE_LOST"):
        node.do(node.coordinator.release_audit(SECOND_CALLER, claim.audit.audit_id, "second"))
    report = replace(node.report(claim), miner_id="second")
    with refused("AUDIT_LEASE_LOST"):
        node.deliver(claim, report, SECOND_CALLER)


def test_nobody_speaks_for_the_miner_of_another_key(node):
    node.offer()
    claim = node.take()
    with refused("AUTH_INSUFFICIENT_SCOPE"):
        node.do(node.coordinator.find_audit(SECOND_CALLER, "auditor", 0))
    with refused("AUTH_INSUFFICIENT_SCOPE"):
        node.deliver(claim, node.report(claim), SECOND_CALLER)


@pytest.mark.parametrize("audit_id", ["", "aud_", "job_" + "0" * 26, "aud_" + "0" * 26, "aud_x"])
def test_an_unknown_audit_is_told(node, audit_id):
    with refused("AUDIT_NOT_FOUND"):
        node.do(node.coordinator.claim_audit(AUDIT_CALLER, audit_id, "auditor"))


# --- giving back, and time ----------------------------------------------------------------------


def test_an_audit_that_is_given_back_goes_to_somebody_else(node):
    node.offer()
    claim = node.take()
    node.do(node.coordinator.release_audit(AUDIT_CALLER, claim.audit.audit_id, "auditor"))
    assert node.find() is None
    node.enlist("second", SECOND, SECOND_CALLER)
    again = node.take("second", SECOND_CALLER)
    assert again.audit.id == claim.audit.id
    node.deliver(again, node.report(again, SECOND), SECOND_CALLER)


def test_a_lease_runs_out(node):
    node.offer()
    claim = node.take()
    assert claim.lease.expires_in_ms == AUDIT_LEASE_MS
    node.sweep(AUDIT_LEASE_MS - 1)
    assert node.open_audits() == {"pending": 0, "running": 1}
    node.sweep(1)
    assert node.open_audits() == {"pending": 1, "running": 0}
    with refused("AUDIT_LEASE_LOST"):
        node.deliver(claim, node.report(claim))
    assert node.find() is None, "who lost it does not get it again"


def test_an_audit_is_tried_a_few_times(node):
    node.offer()
    for number in range(MAX_TRIES):
        name, caller = (
            f"auditor {number}".replace(" ", "-"),
            structs.replace(AUDIT_CALLER, key=f"k{number}"),
        )
        node.enlist(name, build_key(name), caller)
        claim = node.take(name, caller)
        node.do(node.coordinator.release_audit(caller, claim.audit.audit_id, name))
    assert node.open_audits() == {"pending": 0, "running": 0}
    assert node.events()["expired"] == 1


@pytest.mark.parametrize("is_claimed", [False, True])
def test_an_audit_that_nobody_does_expires(node, is_claimed):
    node.offer()
    node.now_ms += MAX_AUDIT_AGE_MS - AUDIT_LEASE_MS // 2
    claim = node.take() if is_claimed else None
    node.sweep(AUDIT_LEASE_MS // 2 + 500)
    assert node.find() is None
    assert node.events() == {"drawn": 1, "passed": 0, "failed": 0, "expired": 1}
    if claim:
        with refused("AUDIT_EXPIRED"):
            node.deliver(claim, node.report(claim))


def test_an_audit_ends_with_the_texts_of_its_job(tmp_path):
    settings = replace(SETTINGS, audit_rate=1.0, text_retention_ms=60_000)
    node = AuditNode(tmp_path, settings=settings)
    try:
        node.enlist()
        node.offer()
        claim = node.take()
        node.sweep(60_000)
        job = node.coordinator.job(claim.job.job_id)
        assert (job.texts_purged_at_ms, job.output_token_ids) == (node.now_ms, None)
        with refused("AUDIT_EXPIRED"):
            node.deliver(claim, node.report(claim))
        with refused("AUDIT_EXPIRED"):
            node.do(node.coordinator.claim_audit(AUDIT_CALLER, claim.audit.audit_id, "auditor"))
        assert encode_tokens(TOKEN_IDS) not in (tmp_path / "node.db").read_bytes()
    finally:
        node.close()


def test_an_audit_that_has_ended_is_forgotten_after_a_while(node):
    node.offer()
    claim = node.take()
    node.deliver(claim, node.report(claim))
    node.sweep(draw_store.KEPT_MS - 1)
    assert node.store.reader.execute("SELECT count(*) FROM audits").fetchone()[0] == 1
    node.sweep(1)
    assert node.store.reader.execute("SELECT count(*) FROM audits").fetchone()[0] == 0


# --- what is delivered --------------------------------------------------------------------------


def test_the_same_report_again_is_harmless(node):
    node.offer()
    claim = node.take()
    report = node.report(claim)
    first = node.deliver(claim, report)
    assert node.deliver(claim, report) == first
    node.seal()
    assert node.deliver(claim, report).id == first.id
    with refused("AUDIT_ALREADY_COMPLETED"):
        node.deliver(claim, node.report(claim, verdict="fail"))
    assert node.events()["passed"] == 1


@pytest.mark.parametrize("name", MEASURED)
def test_a_signature_over_anything_else_is_refused_with_what_was_expected(node, name):
    node.offer()
    claim = node.take()
    other = {"verdict": "fail", "ending": "early", "method": "x", "model_digest": "cd" * 32}
    changed = other.get(name, False if name == "text_matches" else 1)
    report = node.report(claim, **({"exact_tokens": 0} if name == "outside_tokens" else {}))
    with pytest.raises(MarketError) as caught:
        node.deliver(claim, replace(report, **{name: changed}))
    assert caught.value.code in {"AUDIT_MISMATCH", "VALIDATION_FAILED"}
    if caught.value.code == "AUDIT_MISMATCH":
        assert caught.value.expected[name] == changed
    assert node.open_audits() == {"pending": 0, "running": 1}


def test_another_key_than_the_auditors_does_not_sign(node):
    node.offer()
    claim = node.take()
    with refused("AUDIT_MISMATCH"):
        node.deliver(claim, node.report(claim, SECOND))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"tokens": 3}, "tokens"),
        ({"tokens": 5}, "tokens"),
        ({"audited_at_ms": 0}, "audited_at_ms"),
    ],
)
def test_measures_that_do_not_fit_the_answer_are_refused(node, changes, field):
    node.offer()
    claim = node.take()
    with pytest.raises(MarketError, match=f"^{field}: expected") as caught:
        node.deliver(claim, replace(node.report(claim), **changes))
    assert caught.value.code == "VALIDATION_FAILED"


def test_an_auditors_clock_may_be_off_by_a_day(node):
    node.offer()
    claim = node.take()
    node.deliver(claim, node.report(claim, audited_at_ms=node.now_ms - MAX_CLOCK_ERROR_MS))


def test_a_failed_audit_draws_one_more_by_somebody_else_once(node):
    receipt_id = node.offer()
    first = node.take()
    node.deliver(first, node.report(first, verdict="fail", ending="early"))
    assert node.find() is None, "not the same auditor again"
    node.enlist("twin", SECOND, AUDIT_CALLER)
    assert node.find("twin") is None, "nor another miner of its API key"
    node.enlist("second", SECOND, SECOND_CALLER)
    second = node.take("second", SECOND_CALLER)
    node.deliver(second, node.report(second, SECOND, verdict="fail"), SECOND_CALLER)
    node.enlist("third", build_key("third"), structs.replace(AUDIT_CALLER, key="key4"))
    assert node.find("third", structs.replace(AUDIT_CALLER, key="key4")) is None
    node.seal()
    assert len(node.views.audits(receipt_id, limit=9)) == 2
    assert node.events() == {"drawn": 2, "passed": 0, "failed": 2, "expired": 0}
    assert node.verify() == 3


def test_a_report_of_a_coordinator_that_left_the_set_is_refused_for_now(node, monkeypatch):
    node.offer()
    claim = node.take()
    tip = node.chain.tip()
    nobody = replace(tip, authority_set=replace_members(tip))
    monkeypatch.setattr(ChainStore, "tip", lambda _self: nobody)
    with refused("NODE_IS_FOLLOWER"):
        node.deliver(claim, node.report(claim))


def replace_members(tip):
    (member,) = tip.authority_set.members
    other = msgspec.structs.replace(member, account=SECOND.account)
    return msgspec.structs.replace(tip.authority_set, members=(other,))


# --- waiting ------------------------------------------------------------------------------------


def test_whoever_waits_is_answered_when_an_audit_is_offered(node):
    node.finish_signed()
    node.seal()

    async def wait():
        node.coordinator.bind()
        waiting = asyncio.ensure_future(
            node.coordinator.find_audit(AUDIT_CALLER, "auditor", 30_000)
        )
        await asyncio.sleep(0)
        assert node.coordinator.audit_waiting.waiting == 1
        await node.coordinator.sweep()
        return await waiting

    assert node.do(wait()) is not None
