"""What tests of the market run over: each of them twice, on SQLite and on PostgreSQL."""

import pytest

from ledger.store.market import open_market
from ledger.store.postgres.market import open_shared_market
from tests.postgres import shared_server

ENGINES = ("sqlite", "postgres")


@pytest.fixture(params=ENGINES)
def engine(request):
    """The name of the engine."""
    return request.param


@pytest.fixture
def open_store(engine):
    """Opens the test's market, given the path that it has as a file, and the network."""
    if engine == "sqlite":
        yield open_market
        return
    with shared_server().market() as url:
        yield lambda _path, genesis_hash: open_shared_market(url, genesis_hash)
