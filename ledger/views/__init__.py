"""What the two faces show: `LedgerViews` reads, the models say what comes back."""

from ledger.views.models import (
    MAX_PAGE,
    AuthoritiesView,
    AuthorityView,
    BlockView,
    EpochView,
    EvidenceView,
    Finality,
    HeadView,
    InclusionView,
    NetworkWatch,
    PeerView,
    ReceiptFilter,
    ReceiptView,
    SearchHit,
    StatementLineView,
    StatementView,
    StatsView,
    SyncView,
    TransactionView,
    VoteView,
)
from ledger.views.reader import LedgerViews
from ledger.views.rows import view_pending
from ledger.views.tree import TreeHead, TreeViews

__all__ = [
    "MAX_PAGE",
    "AuthoritiesView",
    "AuthorityView",
    "BlockView",
    "EpochView",
    "EvidenceView",
    "Finality",
    "HeadView",
    "InclusionView",
    "LedgerViews",
    "NetworkWatch",
    "PeerView",
    "ReceiptFilter",
    "ReceiptView",
    "SearchHit",
    "StatementLineView",
    "StatementView",
    "StatsView",
    "SyncView",
    "TransactionView",
    "TreeHead",
    "TreeViews",
    "VoteView",
    "view_pending",
]
