"""Clients generated from the repaired reference, which know nothing that a node adds to it.

Their code is generated when the tests run and is never kept. Each walk is a program of its own: it
goes from registration to receipt, holds every answer to the types that the generator made of the
reference, and prints the receipt's id.
"""
