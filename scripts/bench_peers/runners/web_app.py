"""A node's three requests as one would write them with FastAPI: SQLite, the same signatures.

Each request is a transaction of its own, durable when it is answered (WAL, synchronous=FULL). The
provider's signature is verified and the coordinator's added. There is no chain, no proof, no lease
that runs out, and nobody waits for work.
"""

from __future__ import annotations

import json
import os
import secrets
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from fastapi import FastAPI, HTTPException
from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey
from pydantic import BaseModel, Field

TABLE = (
    "CREATE TABLE IF NOT EXISTS jobs (id TEXT PRIMARY KEY, state TEXT NOT NULL, body TEXT NOT NULL,"
    " miner TEXT, receipt TEXT, result TEXT)"
)
KEY = SigningKey(bytes(32))
LOCK = threading.Lock()
"""One writer at a time waits better here than in SQLite."""
connection = sqlite3.connect(
    os.environ["BENCH_DATABASE"], check_same_thread=False, isolation_level=None
)
connection.execute("PRAGMA journal_mode=WAL")
connection.execute("PRAGMA synchronous=FULL")
connection.execute(TABLE)
app = FastAPI()


class Params(BaseModel):
    """How to answer."""

    max_tokens: int = Field(gt=0)


class Order(BaseModel):
    """A job."""

    prompt: str
    model: str
    params: Params


class Claim(BaseModel):
    """Who takes it."""

    miner_id: str


class Completion(BaseModel):
    """An answer with its receipt."""

    receipt: dict[str, str | int]
    signature: str
    provider: str
    result: str
    token_ids: list[int]


@contextmanager
def transaction() -> Iterator[sqlite3.Connection]:
    """Everything or nothing, on the disk at the end."""
    with LOCK:
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")


@app.post("/v1/jobs", status_code=201)
def submit(order: Order) -> dict[str, str]:
    """A new job."""
    job_id = secrets.token_hex(16)
    with transaction() as database:
        database.execute(
            "INSERT INTO jobs (id, state, body) VALUES (?, 'pending', ?)",
            (job_id, order.model_dump_json()),
        )
    return {"job_id": job_id}


@app.post("/v1/jobs/{job_id}/claim")
def claim(job_id: str, who: Claim) -> dict[str, str]:
    """Give it to a miner."""
    with transaction() as database:
        row = database.execute(
            "UPDATE jobs SET state = 'running', miner = ? WHERE id = ? AND state = 'pending'"
            " RETURNING body",
            (who.miner_id, job_id),
        ).fetchone()
    if row is None:
        raise HTTPException(409)
    return {"job_id": job_id, "body": row[0]}


@app.post("/v1/jobs/{job_id}/complete")
def complete(job_id: str, done: Completion) -> dict[str, str]:
    """Take the answer, verify the provider and sign."""
    message = json.dumps(done.receipt, sort_keys=True, separators=(",", ":")).encode()
    try:
        VerifyKey(bytes.fromhex(done.provider)).verify(message, bytes.fromhex(done.signature))
    except BadSignatureError:
        raise HTTPException(422) from None
    signature = KEY.sign(message).signature.hex()
    receipt = {"receipt": done.receipt, "signatures": [done.signature, signature]}
    with transaction() as database:
        row = database.execute(
            "UPDATE jobs SET state = 'completed', receipt = ?, result = ?"
            " WHERE id = ? AND state = 'running' RETURNING id",
            (json.dumps(receipt), done.model_dump_json(include={"result", "token_ids"}), job_id),
        ).fetchone()
    if row is None:
        raise HTTPException(409)
    return {"job_id": job_id, "signature": signature}
