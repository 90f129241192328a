"""Every error of the ledger, and whose fault it is.

    LedgerError
    ├── EncodingError               bytes that are not the one canonical form of a value
    ├── InvalidKeyError             an account string or key file that is not one
    ├── InvalidTransactionError     an envelope that breaks a rule of its type
    │   └── InvalidSignatureError   a signature that does not verify, or the wrong signers
    ├── InvalidBlockError           a header or body that does not extend the chain
    │   └── InvalidCertificateError a certificate without a quorum of valid votes
    ├── InvalidMessageError         a consensus message that is malformed or of another network
    ├── InvalidProofError           a proof bundle in which a claim fails
    ├── InvalidNoteError            a signed note or checkpoint that is malformed or not signed so
    ├── CheckpointRefusedError      a signed checkpoint that a witness does not co-sign
    │   └── ConflictError           one that contradicts what the witness has verified
    ├── StatementTooLongError       a period with more lines than one statement holds
    ├── MarketError                 a request that the job market refuses
    │   └── InvalidFieldError       one field of it, by name
    ├── HistoryMissingError         a question about blocks that are still being fetched
    └── StoreError                  our side: a database file that is missing, foreign or damaged

All but StoreError blame the bytes or the caller and carry a sentence of the form "rule: expected
…, got …" that is safe to show. Only the faces turn these into HTTP statuses or exit codes.
"""

from __future__ import annotations

from collections.abc import Mapping


class LedgerError(Exception):
    """Root of the tree. Never raised itself."""


class EncodingError(LedgerError):
    """Bytes are not canonical, or a value has no canonical form."""


class InvalidKeyError(LedgerError):
    """Not an `ait1…` account, or not a key file."""


class InvalidTransactionError(LedgerError):
    """An envelope breaks a rule of its transaction type."""


class InvalidSignatureError(InvalidTransactionError):
    """A signature does not verify, is missing, or comes from somebody without the role."""


class InvalidBlockError(LedgerError):
    """A header or body does not extend the chain it claims to extend."""


class InvalidCertificateError(InvalidBlockError):
    """A finality certificate lacks a quorum of valid, distinct votes."""


class InvalidMessageError(LedgerError):
    """A consensus message is not one, or belongs to another network."""


class InvalidProofError(LedgerError):
    """A Merkle path or proof bundle does not show what it claims."""


class InvalidNoteError(LedgerError):
    """A signed note or checkpoint is malformed, or a signature on it is missing or wrong."""


class CheckpointRefusedError(LedgerError):
    """A well signed checkpoint is not co-signed: it is too old, or too new for this witness."""


class ConflictError(CheckpointRefusedError):
    """A well signed checkpoint contradicts the verified chain, or an earlier checkpoint."""


class StatementTooLongError(LedgerError):
    """A period holds more lines than one statement; a shorter one has to be asked for.

    `fits_until_ms` is the latest end at which it fits, None where one block alone is too much.
    """

    def __init__(self, message: str, *, fits_until_ms: int | None) -> None:
        super().__init__(message)
        self.fits_until_ms = fits_until_ms


class MarketError(LedgerError):
    """The job market refuses a request: unknown, not allowed, or in the wrong state.

    `code` is one of the REST API's closed set of error codes, such as JOB_ALREADY_CLAIMED;
    `expected` shows a signer the payload that it should have signed; `retry_after_s` says when the
    same request may succeed, where that is known.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        expected: Mapping[str, object] | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.expected = expected
        self.retry_after_s = retry_after_s


class InvalidFieldError(MarketError):
    """The market refuses the value of one field or parameter (VALIDATION_FAILED)."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__("VALIDATION_FAILED", f"{field}: {reason}")
        self.field = field
        self.reason = reason


class HistoryMissingError(LedgerError):
    """This node began at a pinned checkpoint, and has not fetched all that is below it yet."""


class StoreError(LedgerError):
    """A database file is missing, belongs to another network, or fails its checks."""
