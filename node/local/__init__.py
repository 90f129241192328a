"""Whole networks on one machine, of one node or of many, as processes of our own."""
