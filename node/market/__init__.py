"""The job market of one node, in parts that share one desk.

desk.py      what all parts have: node.db, the chain, the clock, durable writes
clients.py   submit, read, cancel
models.py    which models are served
miners.py    register, ask for work
leases.py    claim, renew, tell, give up, complete; what happens when time is over
feed.py      who waits for news of a job, and the text of those that run
"""
