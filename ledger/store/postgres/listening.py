"""What other processes have stored, heard by LISTEN, in a thread of its own.

Triggers say what has changed (`schema.py`), in one letter and perhaps a job's id:

    w   a job waits            r   a transaction waits for a block
    a   an audit has changed   d   webhooks have something to hear
    c…  a job was claimed      e…  an attempt of a job is over
    k   an API key or a miner has changed

The server tells it after the commit, in order. If it was lost, nothing is known of what happened
meanwhile: then, and again as long as it is lost, everybody is told to look for themselves.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Callable
from typing import Any

import psycopg

from ledger.store.marketstore import Hear, NewsKind
from ledger.store.postgres.connecting import Link
from ledger.store.threadname import show_name

POLL_S = 1.0
"""How often it is asked whether the server still answers, and tried to reach a lost one."""
_KINDS: dict[str, NewsKind] = {
    "w": "job_waiting",
    "a": "audit_waiting",
    "r": "transaction_waiting",
    "d": "event_waiting",
    "c": "job_changed",
    "e": "attempt_ended",
}
_KNOWN = "k"


class Listener:
    """Hears the server as long as it runs."""

    def __init__(
        self,
        name: str,
        connect: Callable[[], psycopg.Connection[Any]],
        link: Link,
        is_own: Callable[[int], bool],
    ) -> None:
        """`is_own(process)` tells whether what a process of the server stored is ours."""
        self._connect = connect
        self._link = link
        self._is_own = is_own
        self._hear: Hear = lambda _kind, _job: None
        self.changes = 0
        """Grows whenever API keys or miners may have changed."""
        self._end, self._ending = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name=f"listener {name}", daemon=True)
        self._thread.start()

    def listen(self, hear: Hear) -> None:
        """Tell `hear`, from this thread, what others have stored."""
        self._hear = hear
        hear("anything", b"")  # nobody knows what happened before

    def stop(self) -> None:
        """End the thread."""
        self._ending.close()
        self._thread.join()
        self._end.close()

    def _run(self) -> None:
        show_name()
        while not self._is_ending(0):
            with contextlib.suppress(psycopg.Error, OSError), self._connect() as raw:
                (channel,) = raw.execute(
                    b"SELECT 'aitbc_' || md5(current_schema())"
                ).fetchone() or ("",)
                raw.execute(f"LISTEN {channel}".encode())
                self._follow(raw)
            self._link.is_heard = False
            if self._is_ending(0):
                return
            self._link.note_loss()
            self._look_everywhere()
            self._is_ending(POLL_S)

    def _follow(self, raw: psycopg.Connection[Any]) -> None:
        self._link.note_answer()
        self._look_everywhere()
        self._link.is_heard = True
        while True:
            readable, _, _ = select.select([raw.fileno(), self._end.fileno()], [], [], POLL_S)
            if self._end.fileno() in readable:
                return
            if not readable:
                raw.execute(b"SELECT 1")
            raw.pgconn.consume_input()
            while (note := raw.pgconn.notifies()) is not None:
                if not self._is_own(note.be_pid):
                    self._tell(note.extra.decode("ascii"))
            self._link.note_answer()

    def _tell(self, news: str) -> None:
        if news == _KNOWN:
            self.changes += 1
        elif kind := _KINDS.get(news[:1]):
            self._hear(kind, bytes.fromhex(news[1:]))

    def _look_everywhere(self) -> None:
        self.changes += 1
        self._hear("anything", b"")

    def _is_ending(self, timeout_s: float) -> bool:
        return bool(select.select([self._end], [], [], timeout_s)[0])
