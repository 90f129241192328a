"""Files of the release before: they are brought up to date, and nothing in them changes.

`write_old_ledger` and `write_old_market` are what that release did, statement by statement, so
that these files stay what they were whatever the code becomes.
"""

import contextlib
import sqlite3

import pytest
import sqlite_utils
from sqlite_utils.migrations import Migrations

from ledger.authorities import hash_authority_set
from ledger.block import hash_genesis
from ledger.encoding import encode
from ledger.errors import StoreError
from ledger.store import jobs as job_store
from ledger.store import lists, queue, schema
from ledger.store import market as market_store
from ledger.store.chain import ChainStore, locate_node
from ledger.store.fsck import verify_chain
from ledger.store.jobs import load_job
from ledger.store.market import open_market
from ledger.store.mempool import insert_transaction, list_mempool
from ledger.store.registry import find_miner, view_miner
from ledger.store.rows import block_figures, receipt_rows
from tests.builders import build_chain, build_evidence, build_members, build_receipt
from tests.test_market_store import build_miner

CHAIN = build_chain(1, blocks=[2, 1, 3])
GENESIS_HASH = hash_genesis(CHAIN.genesis)


def apply_first(connection, name, migration) -> None:
    """Bring an empty file to the schema of the first release."""
    first = Migrations(name)
    first(name=migration.__name__)(migration)
    first.apply(sqlite_utils.Database(connection))


def write_old_ledger(path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        apply_first(connection, "ledger", schema.m001_chain)
        authorities = CHAIN.genesis.authority_set
        connection.execute(
            "INSERT INTO genesis VALUES (1, ?, ?)", (GENESIS_HASH, encode(CHAIN.genesis).decode())
        )
        connection.execute(
            "INSERT INTO authority_sets VALUES (0, ?, 1, ?)",
            (hash_authority_set(authorities), encode(authorities).decode()),
        )
        connection.execute("INSERT INTO counters VALUES ('receipts', 6)")
        leaf = 0
        for block, certificate in zip(CHAIN.blocks, CHAIN.certificates, strict=True):
            connection.execute(
                "INSERT INTO blocks VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    block.header.height,
                    block.hash,
                    *block_figures(block),
                    encode(block.header).decode(),
                    encode(certificate).decode(),
                ),
            )
            for transaction in block.transactions:
                connection.execute(
                    "INSERT INTO transactions VALUES (?, ?, ?, 'receipt', ?)",
                    (
                        leaf,
                        bytes(transaction.id),
                        block.header.height,
                        transaction.envelope.decode(),
                    ),
                )
                leaf += 1
            connection.executemany(
                "INSERT INTO receipts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                receipt_rows(block, leaf - len(block.transactions)),
            )
        connection.executemany(
            "INSERT INTO tree_nodes VALUES (?, ?)",
            [(locate_node(*place), node) for place, node in CHAIN.nodes.items()],
        )
        connection.commit()


def write_old_market(path, receipts) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        apply_first(connection, "node", market_store.m001_market)
        connection.execute("INSERT INTO node VALUES (1, ?)", (GENESIS_HASH,))
        for seq, receipt in receipts.items():
            payload = receipt.payload
            connection.execute(
                "INSERT INTO mempool VALUES (?, ?, ?, ?, ?, ?, 7, ?)",
                (
                    seq,
                    bytes(receipt.id),
                    payload.receipt_id,
                    payload.client,
                    payload.provider,
                    payload.model,
                    receipt.envelope.decode(),
                ),
            )
        connection.commit()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file.db"


def verify(path):
    return verify_chain(path, CHAIN.genesis, lambda _height, _last: None)


def test_an_older_ledger_is_whole_and_goes_on(path):
    write_old_ledger(path)
    chain = build_chain(1, blocks=[2, 1, 3])
    with contextlib.closing(ChainStore(path, chain.genesis)) as store:
        assert store.tip() == CHAIN.tip
        chain.change_authorities(
            build_members(2, epoch=1), build_evidence(chain.genesis, chain.members[0])
        )
        chain.append(build_receipt(chain.genesis, 9))
        for block, certificate in zip(chain.blocks[3:], chain.certificates[3:], strict=True):
            store.append(block, certificate).result()
    assert verify(path) == chain.tip


def test_an_older_ledger_is_the_same_file_afterwards_as_one_made_today(tmp_path):
    old, new = tmp_path / "old.db", tmp_path / "new.db"
    write_old_ledger(old)
    ChainStore(old, CHAIN.genesis).close()
    with contextlib.closing(ChainStore(new, CHAIN.genesis)) as store:
        for block, certificate in zip(CHAIN.blocks, CHAIN.certificates, strict=True):
            store.append(block, certificate).result()
    assert dump(old) == dump(new)
    assert verify(old) == CHAIN.tip


