"""The ledger: formats, rules, proofs and storage of the chain of receipts."""
