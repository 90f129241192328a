"""What tests of the REST face share: a node of their own."""

import pytest

from tests.api_node import ApiNode


@pytest.fixture
def node(tmp_path):
    """A whole node without a socket; modules that need another one have a `node` of their own."""
    node = ApiNode(tmp_path)
    yield node
    node.close()
