"""Miners and API keys in node.db. What changes something runs inside the writer's transaction."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import msgspec

from ledger.jobs import KeyRole, Miner, MinerStanding, list_served_models, normalize_model
from ledger.quotas import KeyLimits
from ledger.store.sessions import Connection

Kind = tuple[frozenset[str] | None, int, int]
"""Miners with the same capabilities: which models (None: any), how many miners, and when the first
of these registered."""

MAX_COUNTED_RUNNING = 1_000
"""Running jobs of one miner are counted no further than this."""
MAX_COUNTED_MINERS = 10_000

MAX_CAPABILITY_LISTS = 1_000
"""Miners of one kind have the same list; more kinds are not looked at."""
MAX_KNOWN_ROWS = 4_096
"""Of miners, whose meaning is kept."""
_MINER = (
    "miner_id, account, capabilities, gpu_name, gpu_memory, owner, registered_at_ms,"
    " last_seen_at_ms, draining, audits"
)
"""All but the counts, which change with every job."""


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """A stored API key. Its secret is not stored, only the keyed digest of it."""

    prefix: str
    digest: bytes
    role: KeyRole
    client: str
    created_at_ms: int
    revoked_at_ms: int | None
    limits: KeyLimits = KeyLimits()


def upsert_miner(connection: Connection, miner: Miner) -> None:
    """Store a miner's description, keeping when it was first seen. It drains no more."""
    connection.execute(
        "INSERT INTO miners (miner_id, account, capabilities, gpu_name, gpu_memory, owner,"
        " registered_at_ms, last_seen_at_ms, audits)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (miner_id) DO UPDATE SET"
        " account = excluded.account, capabilities = excluded.capabilities,"
        " gpu_name = excluded.gpu_name, gpu_memory = excluded.gpu_memory, owner = excluded.owner,"
        " last_seen_at_ms = excluded.last_seen_at_ms, audits = excluded.audits, draining = 0",
        (
            miner.miner_id,
            miner.account,
            msgspec.json.encode(miner.capabilities).decode(),
            miner.gpu_name,
            miner.gpu_memory,
            miner.owner,
            miner.registered_at_ms,
            miner.last_seen_at_ms,
            miner.audits,
        ),
    )


def touch_miner(connection: Connection, miner_id: str, now_ms: int) -> None:
    """Note that a miner was heard."""
    connection.execute(
        "UPDATE miners SET last_seen_at_ms = ? WHERE miner_id = ?", (now_ms, miner_id)
    )


def drain_miner(connection: Connection, miner_id: str) -> None:
    """Let a miner get no more jobs."""
    connection.execute("UPDATE miners SET draining = 1 WHERE miner_id = ?", (miner_id,))


def delete_miner(connection: Connection, miner_id: str) -> None:
    """Forget a miner."""
    connection.execute("DELETE FROM miners WHERE miner_id = ?", (miner_id,))


def list_miners(
    connection: Connection, *, after: str, limit: int, active_since_ms: int
) -> list[MinerStanding]:
    """Return miners in the order of their names, above `after`."""
    rows = connection.execute(
        f"SELECT {_MINER} FROM miners WHERE miner_id > ? ORDER BY miner_id LIMIT ?",  # noqa: S608 - own words
        (after, limit),
    ).fetchall()
    return [view_miner(connection, _miner(row), active_since_ms) for row in rows]


def view_miner(connection: Connection, miner: Miner, active_since_ms: int) -> MinerStanding:
    """Return what others see of a miner."""
    (running,) = connection.execute(
        "SELECT count(*) FROM (SELECT 1 FROM jobs INDEXED BY jobs_miner"
        " WHERE state = 'running' AND miner_id = ? LIMIT ?) AS held",
        (miner.miner_id, MAX_COUNTED_RUNNING),
    ).fetchone()
    completed, lost = connection.execute(
        "SELECT completed, lost FROM miners WHERE miner_id = ?", (miner.miner_id,)
    ).fetchone() or (0, 0)  # it may have been forgotten since
    return MinerStanding(
        miner=miner,
        active=miner.last_seen_at_ms >= active_since_ms,
        running=running,
        completed=completed,
        lost=lost,
    )


def recount_attempts(connection: Connection) -> None:
    """Count for each miner the jobs that it was the last to run. Triggers count from then on."""
    for column, state in (("completed", "completed"), ("lost", "failed")):
        connection.execute(
            f"UPDATE miners SET {column} = found.jobs FROM"  # noqa: S608 - own words
            " (SELECT miner_id, count(*) AS jobs FROM jobs WHERE state = ? GROUP BY miner_id)"
            " AS found WHERE found.miner_id = miners.miner_id",
            (state,),
        )


def count_miners(connection: Connection) -> int | None:
    """Return how many miners there are, None beyond MAX_COUNTED_MINERS."""
    (count,) = connection.execute(
        "SELECT count(*) FROM (SELECT 1 FROM miners LIMIT ?) AS found", (MAX_COUNTED_MINERS + 1,)
    ).fetchone()
    return None if count > MAX_COUNTED_MINERS else int(count)


def count_own_miners(connection: Connection, owner: str) -> int:
    """Return how many miners an API key has registered."""
    (count,) = connection.execute(
        "SELECT count(*) FROM miners WHERE owner = ?", (owner,)
    ).fetchone()
    return int(count)


