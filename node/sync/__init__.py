"""Catching up: final blocks of other nodes, verified here, stored in order."""

from node.sync.syncer import Syncer

__all__ = ["Syncer"]
