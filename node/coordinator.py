"""The job market of one node: every write of the REST API, decided by `ledger.jobs`.

Each method reads the job, lets the pure rules decide, and stores the outcome in one conditional
update of node.db; it returns when that is durable. Completing a job stores the result and the
receipt's envelope together, and wakes the sealer, which makes the receipt final.
"""

from __future__ import annotations

from node.market.clients import ClientDesk
from node.market.desk import MarketSettings
from node.market.models import ModelDesk
from node.market.upkeep import UpkeepDesk
from node.webhooks.desk import WebhookDesk

__all__ = ["Coordinator", "MarketSettings"]


class Coordinator(ClientDesk, ModelDesk, UpkeepDesk, WebhookDesk):
    """Fulfils `api.ports.Market` on node.db and the chain."""
