"""The REST face of a node that takes no jobs: it shows the ledger and refuses the rest.

Jobs, miners and API keys belong to one coordinator. To forward a request would hand its key to
another machine, so the caller is told where to go instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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

    def __init__(
        self,
        refusal: RequestError,
        *,
        find_own_key: Callable[[str], Caller | None] = lambda _secret: None,
    ) -> None:
        """`refusal` answers whatever has to do with jobs and miners.

        `find_own_key` knows the keys that this node's operator made for its metrics.
        """
        self._refusal = refusal
        self._find_own_key = find_own_key

    def authenticate(self, secret: str) -> Caller:
        """Return whose key this is; the keys of other nodes mean nothing here, and do no harm."""
        return self._find_own_key(secret) or ANONYMOUS

    def paths(self, settings: ApiSettings) -> Mapping[str, Mapping[str, Operation]]:
        """Return the refusing operations by path. They need no key and take no body."""
        # Only the paths are taken from the endpoints, so there need be no market behind them.
        market_paths = list_market_paths(cast("Market", self), settings)
        return {
            path: {
                method: Operation(handler=self._refuse, error_form=operation.error_form)
                for method, operation in operations.items()
            }
            for path, operations in market_paths.items()
        }

    async def submit_transaction(self, _envelope: bytes) -> TransactionView:
        """Refuse: what waits for a block waits with an authority."""
        raise self._refusal

    async def _refuse(self, _request: Request) -> Answer:
        raise self._refusal
