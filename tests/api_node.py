"""A whole node behind the REST face: real stores, coordinator and sealer, without a socket.

Its clock stands still unless a test moves it.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.testclient import TestClient

from api.access import ApiMode
from api.app import build_api
from api.errors import RequestError
from api.resource import ApiSettings, Boundary
from ledger.block import hash_genesis
from ledger.encoding import decode_base64url, encode
from ledger.hashing import hash_text
from ledger.jobs import KeyRole, Prices, build_registration_message
from ledger.keys import KeyPair
from ledger.quotas import KeyLimits
from ledger.store import registry
from ledger.store.chain import ChainStore
from ledger.store.fsck import verify_chain
from ledger.store.market import open_market
from ledger.store.marketstore import MarketStore
from ledger.store.votes import VoteStore
from ledger.transaction import ReceiptPayload, sign_payload
from ledger.views import LedgerViews, TreeViews
from node import apikeys
from node.apikeys import NO_LIMITS
from node.checkpoints import CheckpointSigner
from node.coordinator import Coordinator, MarketSettings
from node.datadir import create_data_directory, load_key
from node.mempool import Mempool
from node.sealer import Sealer
from tests.builders import CREATED_MS, build_key
from tests.market_node import NoPeers

FINAL_TIMEOUT_S = 30
SETTINGS = MarketSettings(prices=Prices(tokens=2, gpu_seconds=500))
ROLES: tuple[KeyRole, ...] = ("client", "miner", "admin")


class ApiNode:
    """One node in a directory of its own."""

    def __init__(
        self,
        root: Path,
        *,
        settings: MarketSettings = SETTINGS,
        open_store: Callable[[Path, bytes], MarketStore] = open_market,
    ) -> None:
        self.now_ms = CREATED_MS
        self._settings = settings
        self._open_store = open_store
        self._directory = create_data_directory(
            root / "data", network="test", name="first", now_ms=self.now_ms
        )
        self.genesis = self._directory.load_genesis()
        self.genesis_hash = hash_genesis(self.genesis)
        self.key, self._instance = load_key(self._directory.authority_key)
        self._changed = threading.Condition()
        self._open()
        self.keys = {role: self.create_key(role) for role in ROLES}

    def _open(self) -> None:
        directory = self._directory
        self._chain = ChainStore(directory.ledger, self.genesis)
        self._store = self._open_store(directory.market, self.genesis_hash)
        self._votes = VoteStore.open(
            directory.votes,
            instance=self._instance,
            account=self.key.account,
            genesis_hash=self.genesis_hash,
        )
        self.views = LedgerViews(self._chain, self._store)
        self.tree = TreeViews(self._chain)
        self.checkpoints = CheckpointSigner(self.tree, self.genesis, self.key)
        self._height = self._chain.tip().height
        self._failure: BaseException | None = None
        self._sealer = Sealer(
            chain=self._chain,
            mempool=Mempool(chain=self._chain, market=self._store),
            peers=NoPeers(),
            votes=self._votes,
            key=self.key,
            clock_ms=self.clock_ms,
            batch_delay_ms=0,
            final=self._note_final,
            failed=self._note_failed,
        )
        self.coordinator = Coordinator(
            chain=self._chain,
            store=self._store,
            key=self.key,
            settings=self._settings,
            clock_ms=self.clock_ms,
            receipt_waiting=self._sealer.kick,
        )

    def restart(self) -> None:
        """Close every file and start over from what is in them; sealing has to be started again."""
        self.close()
        self._open()

    def verify(self) -> int:
        """fsck the ledger; returns the number of its transactions."""
        return verify_chain(
            self._directory.ledger, self.genesis, lambda _height, _last: None
        ).tree_size

    def clock_ms(self) -> int:
        return self.now_ms

    def create_key(
        self, role: KeyRole, client: str | None = None, limits: KeyLimits = NO_LIMITS
    ) -> str:
        return self._store.write(
            lambda connection: apikeys.create_key(
                connection,
                genesis_hash=self.genesis_hash,
                role=role,
                client=client,
                now_ms=self.now_ms,
                limits=limits,
            )
        ).result()

    def revoke_key(self, key: str) -> None:
        self._store.write(lambda c: registry.revoke_key(c, key.split("_")[1], 1)).result()

    def start_sealing(self) -> None:
        self._sealer.start()

    def wait_final(self, height: int) -> None:
        with self._changed:
            done = self._changed.wait_for(
                lambda: self._height >= height or self._failure, FINAL_TIMEOUT_S
            )
            if self._failure:
                raise self._failure
            assert done

    def wait_sealed(self) -> None:
        """Let every receipt that waits become final."""
        with self._changed:
            done = self._changed.wait_for(
                lambda: self.views.head().pending_transactions == 0 or self._failure,
                FINAL_TIMEOUT_S,
            )
        assert done, self._failure

    def _note_final(self, height: int) -> None:
        with self._changed:
            self._height = height
            self._changed.notify_all()
        self.coordinator.note_block()

    def _note_failed(self, error: BaseException) -> None:
        with self._changed:
            self._failure = error
            self._changed.notify_all()

    def app(
        self,
        mode: ApiMode = "dev",
        *,
        find_obstacle: Callable[[], RequestError | None] = lambda: None,
        boundary: Boundary | None = None,
        metrics: Callable[[], bytes] = lambda: b"",
        **settings: Any,
    ) -> Starlette:
        numbers = itertools.count(1)
        routes = build_api(
            self.coordinator,
            self.views,
            ApiSettings(mode=mode, version="0.1.0", default_model="llama3.2", **settings),
            tree=self.tree,
            checkpoint=self.checkpoints.newest,
            genesis=encode(self.genesis),
            clock_ms=self.clock_ms,
            make_request_id=lambda: f"req-{next(numbers)}",
            find_obstacle=find_obstacle,
            boundary=boundary,
            metrics=metrics,
        )
        return Starlette(routes=routes)

    @contextmanager
    def client(self, mode: ApiMode = "dev", role: KeyRole | None = None) -> Iterator[TestClient]:
        headers = {"X-Api-Key": self.keys[role]} if role else {}
        with TestClient(self.app(mode), headers=headers) as client:
            yield client

    def close(self) -> None:
        self._sealer.stop()
        self._votes.close()
        self._store.close()
        self._chain.close()


def run_job(
    client: TestClient,
    node: ApiNode,
    prompt: str = "Why is the sky blue?",
    miner: str = "m1",
    result: str = "Rayleigh.",
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Submit, claim and complete one job; returns the job and its receipt."""
    key = {"X-Api-Key": node.keys["client"]}
    job = client.post("/v1/jobs", json={"prompt": prompt}, headers=key).json()
    client.post("/v1/miners/register", json={"miner_id": miner, "capabilities": ["*"]})
    client.post(f"/v1/jobs/{job['job_id']}/claim", json={"miner_id": miner}).raise_for_status()
    node.now_ms += 1_500
    done = client.post(
        f"/v1/jobs/{job['job_id']}/complete", json={"miner_id": miner, "result": result}
    )
    assert done.status_code == 200, done.text
    return job, done.json()


