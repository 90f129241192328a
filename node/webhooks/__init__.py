"""Webhooks: telling clients' servers of the end of their jobs (Standard Webhooks 1.0.0).

desk.py         the API's part: make, list, delete, try
guard.py        which addresses a webhook may reach
transport.py    HTTP to a checked address and no other
sender.py       one attempt: signed, bounded, judged
schedule.py     what follows from an attempt
dispatcher.py   who is told next; runs beside the server
"""
