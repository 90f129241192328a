"""Audits over REST: what an auditor gets and sends, and what everybody may read."""

from dataclasses import replace

import msgspec
import pytest

from ledger.encoding import decode_base64url
from ledger.hashing import hash_text, hash_tokens
from ledger.transaction import AuditPayload, ReceiptPayload, sign_payload
from tests.api_node import SETTINGS, ApiNode, build_registration
from tests.builders import build_key

TOKEN_IDS = [17206, 1116, 0, 2**32 - 1]
MINER, AUDITOR = build_key("miner"), build_key("auditor")
MEASURES = {
    "model_digest": "ab" * 32,
    "method": "aitbc-replay-v1",
    "prompt_tokens": 20,
    "tokens": 4,
    "exact_tokens": 3,
    "outside_tokens": 0,
    "max_gap_micros": 250_000,
    "mean_gap_micros": 3_000,
    "ending": "end_token",
    "text_matches": True,
    "verdict": "pass",
}


class Audited:
    """A node that audits everything; the producer's and the auditor's requests."""

    def __init__(self, root) -> None:
        self.node = ApiNode(root, settings=replace(SETTINGS, audit_rate=1.0))
        self.auditor = {"X-Api-Key": self.node.create_key("miner", "auditor")}
        self.client = {"X-Api-Key": self.node.keys["client"]}
        self.miner = {"X-Api-Key": self.node.keys["miner"]}

    def finish(self, client) -> tuple[str, str]:
        """One job with token ids; returns the ids of job and receipt, once that is final."""
        job = client.post("/v1/jobs", json={"prompt": "Why?"}, headers=self.client).json()
        name = job["job_id"]
        body = {"miner_id": "m1", "capabilities": ["*"]}
        client.post("/v1/miners/register", json=body, headers=self.miner)
        client.post(f"/v1/jobs/{name}/claim", json={"miner_id": "m1"}, headers=self.miner)
        report = {
            "miner_id": "m1",
            "result": "Rayleigh.",
            "prompt_tokens": 20,
            "completion_tokens": 4,
            "output_token_ids": TOKEN_IDS,
            "finish_reason": "stop",
        }
        done = client.post(f"/v1/jobs/{name}/complete", json=report, headers=self.miner)
        self.node.wait_sealed()
        client.portal.call(self.node.coordinator.sweep)
        return name, done.json()["receipt_id"]

    def register(self, client) -> None:
        body = build_registration(self.node, "a1", AUDITOR) | {"audits": True}
        answer = client.post("/v1/miners/register", json=body, headers=self.auditor)
        assert answer.json()["audits"] is True

    def look(self, client):
        return client.get("/v1/audits/available?miner_id=a1", headers=self.auditor)

    def claim(self, client) -> dict:
        audit = self.look(client).json()["audit_id"]
        answer = client.post(
            f"/v1/audits/{audit}/claim", json={"miner_id": "a1"}, headers=self.auditor
        )
        assert answer.status_code == 200, answer.text
        return answer.json()

    def report(self, claim, **changes) -> dict:
        """Signed by whoever knows the protocol and this answer."""
        measures = MEASURES | {"audited_at_ms": self.node.now_ms} | changes
        payload = AuditPayload(
            genesis=claim["genesis"],
            receipt_id=claim["receipt"]["receipt_id"],
            auditor=claim["auditor"],
            coordinator=claim["coordinator"],
            **measures,
        )
        signature = sign_payload(payload, AUDITOR, "auditor")
        signed = {"alg": "Ed25519", "key_id": signature.key_id, "sig": signature.sig}
        return {"miner_id": "a1", **measures, "signature": signed}

    def complete(self, client, claim, report):
        path = f"/v1/audits/{claim['audit_id']}/complete"
        return client.post(path, json=report, headers=self.auditor)


@pytest.fixture
def audited(tmp_path):
    audited = Audited(tmp_path)
    audited.node.start_sealing()
    yield audited
    audited.node.close()


