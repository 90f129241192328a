"""What transactions say: a job done, an audit of it, the next authority set, a double vote.

A payload is one of a closed, tagged union: `type` names which, others are refused. Every payload
names its genesis, so it cannot be replayed on another network. The fields' bounds are stated here;
what they may say together, and who must sign, stands with the rules of each type: `rules.py`,
`audits.py`, `changes.py`, `evidence.py`.

Text never enters a payload: prompts, results and token ids appear as salted digests.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from ledger.authorities import AuthoritySet
from ledger.encoding import MAX_INTEGER, Count, Hex32, OptionalHex32

MICROS = 1_000_000
"""Micros in one unit or one price."""
MAX_ANSWER_TOKENS = 1_000_000
"""Of one answer."""
MAX_MEAN_GAP_MICROS = 1_000_000_000
"""Of one audit: so the sum over all audits of an account stays an integer of 64 bits."""

Identifier = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:@-]{0,127}\Z")]
"""A client, or a miner without a key: letters, digits and `_ . : @ -`, at most 128."""
JobId = Annotated[str, msgspec.Meta(pattern=r"^job_[0-9A-HJKMNP-TV-Z]{26}\Z")]
ReceiptId = Annotated[str, msgspec.Meta(pattern=r"^rcp_[a-z2-7]{26}\Z")]
ModelName = Annotated[
    str, msgspec.Meta(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]*\Z")
]
AccountText = Annotated[str, msgspec.Meta(max_length=90)]
"""Where an account stands; whether it is one, the rules decide."""
SignatureText = Annotated[str, msgspec.Meta(max_length=86)]
"""An Ed25519 signature as unpadded base64url."""
BlockHeight = Annotated[int, msgspec.Meta(ge=1, le=MAX_INTEGER)]

TokenCount = Annotated[int, msgspec.Meta(ge=0, le=MAX_ANSWER_TOKENS)]

VoteKind = Literal["notarize", "nullify", "finalize"]
Ending = Literal["end_token", "stop_sequence", "max_tokens", "context", "early"]
Verdict = Literal["pass", "fail"]


class ReceiptPayload(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag_field="type",
    tag="receipt",
):
    """A completed job: who ran what for whom, how much of it, at what price."""

    v: Literal[1] = 1
    genesis: Hex32
    receipt_id: ReceiptId
    """Fixed by genesis, coordinator and job: a job has one receipt at most."""
    job_id: JobId
    attempt: Annotated[int, msgspec.Meta(ge=1, le=1000)]
    client: Identifier
    provider: Identifier
    """The miner's account, or the name of a miner that has no key."""
    coordinator: Identifier
    model: ModelName
    model_digest: OptionalHex32
    """BLAKE3 over the manifest of the model's files, as the provider reports it."""
    prompt_digest: Hex32
    result_digest: Hex32
    tokens_digest: OptionalHex32
    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=MAX_ANSWER_TOKENS)]
    temperature_micros: Annotated[int, msgspec.Meta(ge=0, le=2 * MICROS)]
    top_p_micros: Annotated[int, msgspec.Meta(ge=1, le=MICROS)]
    seed: Count
    """Chosen by the client or drawn by the coordinator, never by the provider."""
    sampler: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9.-]{0,64}\Z")]
    """Name of the sampling procedure, or empty where the provider names none."""
    prompt_tokens: Count
    completion_tokens: Count
    unit_type: Literal["gpu_seconds", "tokens"]
    units_micros: Count
    price_micros: Count
    started_at_ms: Count
    completed_at_ms: Count
    metered_by: Literal["coordinator", "provider"]


class AuditPayload(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag_field="type",
    tag="audit",
):
    """What somebody other than the provider found who replayed the answer of one receipt."""

    v: Literal[1] = 1
    genesis: Hex32
    receipt_id: ReceiptId
    auditor: AccountText
    coordinator: AccountText
    """The receipt's: it vouches that it drew this audit, and chose the auditor."""
    model_digest: Hex32
    """Of the auditor's model, which need not be the receipt's."""
    method: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9.-]{1,64}\Z")]
    """How it was measured and judged."""
    prompt_tokens: Count
    """As the auditor counts them."""
    tokens: Annotated[int, msgspec.Meta(ge=1, le=MAX_ANSWER_TOKENS)]
    """Output tokens that were replayed."""
    exact_tokens: TokenCount
    """Of these, how many the auditor would have chosen itself."""
    outside_tokens: TokenCount
    """Of these, how many the auditor's model could not have chosen at all."""
    max_gap_micros: Count
    """The largest distance between the score of a token and that of the auditor's choice."""
    mean_gap_micros: Annotated[int, msgspec.Meta(ge=0, le=MAX_MEAN_GAP_MICROS)]
    ending: Ending
    """Why the answer ended; `early` is for no reason that the auditor can see."""
    text_matches: bool
    """Whether the tokens spell the text of the result."""
    verdict: Verdict
    audited_at_ms: Count


class AuthoritySetPayload(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag_field="type",
    tag="authority_set",
):
    """The authority set that certifies the block after the one this stands in, and those above."""

    v: Literal[1] = 1
    genesis: Hex32
    authority_set: AuthoritySet
    """The whole next set; its epoch is one above the current one's."""
    expires_height: BlockHeight
    """The last block this may stand in: signatures that nobody used do not stay valid for ever."""


class SignedVote(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One of two contradicting votes. Height, view and voter stand once beside them."""

    kind: VoteKind
    block_hash: OptionalHex32
    """Empty in a nullify vote."""
    sig: SignatureText


class EvidencePayload(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag_field="type",
    tag="evidence",
):
    """Two votes by one authority in one view of one height that no honest member signs both."""

    v: Literal[1] = 1
    genesis: Hex32
    accused: AccountText
    height: BlockHeight
    view: Count
    first: SignedVote
    second: SignedVote
    """Sorted: (kind, block_hash) of `first` is below that of `second`."""


Payload = ReceiptPayload | AuditPayload | AuthoritySetPayload | EvidencePayload
"""Every payload type this version knows; others are refused."""


def name_type(payload: Payload) -> str:
    """Return the `type` of a payload, as it is signed."""
    return str(type(payload).__struct_config__.tag)


def find_receipt_id(payload: Payload) -> str | None:
    """Return the receipt id of a receipt, which the chain holds once; None of other types."""
    return payload.receipt_id if isinstance(payload, ReceiptPayload) else None


def find_unique_name(payload: Payload) -> str | None:
    """Return what the chain holds once besides the transaction: a receipt, an auditor's audit.

    Others are unique by their transaction id alone.
    """
    if isinstance(payload, AuditPayload):
        return f"{payload.receipt_id} {payload.auditor}"
    return find_receipt_id(payload)
