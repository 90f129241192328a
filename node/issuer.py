"""The coordinator's signature: over receipts that `ledger.metering` decides, over its audits."""

from __future__ import annotations

import msgspec

from ledger.errors import InvalidSignatureError, InvalidTransactionError, MarketError
from ledger.jobs import Job, Report
from ledger.keys import KeyPair, is_account
from ledger.metering import build_receipt, build_terms
from ledger.rules import verify_transaction
from ledger.store.chain import ChainStore
from ledger.transaction import (
    AuditPayload,
    Signature,
    Transaction,
    sign_payload,
    sign_transaction,
)


class ReceiptIssuer:
    """Signs receipts with the coordinator's key, after checking the provider's signature."""

    def __init__(self, *, chain: ChainStore, key: KeyPair, max_run_ms: int) -> None:
        """`max_run_ms` is the longest run of a job that is paid for."""
        self._max_run_ms = max_run_ms
        self._chain = chain
        self._key = key
        self._genesis_hash = chain.tip().genesis_hash
        self.account = key.account

    def build_terms(self, job: Job) -> dict[str, object]:
        """Return the receipt fields that are fixed by the claim of `job`."""
        return build_terms(
            job,
            coordinator=self._key.account,
            genesis_hash=self._genesis_hash,
        )

    def vouch(self, payload: AuditPayload) -> Signature:
        """Sign that this coordinator drew an audit."""
        return sign_payload(payload, self._key, "coordinator")

    def issue(self, job: Job, report: Report, *, now_ms: int) -> Transaction:
        """Rebuild what the miner must have signed, sign it too, and check the whole envelope."""
        _check_signer(report, job)
        payload = build_receipt(
            job,
            report,
            terms=self.build_terms(job),
            now_ms=now_ms,
            max_run_ms=self._max_run_ms,
        )
        provider = () if report.signature is None else (report.signature,)
        try:
            transaction = sign_transaction(payload, self._key, "coordinator", provider)
            verify_transaction(transaction, self._chain.recent_tip())
        except InvalidSignatureError as error:
            raise MarketError(
                "RECEIPT_MISMATCH",
                f"{error}: it is not over this receipt; sign the expected payload",
                expected=msgspec.to_builtins(payload),
            ) from error
        except InvalidTransactionError as error:
            raise MarketError("VALIDATION_FAILED", str(error)) from error
        return transaction


def _check_signer(report: Report, job: Job) -> None:
    """A provider that had a key when it claimed must sign; one without cannot."""
    expected = job.provider if is_account(job.provider or "") else None
    signer = report.signature.key_id if report.signature else None
    if signer != expected:
        raise MarketError(
            "RECEIPT_INVALID_SIGNATURE",
            f"signature: expected one by {expected or 'nobody'}, as miner {report.miner_id} was "
            f"registered when it claimed, got one by {signer or 'nobody'}",
        )
