"""Break what can break in a real network of processes under load, and hold it to its promises.

`make chaos MINUTES=10`. Four authorities, a follower and a witness run as processes; every link
between them leads through a proxy of ours. Clients and miners of every authority write down what
they were told. In rounds drawn from a seed, nodes are killed, paused and started again, links are
cut or slowed, a disk fills up, a clock jumps. At the end all ledgers are verified from genesis and
held against what was told.
"""
