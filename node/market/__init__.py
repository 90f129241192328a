"""The job market of one node, in parts that share one desk.

settings.py  what an operator decides about it
desk.py      what all parts have: node.db, the chain, the clock, durable writes
clients.py   submit, read, cancel
models.py    which models are served
miners.py    register, ask for work, drain
audits.py    draw, offer, claim, sign and give back audits
leases.py    claim, renew, tell, give up, complete; what becomes of a miner's jobs without it
upkeep.py    what happens when time is over
feed.py      who waits for news of a job, and the text of those that run
"""
