"""The queue of pending jobs: keys take turns, and within a key the oldest job is first.

`queues` has one row for each key and model with pending jobs, and the turn at which a miner that
serves the model last took a job of that key: the lowest is next, so nobody waits longer for having
few jobs. Whoever takes a job moves all rows of its key that it serves to the end. A row begins at
the last turn of its key, so coming and going gains nothing. A look reads one row for each model
that the miner serves, however many jobs and keys wait.
"""

from __future__ import annotations

from ledger.jobs import Job, Miner, list_served_models, normalize_model
from ledger.store.jobs import COLUMNS, load_job_at, read_job
from ledger.store.sessions import Connection

MAX_QUEUE_POSITION = 1000
"""A queue longer than this is not counted to its end."""


def find_available(
    connection: Connection, miner: Miner, wanted: frozenset[str] = frozenset()
) -> Job | None:
    """Return the pending job that is next for a miner; one that it lost comes after all others.

    With `wanted`, normalized names, only jobs for these models count.
    """
    served = list_served_models(miner.capabilities)
    if wanted:
        served = wanted if served is None else served & wanted
    models = None if served is None else sorted(served)
    for excluded in ("IS NOT", "IS"):
        lost = f"excluded_miner {excluded} ?"
        owner = _find_next_owner(connection, models, lost, miner.miner_id)
        if owner is not None:
            return _find_oldest(connection, owner, models, lost, miner.miner_id)
    return None


def _find_next_owner(
    connection: Connection, models: list[str] | None, lost: str, miner_id: str
) -> str | None:
    if models is None:
        row = connection.execute(
            "SELECT owner FROM queues AS q INDEXED BY queues_turn WHERE EXISTS"  # noqa: S608 - own
            " (SELECT 1 FROM jobs INDEXED BY jobs_turns WHERE state = 'pending'"
            f" AND owner = q.owner AND model_key = q.model_key AND {lost})"
            " ORDER BY turn, id LIMIT 1",
            (miner_id,),
        ).fetchone()
        return row["owner"] if row else None
    one = (
        "SELECT * FROM (SELECT turn, id, owner FROM queues AS q INDEXED BY queues_model"  # noqa: S608
        " WHERE model_key = ? AND EXISTS"
        " (SELECT 1 FROM jobs INDEXED BY jobs_turns WHERE state = 'pending'"
        f" AND owner = q.owner AND model_key = q.model_key AND {lost})"
        " ORDER BY turn, id LIMIT 1) AS first"
    )
    rows = _union(connection, one, [(model, miner_id) for model in models])
    return str(min(rows)[-1]) if rows else None


def _find_oldest(
    connection: Connection,
    owner: str,
    models: list[str] | None,
    lost: str,
    miner_id: str,
) -> Job | None:
    if models is None:
        row = connection.execute(
            f"SELECT {COLUMNS} FROM jobs INDEXED BY jobs_owner_state WHERE state = 'pending'"  # noqa: S608
            f" AND owner = ? AND {lost} ORDER BY seq LIMIT 1",
            (owner, miner_id),
        ).fetchone()
        return read_job(row) if row else None
    one = (
        "SELECT * FROM (SELECT seq FROM jobs INDEXED BY jobs_turns WHERE state = 'pending'"  # noqa: S608
        f" AND owner = ? AND model_key = ? AND {lost} ORDER BY seq LIMIT 1) AS oldest"
    )
    rows = _union(connection, one, [(owner, model, miner_id) for model in models])
    if not rows:  # taken between the two looks; the next one finds what there is
        return None
    ((seq,), *_) = sorted(rows)
    return load_job_at(connection, int(seq))


def _union(
    connection: Connection, one: str, values: list[tuple[str, ...]]
) -> list[tuple[int | str, ...]]:
    if not values:
        return []
    statement = " UNION ALL ".join([one] * len(values))
    flat = [value for each in values for value in each]
    return [tuple(row) for row in connection.execute(statement, flat)]


def take_turn(connection: Connection, job: Job, miner: Miner) -> None:
    """Put the key of a job behind others, where this miner may serve them."""
    connection.execute("UPDATE counters SET value = value + 1 WHERE name = 'turns'")
    (turn,) = connection.execute("SELECT value FROM counters WHERE name = 'turns'").fetchone()
    connection.execute(
        "INSERT INTO owners (owner, turn) VALUES (?, ?)"
        " ON CONFLICT (owner) DO UPDATE SET turn = excluded.turn",
        (job.owner, turn),
    )
    served = list_served_models(miner.capabilities)
    if served is None:
        connection.execute("UPDATE queues SET turn = ? WHERE owner = ?", (turn, job.owner))
        return
    connection.executemany(
        "UPDATE queues SET turn = ? WHERE owner = ? AND model_key = ?",
        [(turn, job.owner, model) for model in served | {normalize_model(job.order.model)}],
    )


def count_ahead(connection: Connection, job: Job) -> int:
    """Return how many pending jobs for the same model come first, up to MAX_QUEUE_POSITION.

    With `n` older jobs of its key before it, a job waits for as many turns of every other key, and
    one more of those whose turn is first.
    """
    model = normalize_model(job.order.model)
    (ahead,) = connection.execute(
        "SELECT own.jobs + (SELECT"
        " coalesce(sum(CASE WHEN o.pending <= own.jobs THEN o.pending"
        " WHEN (o.turn, o.id) < (q.turn, q.id) THEN own.jobs + 1 ELSE own.jobs END), 0)"
        " FROM queues AS q, (SELECT * FROM queues INDEXED BY queues_model WHERE model_key = ?1"
        " ORDER BY turn, id LIMIT ?2) AS o"
        " WHERE q.owner = ?3 AND q.model_key = ?1 AND o.id <> q.id)"
        " FROM (SELECT count(*) AS jobs FROM (SELECT 1 FROM jobs INDEXED BY jobs_turns"
        " WHERE state = 'pending' AND owner = ?3 AND model_key = ?1"
        " AND seq < (SELECT seq FROM jobs WHERE id = ?4) LIMIT ?2) AS older) AS own",
        (model, MAX_QUEUE_POSITION, job.owner, job.id),
    ).fetchone()
    return min(int(ahead), MAX_QUEUE_POSITION)