def test_an_auditor_that_knows_only_the_api_audits_an_answer(audited):
    with audited.node.client("strict") as client:
        audited.register(client)
        _, receipt_id = audited.finish(client)
        offer = audited.look(client).json()
        assert (offer["receipt_id"], offer["model"]) == (receipt_id, "llama3.2")
        claim = audited.claim(client)
        receipt = msgspec.convert(claim["receipt"], ReceiptPayload)
        prompt_salt, salt = (
            decode_base64url(claim[f"{name}_salt"], size_bytes=32) for name in ("prompt", "result")
        )
        assert hash_text(prompt_salt, claim["prompt"]).hex() == receipt.prompt_digest
        assert hash_text(salt, claim["result"]).hex() == receipt.result_digest
        assert hash_tokens(salt, claim["output_token_ids"]).hex() == receipt.tokens_digest
        assert claim["params"]["seed"] == receipt.seed
        assert claim["finish_reason"] == "stop"
        assert claim["lease"]["expires_in_ms"] == 600_000
        report = audited.report(claim)
        first = audited.complete(client, claim, report)
        assert first.status_code == 200, first.text
        shown = first.json()
        assert shown.items() >= (MEASURES | {"receipt_id": receipt_id}).items()
        assert shown["status"] == "pending"
        assert (
            client.get(f"/v1/receipts/{receipt_id}/audits").json()[0]["auditor"] == AUDITOR.account
        )
        audited.node.wait_sealed()
        (final,) = client.get(f"/v1/receipts/{receipt_id}/audits").json()
        assert final == shown | {"status": "final", "block_height": 2}
        assert audited.complete(client, claim, report).json() == final
        transaction = client.get(f"/v1/transactions/{final['transaction_id']}").json()
        assert (transaction["type"], transaction["verdict"]) == ("audit", "pass")
        assert audited.look(client).json() is None
    assert audited.node.verify() == 2


def test_what_audits_come_to_is_shown_with_miner_and_account(audited):
    with audited.node.client("strict") as client:
        audited.register(client)
        audited.finish(client)
        claim = audited.claim(client)
        audited.complete(client, claim, audited.report(claim)).raise_for_status()
        audited.node.wait_sealed()
        sums = {
            "passed": 1,
            "failed": 0,
            "tokens": 4,
            "exact_tokens": 3,
            "exact_rate": 0.75,
            "mean_gap": 0.003,
            "suspect": False,
        }
        assert client.get("/v1/miners/m1").json()["audited"] == sums
        account = client.get("/v1/accounts/m1/audits")
        assert account.json().items() >= ({"account": "m1"} | sums).items()
        assert len(account.json()["audits"]) == 1
        page = client.get("/v1/accounts/m1/audits?limit=1")
        following = page.links["next"]["url"]
        assert client.get(following).json()["audits"] == []
        assert client.get("/v1/accounts/nobody/audits").json()["passed"] == 0
        assert client.get("/v1/accounts/-/audits").status_code == 400


def test_texts_and_salts_of_an_audit_are_for_its_auditor_alone(audited):
    with audited.node.client("strict") as client:
        audited.register(client)
        job, receipt_id = audited.finish(client)
        claim = audited.claim(client)
        private = [claim["prompt_salt"], claim["result_salt"], "Rayleigh.", "17206"]
        audited.complete(client, claim, audited.report(claim)).raise_for_status()
        for path in (
            f"/v1/receipts/{receipt_id}/audits",
            "/v1/accounts/m1/audits",
            "/v1/miners/m1",
            "/explorer/transactions",
            f"/v1/jobs/{job}",
        ):
            text = client.get(path).text
            assert not [secret for secret in private if secret in text]
        # Having audited a job gives no right to read it.
        assert "Rayleigh." not in client.get(f"/v1/jobs/{job}", headers=audited.auditor).text


