"""A chain with something on every page of the explorer, and the addresses of these pages."""

from urllib.parse import quote

from explorer_ui.jobs import STATES
from tests.fake_views import AUTHORITIES, COORDINATOR, MINER, FakeViews, build_chain


def build_busy_views() -> FakeViews:
    views = build_chain(30)
    views.add_receipt(100)
    views.market.add_miner("miner-a", completed=30, lost=1)
    for number, state in enumerate(STATES):
        views.add_job(number, state)
    return views


def build_changed_views() -> FakeViews:
    """A change of the authorities in block 2, evidence against east in block 3."""
    views = build_chain(1)
    views.add_change()
    views.seal()
    views.add_evidence(height=2, view=6)
    views.seal()
    return views


def every_address(views: FakeViews) -> list[str]:
    final, pending = views.final[-1], views.pending[-1]
    return [
        *(
            "/",
            "/blocks",
            "/blocks?before=6",
            "/blocks/1",
            f"/blocks/{len(views.chain)}",
            "/receipts",
        ),
        *("/receipts?before=4", "/receipts?model=x&miner=y&client=z", "/receipts?client=demo"),
        *(f"/receipts/{transaction.payload.receipt_id}" for transaction in (final, pending)),
        *(f"/txs/{transaction.id}" for transaction in (final, pending)),
        *(f"/accounts/{account}" for account in (MINER.account, COORDINATOR.account)),
        *(f"/accounts/{AUTHORITIES[0].account}?as=client", "/miners"),
        *("/miners/" + quote(s.miner.miner_id, safe="") for s in views.market.standings),
        *(f"/authorities/{key.account}" for key in AUTHORITIES),
        "/receipts?from=2026-07-25&to=2027-01-01",
        *("/jobs", "/jobs?status=failed", "/pending"),
        *("/charts/throughput", "/charts/jobs?range=week", "/charts/price?range=month"),
        *("/charts/blocktime?range=year", "/playground"),
        *(f"/jobs/{job.job_id}" for job in views.all_jobs),
        "/verify",
        "/network",
        *(f"/txs/{transaction.id}" for transaction in views.final if transaction.type != "receipt"),
        *("/search", "/search?q=demo", "/search?q=nothing", "/search?q=77", "/search?q=abcdef12"),
    ]
