"""Removes the texts of jobs that ended long ago: prompt, result, token ids, stop texts, error.

Audits of them that nobody has done end too. Salts and the receipt stay, so whoever kept the texts
can still prove them. `secure_delete` is on, so what is replaced is gone from the file;
`Database.forget_versions` removes older versions of its pages.
"""

from __future__ import annotations

from ledger.store.draws import expire_purged
from ledger.store.sessions import Connection

MAX_PURGED_JOBS = 100
"""Jobs of one transaction."""
MAX_PURGED_CHARS = 8 << 20
"""A transaction ends with the job with which its texts exceed this."""


def purge_texts(connection: Connection, *, ended_before_ms: int, now_ms: int) -> int:
    """Remove texts of jobs that ended up to a time. Returns of how many; there may be more."""
    purged, text_chars = [], 0
    for seq, chars in connection.execute(
        "SELECT seq, length(prompt) + coalesce(length(result), 0) FROM jobs INDEXED BY jobs_texts"
        " WHERE completed_at_ms <= ? AND texts_purged_at_ms IS NULL"
        " ORDER BY completed_at_ms LIMIT ?",
        (ended_before_ms, MAX_PURGED_JOBS),
    ):
        purged.append((now_ms, seq))
        text_chars += chars
        if text_chars > MAX_PURGED_CHARS:
            break
    connection.executemany(
        "UPDATE jobs SET prompt = '', stop = '[]', result = NULL, error = NULL,"
        " output_token_ids = NULL, texts_purged_at_ms = ? WHERE seq = ?",
        purged,
    )
    expire_purged(connection, [seq for _, seq in purged], now_ms=now_ms)
    return len(purged)