def find_idle_miner(connection: Connection, owner: str, seen_before_ms: int) -> str | None:
    """Return which miner of a key was not heard for longest, if it runs nothing."""
    row = connection.execute(
        "SELECT miner_id FROM miners AS m WHERE owner = ? AND last_seen_at_ms < ? AND NOT EXISTS"
        " (SELECT 1 FROM jobs INDEXED BY jobs_miner WHERE state = 'running'"
        " AND miner_id = m.miner_id) ORDER BY last_seen_at_ms, miner_id LIMIT 1",
        (owner, seen_before_ms),
    ).fetchone()
    return str(row[0]) if row else None


def find_miner(connection: Connection, miner_id: str) -> Miner | None:
    """Return a registered miner."""
    row = connection.execute(
        f"SELECT {_MINER} FROM miners WHERE miner_id = ?",  # noqa: S608 - own words
        (miner_id,),
    ).fetchone()
    return _known_miner(tuple(row)) if row else None


def count_eligible_miners(connection: Connection, model: str, since_ms: int) -> int:
    """Return how many of the miners heard since a time could serve `model`."""
    return count_serving(list_capabilities(connection, since_ms), model)


def count_serving(kinds: Sequence[Kind], model: str) -> int:
    """Return how many miners of these kinds could serve `model`."""
    wanted = normalize_model(model)
    return sum(count for models, count, _ in kinds if models is None or wanted in models)


def count_active_miners(connection: Connection, since_ms: int, limit: int) -> int:
    """Return how many miners were heard since a time, counting no further than `limit`."""
    (count,) = connection.execute(
        "SELECT count(*) FROM (SELECT 1 FROM miners WHERE last_seen_at_ms >= ? LIMIT ?) AS heard",
        (since_ms, limit),
    ).fetchone()
    return int(count)


def list_capabilities(connection: Connection, since_ms: int) -> list[Kind]:
    """Return what the miners heard since a time can do, the kind that registered first first.

    Those that drain do nothing more. Miners of one kind list the same capabilities, so few kinds
    stand for many miners.
    """
    rows = connection.execute(
        "SELECT capabilities, count(*), min(registered_at_ms) FROM miners"
        " WHERE last_seen_at_ms >= ? AND draining = 0 GROUP BY capabilities"
        " ORDER BY min(registered_at_ms), capabilities LIMIT ?",
        (since_ms, MAX_CAPABILITY_LISTS),
    )
    return [(_read_served(names), count, first_ms) for names, count, first_ms in rows]


def _miner(row: Sequence[Any]) -> Miner:
    return Miner(
        miner_id=row[0],
        account=row[1],
        capabilities=_parse_names(row[2]),
        gpu_name=row[3],
        gpu_memory=row[4],
        owner=row[5],
        registered_at_ms=row[6],
        last_seen_at_ms=row[7],
        draining=bool(row[8]),
        audits=bool(row[9]),
    )


# The same rows are read with every claim, and seldom change: another row is another entry.
_known_miner = lru_cache(maxsize=MAX_KNOWN_ROWS)(_miner)


@lru_cache(maxsize=2 * MAX_CAPABILITY_LISTS)
def _read_served(capabilities: str) -> frozenset[str] | None:
    # Asked for whenever somebody looks at a job that waits.
    return list_served_models(_parse_names(capabilities))


def _parse_names(text: str) -> tuple[str, ...]:
    return msgspec.json.decode(text, type=tuple[str, ...])


def insert_key(connection: Connection, key: ApiKey) -> None:
    """Store a new API key."""
    connection.execute(
        "INSERT INTO api_keys (prefix, digest, role, client, created_at_ms, revoked_at_ms,"
        " max_pending, daily_jobs, daily_tokens) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            key.prefix,
            key.digest,
            key.role,
            key.client,
            key.created_at_ms,
            key.revoked_at_ms,
            key.limits.max_pending,
            key.limits.daily_jobs,
            key.limits.daily_tokens,
        ),
    )


def find_key(connection: Connection, prefix: str) -> ApiKey | None:
    """Return the API key with this prefix, revoked or not."""
    row = connection.execute("SELECT * FROM api_keys WHERE prefix = ?", (prefix,)).fetchone()
    return _key(row) if row else None


def list_keys(connection: Connection) -> list[ApiKey]:
    """Return every API key, oldest first."""
    rows = connection.execute("SELECT * FROM api_keys ORDER BY created_at_ms, prefix")
    return [_key(row) for row in rows]


def revoke_key(connection: Connection, prefix: str, now_ms: int) -> bool:
    """Revoke a key for ever. Returns False if there is none to revoke."""
    cursor = connection.execute(
        "UPDATE api_keys SET revoked_at_ms = ? WHERE prefix = ? AND revoked_at_ms IS NULL",
        (now_ms, prefix),
    )
    return cursor.rowcount == 1


def _key(row: Sequence[Any]) -> ApiKey:
    return ApiKey(
        prefix=row[0],
        digest=row[1],
        role=row[2],
        client=row[3],
        created_at_ms=row[4],
        revoked_at_ms=row[5],
        limits=KeyLimits(max_pending=row[6], daily_jobs=row[7], daily_tokens=row[8]),
    )
