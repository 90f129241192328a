"""Catching up: final blocks of other nodes, verified here, stored in order."""

from node.sync.progress import SyncProgress
from node.sync.syncer import Syncer

__all__ = ["SyncProgress", "Syncer"]
