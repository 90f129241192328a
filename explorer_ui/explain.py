"""What a text looks like that names nothing here, in words, and what to try instead."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ledger.errors import InvalidKeyError
from ledger.keys import ACCOUNT_PREFIX, decode_account
from ledger.views import HeadView

MAX_QUERY = 200
"""Longest search text, in characters: more than any hash, id, account or name."""

_HASH = re.compile(r"[0-9a-f]{64}")
_HEX = re.compile(r"[0-9a-f]{6,}", re.IGNORECASE)
_HEIGHT = re.compile(r"#?([0-9]{1,15})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Two sentences: what it looks like, and what to try."""

    finding: str
    advice: str


def is_hash(text: str) -> bool:
    """Tell whether `text` is spelled like a block hash or transaction id."""
    return _HASH.fullmatch(text) is not None


def explain(text: str, head: HeadView) -> Explanation:
    """Say why `text` leads nowhere on this node."""
    explanation = _explain(text, head)
    reason = _find_reason(head)
    if not reason:
        return explanation
    return Explanation(
        finding=explanation.finding,
        advice=f"It may only be not found yet: {reason}. {explanation.advice}",
    )


def _find_reason(head: HeadView) -> str:
    """Say why this node may lack what others have; empty where it knows of nothing."""
    if head.missing:
        first, last = head.missing[0], head.missing[-1]
        return f"this node still fetches the history of blocks #{first:,} to #{last:,}"
    if head.sync is None:
        return ""
    if head.sync.state == "stalled":
        return f"no other node answers this one, which stands at block #{head.height:,}"
    behind = max(head.sync.target_height - head.height, 0)
    return f"this node is {behind:,} {'block' if behind == 1 else 'blocks'} behind the others"


def explain_miner() -> Explanation:
    """Say why a name is no miner's on this node."""
    return Explanation(
        finding="No miner of this name is registered on this node.",
        advice="A miner is known by its name to the authority that it works for. What it earned is "
        "on the page of its account.",
    )


def explain_authority() -> Explanation:
    """Say why an account that is known here has no page among the authorities."""
    return Explanation(
        finding="This account seals no blocks of this network, and never has.",
        advice="What it did is on the page of the account: search for it.",
    )


def _explain(text: str, head: HeadView) -> Explanation:
    if match := _HEIGHT.fullmatch(text):
        return _explain_height(int(match[1]), head)
    if _HEX.fullmatch(text):
        return _explain_hash(text, head)
    if text.startswith("rcp_"):
        return Explanation(
            finding="This looks like a receipt, but this node knows none with exactly this id.",
            advice="A receipt's id is rcp_ and 26 letters and digits; it exists from the moment "
            f"its job is completed, on its own network only. This one is {head.network}.",
        )
    if text.startswith("job_"):
        return Explanation(
            finding="This looks like a job, but no receipt here belongs to it.",
            advice="A job has a receipt once it is completed; until then only the node that it was "
            "submitted to knows it.",
        )
    if text.startswith(ACCOUNT_PREFIX + "1"):
        return _explain_account(text)
    return Explanation(
        finding="No block, transaction, receipt or account here goes by this.",
        advice="Try a height such as 12, a whole block hash or transaction id, a receipt (rcp_…), "
        "a job (job_…), an account (ait1…), or the exact name of a model, miner or client.",
    )


def _explain_height(height: int, head: HeadView) -> Explanation:
    if height == 0:
        return Explanation(
            finding="Height 0 is the genesis: not a block, but the document all blocks rest on.",
            advice=f"Its hash is {head.genesis}. The first block has height 1.",
        )
    newest = f"the newest block is #{head.height:,}" if head.height else "there is no block yet"
    return Explanation(
        finding=f"There is no block #{height:,} yet: {newest}.",
        advice="A block is sealed as soon as there is a receipt to seal, never empty.",
    )


def _explain_hash(text: str, head: HeadView) -> Explanation:
    if len(text) == 64:
        return Explanation(
            finding="This looks like a block hash or a transaction id, but nothing here has it.",
            advice=f"It may belong to another network, or be newer than this node's head, "
            f"#{head.height:,}.",
        )
    part = "part of a hash" if len(text) < 64 else "more than a hash"
    return Explanation(
        finding=f"This looks like {part}: it has {len(text)} digits of 64.",
        advice="A page has the whole hash as its name: copy all 64 digits.",
    )


def _explain_account(text: str) -> Explanation:
    try:
        decode_account(text)
    except InvalidKeyError as error:
        return Explanation(
            finding="This looks like an account with a typing error.",
            advice=f"The check that every account carries says: {error}.",
        )
    return Explanation(
        finding="This is a well-formed account, but no receipt here has to do with it.",
        advice="An account shows up once it has run, paid for or coordinated a job.",
    )
