"""Whole networks of production nodes under one seed: engine, rules and stores are the real ones.

`material` builds keys, networks and receipts; `disk` is what survives a crash; `machine` is a node
with the shell that executes the engine's effects; `network` holds the one queue of all that will
happen, and the checks of what must always hold. `adversary` lies. `history` draws one history from
one seed and judges it. `mutants` takes the rules away one by one.

    make simulate SEEDS=2000      run 2,000 histories and print what happened in them
    make simulate SEED=123        run one of them and print its trace
"""
