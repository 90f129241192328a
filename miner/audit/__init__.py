"""Audits: whether an answer is what a model, a prompt and a receipt's inputs give.

Method `aitbc-replay-v1`, described in docs/audits.md; what its numbers mean for a verdict stands in
`ledger/replay.py`.
"""
