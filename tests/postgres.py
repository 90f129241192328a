"""A PostgreSQL server of Debian for the tests, on a socket in a directory of its own.

It is started once, when a test first wants it, and ends with the test run. Each test has a schema
of its own in it, so nothing of another test is there.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import quote

import psycopg

START_TIMEOUT_S = 60
# What is not needed where no test pulls the plug of the machine.
_FAST = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}
_numbers = itertools.count(1)
# Faster than to make fourteen tables with their indexes and triggers for each test.
_EMPTY = """
SET search_path = {schema};
DO $$ BEGIN
    EXECUTE (SELECT 'TRUNCATE ' || string_agg(tablename, ', ') || ' RESTART IDENTITY' FROM pg_tables
        WHERE schemaname = '{schema}' AND tablename NOT IN ('counters', 'schema_version'));
    UPDATE counters SET value = 0;
END $$
"""


def find_programs() -> Path:
    """Where Debian puts the newest server's programs."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: int(p.parent.name))
    assert found, "PostgreSQL is missing: run make postgresql"
    return found[-1]


class PostgresServer:
    """A server of its own, which nobody else can reach."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="aitbc-postgres-"))
        self._programs = find_programs()
        self._free: list[str] = []
        """Schemas whose tables are empty."""
        # The server refuses to run as root.
        self._user = "postgres" if os.geteuid() == 0 else None
        if self._user is not None:
            account = pwd.getpwnam(self._user)
            os.chown(self.folder, account.pw_uid, account.pw_gid)
        self._run(
            *("initdb", "--pgdata", self._data, "--no-sync", "--no-instructions"),
            *("--auth", "trust", "--encoding", "UTF8", "--locale", "C", "--username", "aitbc"),
        )
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def _data(self) -> str:
        return str(self.folder / "data")

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [self._programs / program, *arguments],
            check=True,
            capture_output=True,
            user=self._user,
            cwd=self.folder,
            env={"LC_ALL": "C", "PATH": os.environ["PATH"]},
        )

    def start(self) -> None:
        options = {
            **_FAST,
            "listen_addresses": "",
            "unix_socket_directories": str(self.folder),
            "max_connections": "60",
            "shared_buffers": "16MB",
            "autovacuum": "off",
        }
        arguments = [f"--{name}={value}" for name, value in options.items()]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._programs / "postgres", "-D", self._data, *arguments],
                stdout=log,
                stderr=log,
                user=self._user,
                cwd=self.folder,
                env={"LC_ALL": "C"},
                start_new_session=True,
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            with contextlib.suppress(psycopg.OperationalError):
                psycopg.connect(self.url("postgres")).close()
                return
            assert self._process.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < deadline, "PostgreSQL does not start"
            time.sleep(0.05)

    def stop(self, *, fast: bool = True) -> None:
        """End the server: at once, as a crash would, or after ending its connections."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGQUIT if fast else signal.SIGINT)
            process.wait(START_TIMEOUT_S)

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def url(self, name: str = "postgres", *, schema: str | None = None) -> str:
        options = f"&options={quote(f'-csearch_path={schema}')}" if schema else ""
        return f"postgresql://aitbc@/{name}?host={quote(str(self.folder), safe='')}{options}"

    @contextlib.contextmanager
    def schema(self) -> Iterator[str]:
        """The URL of an empty schema."""
        name = f"test_{next(_numbers)}"
        self.execute(f"CREATE SCHEMA {name}")
        try:
            yield self.url(schema=name)
        finally:
            self.end_connections()
            self.execute(f"DROP SCHEMA {name} CASCADE")

    @contextlib.contextmanager
    def market(self) -> Iterator[str]:
        """The URL of a market that holds nothing; its tables may be another test's, emptied."""
        name = self._free.pop() if self._free else f"test_{next(_numbers)}"
        self.execute(f"CREATE SCHEMA IF NOT EXISTS {name}")
        try:
            yield self.url(schema=name)
        finally:
            self.end_connections()
            self.execute(_EMPTY.format(schema=name))
            self._free.append(name)

    def execute(self, statement: str) -> None:
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(statement.encode())

    def end_connections(self) -> None:
        """End the connections that there are, whoever made them."""
        self.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
        )


@cache
def shared_server() -> PostgresServer:
    """The server of this test run."""
    server = PostgresServer()
    atexit.register(server.remove)
    return server
