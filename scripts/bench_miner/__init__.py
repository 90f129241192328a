"""The miner beside its peers: speed, agreement with a reference, and a long run.

Peers live in a virtual environment of their own, so every runner is a process: `fleet` starts
them, `worker` is what runs inside, `runners` holds one module for each. Modules that a worker
imports need nothing but the standard library, numpy and what they measure.
"""
