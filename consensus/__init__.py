"""Consensus: the sans-IO engine that turns proposals and votes into final blocks."""
