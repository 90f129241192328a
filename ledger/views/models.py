"""Read models of the two faces: what a page or an answer shows of the ledger.

Everything here is public: no prompt, result, salt or key appears in a view. Times are integer
Unix milliseconds, hashes are lower-case hex, money and units are integer micros. Lists are newest
first and paged by key: pass the `cursor` of the last row as `before`. No list counts or skips rows.

"Final" means that a certificate stands behind it; "pending" means durable on this node alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import msgspec

from ledger.jobs import JobState
from ledger.totals import Line, Sum
from ledger.transaction import Payload, ReceiptPayload, Signature

Finality = Literal["final", "pending"]

SyncState = Literal["idle", "stalled", "syncing"]
"""idle: nothing is known that is not here. stalled: no source can be used at the moment."""

MAX_PAGE = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncProgress:
    """How far this node is with catching up."""

    state: SyncState
    height: int
    target_height: int
    """What a source says its newest final height is; at least `height`."""
    blocks_per_s: float
    receipts_per_s: float
    eta_s: int | None
    """Seconds until the target is reached at this rate; None if that cannot be told."""
    source: str | None
    """Address of the source in use."""
    last_error: str | None
    """Why a source could not be used; None once one was used without a fault."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerView:
    """Another node that this one talks to."""

    account: str
    """Empty where it is not known."""
    name: str
    url: str
    """As the authority set states it, which need not be the address in use."""
    height: int
    """Of its newest final block, as it said last."""
    answers: bool
    """Whether it took what was sent to it last."""
    release: str = ""
    """Of its software, as it said last; empty until it has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeView:
    """This node itself."""

    account: str
    """Of the key that it votes with, if that is in the set; empty for a follower."""
    ledger_bytes: int
    """Size of ledger.db without what waits in its log."""


class NetworkWatch(Protocol):
    """What a node knows of the others, besides the chain."""

    def account(self) -> str:
        """Return the account of this node's own key; empty for a follower."""

    def sync(self) -> SyncProgress | None:
        """Return how far catching up is; None while there is nothing to catch up with."""

    def peers(self) -> Sequence[PeerView]:
        """Return the nodes that this one talks to, in the order of the authority set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadView:
    """Where the chain stands."""

    network: str
    genesis: str
    height: int
    """Height of the newest final block, 0 at genesis."""
    hash: str
    time_ms: int
    votes: int
    """Signatures on the newest block; 0 at genesis."""
    authorities: int
    pending_transactions: int
    """Counted up to 10,000."""
    missing: range | None = None
    """Heights of the blocks below a pinned checkpoint that are still being fetched."""
    sync: SyncProgress | None = None
    """None while this node is level with the others, as far as it knows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VoteView:
    """One authority's place in a block's certificate."""

    index: int
    account: str
    name: str
    signature: str | None
    """None where this member's vote is not part of the certificate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockView:
    """One final block, without its transactions."""

    height: int
    hash: str
    prev_hash: str
    time_ms: int
    transactions: int
    first_leaf: int
    tree_size: int
    tree_root: str
    set_hash: str
    next_set_hash: str
    proposer: str
    proposer_name: str
    size_bytes: int
    """Sum of its envelopes."""
    view: int
    votes: tuple[VoteView, ...]
    quorum: int

    @property
    def signed(self) -> int:
        """Votes in the certificate."""
        return sum(vote.signature is not None for vote in self.votes)


class TransactionView(msgspec.Struct, frozen=True, kw_only=True):
    """One transaction, final or pending."""

    id: str
    type: str
    finality: Finality
    cursor: int
    """Order key: the leaf index of a final one, above all leaves for a pending one."""
    leaf: int | None
    height: int | None
    time_ms: int
    """Block time if final, else when this node accepted it."""
    size_bytes: int
    payload: Payload
    signatures: tuple[Signature, ...]


class ReceiptView(msgspec.Struct, frozen=True, kw_only=True):
    """One receipt, final or pending."""

    transaction: TransactionView
    miner_id: str | None
    """The provider's name on this node, where it is known here."""

    @property
    def payload(self) -> ReceiptPayload:
        """The signed facts."""
        payload = self.transaction.payload
        assert isinstance(payload, ReceiptPayload), "only receipts are shown as receipts"
        return payload

    @property
    def provider_signature(self) -> Signature | None:
        """The provider's signature, None for a provider without a key."""
        return next((s for s in self.transaction.signatures if s.role == "provider"), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorityView:
    """One member of the current authority set."""

    index: int
    """Its place in the set, by which votes name it."""
    account: str
    name: str
    url: str
    """Where peers reach it, or empty."""
    evidence: int
    """Transactions on the chain that prove it voted twice, counted up to 100."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochView:
    """One authority set of the chain's history."""

    epoch: int
    set_hash: str
    from_height: int
    """The first block it certifies."""
    members: int
    quorum: int
    transaction_id: str | None
    """The change that made it; None at genesis."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceView:
    """One proof that an authority voted twice."""

    transaction_id: str
    block_height: int
    """Where the evidence stands."""
    accused: str
    name: str | None
    """None where the accused is no member any more."""
    height: int
    """Of the two votes."""
    view: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthoritiesView:
    """Who seals the next block, and how that came about."""

    height: int
    """Of the newest final block."""
    epoch: int
    set_hash: str
    from_height: int
    """The first block that this set certifies; it may be the next one."""
    quorum: int
    members: tuple[AuthorityView, ...]
    coordinators: tuple[str, ...]
    """Accounts that may coordinate besides the members."""
    epochs: tuple[EpochView, ...]
    """Newest first, at most 100."""
    evidence: tuple[EvidenceView, ...]
    """Newest first, at most 100."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InclusionView:
    """Where a final transaction stands in the tree."""

    leaf: int
    leaf_hash: str
    path: tuple[str, ...]
    tree_size: int
    tree_root: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StatsView:
    """The figures of the home page and of `/explorer/stats`."""

    total_jobs: int
    jobs_24h: int
    """Counted up to 10,000."""
    active_miners: int
    total_receipts: int
    """Final receipts."""
    block_height: int
    median_price_micros: int | None
    """Median price of the latest receipts (at most 100); None without any."""
    block_time_ms: int | None
    """Median distance of the latest blocks (at most 100); None below two blocks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiptFilter:
    """Narrows a list of receipts; None leaves a field open."""

    client: str | None = None
    provider: str | None = None
    """An account, or a miner's name."""
    model: str | None = None
    from_ms: int | None = None
    """Of the block that holds the receipt."""
    to_ms: int | None = None
    """Exclusive; with it, receipts that have no block yet are left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobView:
    """A job of this node without anything that is its owner's."""

    job_id: str
    cursor: int
    """Order key: its place in the order of submission."""
    state: JobState
    reason: str
    """Why it is in this state, in one of the market's words."""
    client: str
    model: str
    attempt: int
    miner_id: str | None
    """Who runs it, or ran it."""
    created_at_ms: int
    started_at_ms: int | None
    """Of the present attempt, or the last one; None while it waits."""
    completed_at_ms: int | None
    """When it ended, however it ended."""
    receipt_id: str | None
    texts_purged: bool
    """Whether prompt and answer were removed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageView:
    """What became final in a span of time, of one model or of all."""

    start_ms: int
    receipts: int
    tokens_micros: int
    """Billed by token; those billed by GPU second count in their own sums."""
    tokens_price_micros: int
    gpu_seconds_micros: int
    gpu_seconds_price_micros: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PaceView:
    """How many blocks were sealed in a span of time."""

    start_ms: int
    blocks: int
    gaps: int
    """Blocks that have one before them."""
    gap_ms: int
    """Sum of the times between those and the ones before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountView:
    """What an account did on this chain, and what it is on this node."""

    account: str
    """A miner's account or, of one without a key, its name; an authority's account; or the name
    of a client."""
    earned_receipts: int
    """Final receipts in which it is the provider."""
    earned_micros: int
    spent_receipts: int
    """Final receipts in which it is the client."""
    spent_micros: int
    coordinated_receipts: int
    authority: str | None
    """Its name in the current authority set, None where it is no member."""
    coordinates: bool
    """Whether it may coordinate jobs now."""
    miners: tuple[str, ...]
    """Names under which miners of this node registered it, at most 20, in their order."""
    is_auditor: bool = False
    """Whether it has audited an answer, in a final audit."""
    former_authority: str | None = None
    """Its name in the last authority set that it was a member of, None where it is one now or
    never was."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StatementLineView:
    """One line of a statement, and the block that made it final."""

    line: Line
    height: int
    time_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StatementView:
    """What an account earned and spent in the blocks of a period, apart from its lines."""

    account: str
    from_ms: int
    to_ms: int
    """Exclusive."""
    first_height: int
    """Of the first block in the period; one above `last_height` if there is none."""
    last_height: int
    first_leaf: int
    """Tree size before its first block."""
    end_leaf: int
    """Tree size after its last block."""
    earned: Sum
    """Of all receipts of the period in which it is the provider."""
    spent: Sum
    """Of all in which it is the client."""

    @property
    def is_empty(self) -> bool:
        """Whether it has no line."""
        return not self.earned.lines and not self.spent.lines


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchHit:
    """Something a search found exactly."""

    kind: Literal["account", "authority", "block", "job", "receipt", "transaction"]
    key: str
    """What its page's address ends in: height, id or account. All authorities share a page."""
