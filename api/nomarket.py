"""The REST face of a node that takes no jobs: it shows the ledger and refuses the rest.

Jobs, miners and API keys belong to one coordinator. To forward a request would hand its key to
another machine, so the caller is told where to go instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from api.answers import Answer
from api.errors import RequestError
from api.market import list_market_paths
from api.ports import Market
from api.requests import ANONYMOUS, Request
from api.resource import ApiSettings, Operation
from ledger.jobs import Caller
from ledger.views import TransactionView


class NoMarket:
    """Stands where a coordinator's market would."""

    def __init__(self, refusal: RequestError) -> None:
        """`refusal` answers whatever has to do with jobs and miners."""
        self._refusal = refusal

    def authenticate(self, _secret: str) -> Caller:
        """Return a stranger: the keys of other nodes mean nothing here, and do no harm."""
        return ANONYMOUS

    def paths(self, settings: ApiSettings) -> Mapping[str, Mapping[str, Operation]]:
        """Return the refusing operations by path. They need no key and take no body."""
        # Only the paths are taken from the endpoints, so there need be no market behind them.
        market_paths = list_market_paths(cast("Market", self), settings)
        refusing = Operation(handler=self._refuse)
        return {
            path: dict.fromkeys(operations, refusing) for path, operations in market_paths.items()
        }

    async def submit_transaction(self, _envelope: bytes) -> TransactionView:
        """Refuse: what waits for a block waits with an authority."""
        raise self._refusal

    async def _refuse(self, _request: Request) -> Answer:
        raise self._refusal
