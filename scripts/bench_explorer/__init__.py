"""What the explorer costs its readers and its node, over a long ledger, beside its budgets."""