def dump(path):
    with contextlib.closing(sqlite3.connect(path)) as connection:
        tables = [
            name
            for (name,) in connection.execute(
                "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT GLOB '*sqlite_*'"
            )
        ]
        return {
            table: (
                [column[1:] for column in connection.execute(f"PRAGMA table_info({table})")],
                connection.execute(f"SELECT * FROM {table} ORDER BY rowid").fetchall(),
            )
            for table in tables
        }


def test_an_older_ledger_that_no_node_has_opened_is_not_called_damaged(path):
    write_old_ledger(path)
    with pytest.raises(StoreError, match="written by an older release"):
        verify(path)


def test_receipts_that_wait_in_an_older_file_keep_their_places(path):
    receipts = {3: build_receipt(CHAIN.genesis, 1), 8: build_receipt(CHAIN.genesis, 2)}
    write_old_market(path, receipts)
    evidence = build_evidence(CHAIN.genesis, CHAIN.members[0])
    with contextlib.closing(open_market(path, GENESIS_HASH)) as store:
        assert list_mempool(store.reader, limit=9) == [
            (seq, bytes(receipt.id), receipt.payload.receipt_id, receipt.envelope)
            for seq, receipt in receipts.items()
        ]
        seq = store.write(lambda c: insert_transaction(c, evidence, now_ms=8)).result()
        assert seq == 9
        row = store.reader.execute("SELECT client, provider, model FROM mempool").fetchone()
        payload = receipts[3].payload
        assert tuple(row) == (payload.client, payload.provider, payload.model)
    with contextlib.closing(open_market(path, GENESIS_HASH)) as store:
        assert list_mempool(store.reader, limit=9)[-1] == (
            9,
            bytes(evidence.id),
            None,
            evidence.envelope,
        )


def test_a_job_of_an_older_file_does_not_say_why_its_answer_ended(path):
    write_old_market(path, {})
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(
            "INSERT INTO jobs (id, state, status_reason, client, owner, model, model_key, prompt,"
            " max_tokens, temperature_micros, top_p_micros, stop, seed, prompt_salt, result_salt,"
            " price_token_micros, price_gpu_second_micros, created_at_ms, result)"
            " VALUES (x'07', 'completed', 'completed', 'c', 'k', 'm', 'm', 'p', 1, 0, 1, '[]', 2,"
            " x'', x'', 3, 4, 5, 'r')"
        )
        connection.commit()
    with contextlib.closing(open_market(path, GENESIS_HASH)) as store:
        job = load_job(store.reader, b"\x07")
        assert (job.result, job.finish_reason) == ("r", None)


def test_a_mempool_row_is_a_receipt_with_all_its_columns_or_none(path):
    with contextlib.closing(open_market(path, GENESIS_HASH)) as store:
        for filled in range(1, 15):
            values = ["x" if filled >> place & 1 else None for place in range(4)]
            with pytest.raises(sqlite3.IntegrityError, match="CHECK"):
                store.write(
                    lambda c, values=values: c.execute(
                        "INSERT INTO mempool VALUES (NULL, x'00', ?, ?, ?, ?, 1, '')", values
                    )
                ).result()


def test_jobs_of_an_older_node_are_counted_and_queued(path):
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        apply_first(connection, "node", market_store.m001_market)
        connection.execute("INSERT INTO node VALUES (1, ?)", (GENESIS_HASH,))
        for number, (owner, state) in enumerate(
            [
                ("x", "pending"),
                ("x", "pending"),
                ("x", "pending"),
                ("y", "pending"),
                ("y", "failed"),
            ]
        ):
            connection.execute(
                "INSERT INTO jobs (id, state, status_reason, client, owner, model, model_key,"
                " prompt, max_tokens, temperature_micros, top_p_micros, stop, seed, prompt_salt,"
                " result_salt, price_token_micros, price_gpu_second_micros, created_at_ms)"
                " VALUES (?, ?, '', 'c', ?, 'm', 'm', 'p', 1, 1, 1, '[]', 1, ?, ?, 1, 1, 1)",
                (bytes([number]) * 16, state, owner, bytes(32), bytes(32)),
            )
        connection.execute("INSERT INTO miners VALUES ('m', NULL, '[]', NULL, NULL, 'y', 1, 1)")
        connection.execute("UPDATE jobs SET miner_id = 'm' WHERE state = 'failed'")
        connection.commit()
    with contextlib.closing(open_market(path, GENESIS_HASH)) as store:
        reader = store.reader
        assert lists.count_jobs(reader) == 5
        assert lists.count_jobs(reader, owner="x", state="pending") == 3
        assert lists.count_jobs(reader, state="failed") == 1
        standing = view_miner(reader, find_miner(reader, "m"), 0)
        assert (standing.completed, standing.lost) == (0, 1)
        taken = []
        while job := queue.find_available(reader, build_miner()):
            taken.append(job.owner)
            store.write(lambda c, job=job: take(c, job)).result()
        assert "".join(taken) == "xyxx"


def take(connection, job) -> None:
    queue.take_turn(connection, job, build_miner())
    job_store.end_job(connection, job, state="cancelled", reason="", now_ms=1)
