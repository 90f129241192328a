"""Schemathesis against a live node: every documented promise, held to what is really answered."""
