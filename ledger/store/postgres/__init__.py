"""The market in PostgreSQL, which several processes of one coordinator share.

dialect.py     the few things that are written otherwise there
schema.py      its tables, and what triggers do
connecting.py  connections, and what they do when the server is lost
session.py     the transactions of a writer: one at a time among all processes
listening.py   hears what other processes have stored
market.py      all of it, as a `MarketStore`
"""
