"""Everything that needs a job market behind it, by path."""

from __future__ import annotations

from collections.abc import Mapping

from api.auditors import AuditorEndpoints
from api.events import EventEndpoints
from api.jobs import JobEndpoints
from api.keys import KeyEndpoints
from api.miners import MinerEndpoints
from api.openai.endpoints import OpenAiEndpoints
from api.ports import Market
from api.resource import ApiSettings, Operation
from api.waiting import Places
from api.webhooks import WebhookEndpoints


def list_market_paths(
    market: Market, settings: ApiSettings
) -> Mapping[str, Mapping[str, Operation]]:
    """Return the operations by path; a path without a variable stands before one with it."""
    places = Places(settings.max_waiting)
    endpoints = (
        MinerEndpoints(market, settings),
        JobEndpoints(market, settings, places),
        AuditorEndpoints(market),
        EventEndpoints(market, settings, places),
        WebhookEndpoints(market),
        OpenAiEndpoints(market, settings, places),
        KeyEndpoints(market),
    )
    return {path: operations for each in endpoints for path, operations in each.paths().items()}