def test_the_owner_gets_the_token_ids_with_the_salts(audited):
    with audited.node.client("strict") as client:
        job, _ = audited.finish(client)
        shown = client.get(f"/v1/jobs/{job}", headers=audited.client).json()
        assert shown["disclosure"]["output_token_ids"] == TOKEN_IDS
        (listed,) = client.get("/v1/jobs", headers=audited.client).json()
        assert "output_token_ids" not in listed["disclosure"]
        assert listed["disclosure"]["result_salt"] == shown["disclosure"]["result_salt"]
        assert "disclosure" not in client.get(f"/v1/jobs/{job}").json()


def test_a_wrong_signature_is_refused_with_what_was_expected(audited):
    with audited.node.client("strict") as client:
        audited.register(client)
        audited.finish(client)
        claim = audited.claim(client)
        report = audited.report(claim) | {"verdict": "fail"}
        answer = audited.complete(client, claim, report)
        assert (answer.status_code, answer.json()["error_code"]) == (400, "AUDIT_MISMATCH")
        expected = msgspec.convert(answer.json()["expected"], AuditPayload)
        assert (expected.verdict, expected.auditor) == ("fail", AUDITOR.account)


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"model_digest": ""}, "model_digest"),
        ({"method": "Replay"}, "method"),
        ({"tokens": 0}, "tokens"),
        ({"tokens": 5}, "tokens"),
        ({"exact_tokens": 2**63}, "exact_tokens"),
        ({"mean_gap_micros": 10**9 + 1}, "mean_gap_micros"),
        ({"ending": "soon"}, "ending"),
        ({"verdict": "passed"}, "verdict"),
        ({"text_matches": "yes"}, "text_matches"),
        ({"audited_at_ms": 1}, "audited_at_ms"),
        ({"signature": {"alg": "none", "key_id": "", "sig": ""}}, "signature.alg"),
        ({"signature": None}, "signature"),
    ],
    ids=str,
)
def test_a_report_that_is_none_is_refused_by_its_field(audited, changes, path):
    with audited.node.client("strict") as client:
        audited.register(client)
        audited.finish(client)
        claim = audited.claim(client)
        answer = audited.complete(client, claim, audited.report(claim) | changes)
        assert (answer.status_code, answer.json()["error_code"]) == (400, "VALIDATION_FAILED")
        assert answer.json()["errors"][0]["path"] == path


def test_an_audit_is_given_back(audited):
    with audited.node.client("strict") as client:
        audited.register(client)
        audited.finish(client)
        claim = audited.claim(client)
        path = f"/v1/audits/{claim['audit_id']}/release"
        body = {"miner_id": "a1", "reason": "no such model here"}
        assert client.post(path, json=body, headers=audited.auditor).status_code == 204
        assert audited.look(client).json() is None
        again = client.post(path, json=body, headers=audited.auditor)
        assert (again.status_code, again.json()["error_code"]) == (409, "AUDIT_LEASE_LOST")


def test_strangers_and_clients_do_no_audits(audited):
    with audited.node.client("strict") as client:
        audited.register(client)
        path = "/v1/audits/available?miner_id=a1"
        assert client.get(path).status_code == 401
        assert client.get(path, headers=audited.client).status_code == 403
        assert client.get(path, headers=audited.miner).status_code == 403
        assert client.get("/v1/audits/available", headers=audited.auditor).status_code == 400
        body = {"miner_id": "a1"}
        for name in ("aud_" + "0" * 26, "x"):
            answer = client.post(f"/v1/audits/{name}/claim", json=body, headers=audited.auditor)
            assert (answer.status_code, answer.json()["error_code"]) == (404, "AUDIT_NOT_FOUND")


def test_audits_of_an_unknown_receipt_are_not_found(audited):
    with audited.node.client() as client:
        for name in ("rcp_" + "a" * 26, "x"):
            answer = client.get(f"/v1/receipts/{name}/audits")
            assert (answer.status_code, answer.json()["error_code"]) == (404, "RECEIPT_NOT_FOUND")
