"""Creates procrastinate's tables, if they are not there yet.

python -m scripts.bench_peers.runners.procrastinate_tables ADDRESS
"""

from __future__ import annotations

import sys

import psycopg
from procrastinate.schema import SchemaManager

if __name__ == "__main__":
    with psycopg.connect(sys.argv[1], autocommit=True) as connection:
        found = connection.execute("SELECT to_regclass('procrastinate_jobs')").fetchone()
        if found == (None,):
            connection.execute(SchemaManager.get_schema())