def build_registration(node: ApiNode, name: str, key: KeyPair) -> dict[str, Any]:
    """The body that registers a miner with a key."""
    message = build_registration_message(
        genesis_hash=node.genesis_hash, miner_id=name, account=key.account
    )
    return {
        "miner_id": name,
        "capabilities": ["llama3.2"],
        "public_key": key.account,
        "proof": {"alg": "Ed25519", "key_id": key.account, "sig": key.sign(message)},
    }


def sign_report(
    claim: dict[str, Any], key: KeyPair, *, miner: str, result: str, completed_at_ms: int
) -> dict[str, Any]:
    """The body of a signed report, built from nothing but the claim's answer."""
    order = claim["work_order"]
    terms = order["receipt"]
    elapsed_micros = (completed_at_ms - terms["started_at_ms"]) * 1000
    payload = msgspec.convert(
        {
            **terms,
            "model_digest": "",
            "result_digest": hash_text(
                decode_base64url(order["result_salt"], size_bytes=32), result
            ).hex(),
            "tokens_digest": "",
            "sampler": "",
            "prompt_tokens": 0,
            "completion_tokens": 0,
            "unit_type": "gpu_seconds",
            "units_micros": elapsed_micros,
            "price_micros": elapsed_micros
            * order["unit_prices_micros"]["gpu_seconds"]
            // 1_000_000,
            "completed_at_ms": completed_at_ms,
            "metered_by": "provider",
        },
        ReceiptPayload,
    )
    signature = sign_payload(payload, key, "provider")
    return {
        "miner_id": miner,
        "result": result,
        "completed_at_ms": completed_at_ms,
        "unit_type": "gpu_seconds",
        "units": elapsed_micros / 1_000_000,
        "signature": {"alg": "Ed25519", "key_id": signature.key_id, "sig": signature.sig},
    }


MINER_KEY = build_key("miner")
