"""What an operator decides about the market, from the options of `aitbc run`."""

from __future__ import annotations

import math

from ledger.jobs import Prices
from ledger.quotas import DAY_MS
from node.config import NodeSettings, check_market_times, choose_reach
from node.market.desk import MarketSettings


def build_market_settings(settings: NodeSettings) -> MarketSettings:
    """Return what an operator has decided about the market.

    Raises:
        StoreError: its times do not fit together.
    """
    check_market_times(settings)
    prices = Prices(
        tokens=settings.price_token_micros, gpu_seconds=settings.price_gpu_second_micros
    )
    return MarketSettings(
        prices=prices,
        lease_ms=settings.lease_ms,
        heartbeat_interval_ms=settings.heartbeat_interval_ms,
        execution_timeout_ms=settings.execution_timeout_ms,
        queue_timeout_ms=settings.queue_timeout_ms,
        max_pending_per_key=settings.max_pending_per_key,
        webhook_reach=choose_reach(settings),
        audit_rate=settings.audit_rate,
        # Never rounded down to 0, which is for ever.
        text_retention_ms=math.ceil(settings.text_retention_days * DAY_MS),
    )
