"""A ledger of months of a market, small, made once for all tests that only read it."""

import pytest

from node.datadir import DataDirectory
from scripts.generate import Order, generate_months

ORDER = Order(seed=7, receipts=1200, days=40, end_ms=1_760_000_000_000)


@pytest.fixture(scope="session")
def generated(tmp_path_factory):
    data = DataDirectory(tmp_path_factory.mktemp("generated") / "data")
    generate_months(data, ORDER)
    return data
