"""A receipt's signed facts in reading order, and the steps from its leaf to the tree root."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from explorer_ui.format import count, decimal, duration, money, units
from ledger.transaction import (
    AuditPayload,
    AuthoritySetPayload,
    EvidencePayload,
    Payload,
    ReceiptPayload,
)
from ledger.views import InclusionView

Kind = Literal["account", "code", "filter", "text", "time"]
"""How a value is shown: as a link to an account, to be copied, as a link to a narrowed list, as it
is, or as a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One line of the table of signed facts."""

    label: str
    value: str | int
    """Untrusted, except for times, which are integer milliseconds."""
    kind: Kind = "text"
    parameter: str = ""
    """Of a `filter`: the list's query parameter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PathStep:
    """One sibling on the way up."""

    side: Literal["left", "right"]
    """Where the sibling stands when the two are hashed together."""
    hash: str


def list_facts(payload: Payload) -> list[tuple[str, list[Fact]]]:
    """Return every signed field but version and type, grouped under headings."""
    if isinstance(payload, AuthoritySetPayload):
        return _list_change(payload)
    if isinstance(payload, EvidencePayload):
        return _list_evidence(payload)
    if isinstance(payload, AuditPayload):
        return _list_audit(payload)
    return _list_receipt(payload)


def _list_receipt(payload: ReceiptPayload) -> list[tuple[str, list[Fact]]]:
    unknown = "not stated"
    return [
        ("Who", [
            Fact(label="Client", value=payload.client, kind="account"),
            Fact(label="Miner", value=payload.provider, kind="account"),
            Fact(label="Coordinator", value=payload.coordinator, kind="account"),
        ]),
        ("What", [
            Fact(label="Job", value=payload.job_id, kind="code"),
            Fact(label="Attempt", value=payload.attempt),
            Fact(label="Model", value=payload.model, kind="filter", parameter="model"),
            Fact(label="Model digest", value=payload.model_digest or unknown, kind="code"),
            Fact(label="Prompt digest", value=payload.prompt_digest, kind="code"),
            Fact(label="Result digest", value=payload.result_digest, kind="code"),
            Fact(label="Token ids digest", value=payload.tokens_digest or unknown, kind="code"),
        ]),
        ("How", [
            Fact(label="At most", value=f"{payload.max_tokens:,} new tokens"),
            Fact(label="Temperature", value=decimal(payload.temperature_micros)),
            Fact(label="Top-p", value=decimal(payload.top_p_micros)),
            Fact(label="Seed", value=str(payload.seed)),
            Fact(label="Sampler", value=payload.sampler or unknown),
        ]),
        ("How much", [
            Fact(label="Prompt", value=units(payload.prompt_tokens * 1_000_000, "tokens")),
            Fact(label="Answer", value=units(payload.completion_tokens * 1_000_000, "tokens")),
            Fact(label="Billed", value=units(payload.units_micros, payload.unit_type)),
            Fact(label="Metered by", value=f"the {payload.metered_by}"),
            Fact(label="Price", value=money(payload.price_micros)),
        ]),
        ("When", [
            Fact(label="Started", value=payload.started_at_ms, kind="time"),
            Fact(label="Completed", value=payload.completed_at_ms, kind="time"),
            Fact(label="Took", value=duration(payload.completed_at_ms - payload.started_at_ms)),
        ]),
        ("Where", [
            Fact(label="Receipt", value=payload.receipt_id, kind="code"),
            Fact(label="Genesis", value=payload.genesis, kind="code"),
        ]),
    ]  # fmt: skip


def _list_audit(payload: AuditPayload) -> list[tuple[str, list[Fact]]]:
    return [
        ("Who", [
            Fact(label="Auditor", value=payload.auditor, kind="code"),
            Fact(label="Coordinator", value=payload.coordinator, kind="code"),
        ]),
        ("Of what", [
            Fact(label="Receipt", value=payload.receipt_id, kind="code"),
            Fact(label="Genesis", value=payload.genesis, kind="code"),
        ]),
        ("How", [
            Fact(label="Method", value=payload.method),
            Fact(label="Auditor's model digest", value=payload.model_digest, kind="code"),
            Fact(label="Audited", value=payload.audited_at_ms, kind="time"),
        ]),
        ("Measured", [
            Fact(label="Prompt", value=count(payload.prompt_tokens, "token")),
            Fact(label="Replayed", value=count(payload.tokens, "token")),
            Fact(label="Chosen alike", value=count(payload.exact_tokens, "token")),
            Fact(label="Out of reach", value=count(payload.outside_tokens, "token")),
            Fact(label="Largest distance", value=decimal(payload.max_gap_micros)),
            Fact(label="Mean distance", value=decimal(payload.mean_gap_micros)),
            Fact(label="Ending", value=payload.ending),
            Fact(label="Text matches", value="yes" if payload.text_matches else "no"),
        ]),
        ("Found", [Fact(label="Verdict", value=payload.verdict)]),
    ]  # fmt: skip


def _list_change(payload: AuthoritySetPayload) -> list[tuple[str, list[Fact]]]:
    following = payload.authority_set
    return [
        ("Which", [
            Fact(label="Epoch", value=following.epoch),
            Fact(label="Quorum", value=f"{following.quorum} of {len(following.members)}"),
            Fact(label="Not above block", value=payload.expires_height),
            Fact(label="Genesis", value=payload.genesis, kind="code"),
        ]),
        *[
            (f"Member {index}", [
                Fact(label="Name", value=member.name),
                Fact(label="Account", value=member.account, kind="code"),
                Fact(label="Address", value=member.url or "not stated"),
            ])
            for index, member in enumerate(following.members)
        ],
        *[
            (f"Coordinator {index}", [Fact(label="Account", value=account, kind="code")])
            for index, account in enumerate(following.coordinators)
        ],
    ]  # fmt: skip


def _list_evidence(payload: EvidencePayload) -> list[tuple[str, list[Fact]]]:
    return [
        ("Who", [Fact(label="Authority", value=payload.accused, kind="code")]),
        ("Where", [
            Fact(label="Height", value=payload.height),
            Fact(label="View", value=payload.view),
            Fact(label="Genesis", value=payload.genesis, kind="code"),
        ]),
        *[
            (f"{which} vote", [
                Fact(label="Kind", value=vote.kind),
                Fact(label="Block", value=vote.block_hash or "none", kind="code"),
                Fact(label="Signature", value=vote.sig, kind="code"),
            ])
            for which, vote in (("First", payload.first), ("Second", payload.second))
        ],
    ]  # fmt: skip


def list_path(inclusion: InclusionView) -> list[PathStep]:
    """Return the siblings from leaf to root. Sides: RFC 9162, section 2.1.3.2."""
    steps: list[PathStep] = []
    index, last = inclusion.leaf, inclusion.tree_size - 1
    for sibling in inclusion.path:
        is_left = index % 2 == 1 or index == last
        steps.append(PathStep(side="left" if is_left else "right", hash=sibling))
        while is_left and index % 2 == 0 and index:
            index, last = index >> 1, last >> 1
        index, last = index >> 1, last >> 1
    return steps
