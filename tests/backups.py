"""Backups made and put back in this process, for tests of them."""

from pathlib import Path

from ledger.encoding import encode
from node.backup import make_backup
from node.datadir import DataDirectory
from node.manifest import open_backup
from node.restore import restore_backup
from tests.market_node import MarketNode


def silent(*_):
    pass


def back_up(data: DataDirectory, output: Path):
    return make_backup(data, output, release="test", now_ms=1, progress=silent)


def put_back(source: Path, data: DataDirectory, *, replace: bool = False):
    with open_backup(source) as backup:
        return restore_backup(backup, data, replace=replace, now_ms=2, progress=silent)


def make_market(root: Path, **settings) -> MarketNode:
    """A node in this process whose directory can be backed up."""
    root.mkdir(exist_ok=True)
    node = MarketNode(root, **settings)
    (root / "genesis.json").write_bytes(encode(node.genesis) + b"\n")
    return node
