"""A live node with something on it, and a miner that serves one model while it is tested."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from ledger.jobs import KeyRole
from tests.caller import Caller
from tests.live import LiveNode

Mode = Literal["dev", "strict"]

SERVED_MODEL = "served"
"""The model of the stage's own miner; jobs of others are left to whoever tests."""
MINERS = ("miner-1", "miner-2")
"""Names that requests draw."""
_JOIN_S = 30
# Short times, so that what nobody takes up comes to an end while it is looked at. No limits of
# rate, since what is refused for its number is looked at no further.
_OPTIONS = (
    *("--lease-ms", "1000", "--heartbeat-interval-ms", "200"),
    *("--execution-timeout-ms", "1000", "--queue-timeout-ms", "2000"),
    *("--max-pending-per-key", "1000000", "--rate-limit-key", "0", "--rate-limit-address", "0"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What requests are drawn from."""

    url: str
    keys: dict[str, str]
    """By role."""
    words: dict[str, tuple[str, ...]]
    """Values that exist on the node, by parameter."""


@contextmanager
def open_stage(root: Path, mode: Mode) -> Iterator[Stage]:
    """Start a node with two final receipts, and a miner on it."""
    node = LiveNode(root / "data", "--mode", mode, *_OPTIONS)
    keys = {role: node.create_key(role) for role in get_args(KeyRole)}
    node.start()
    try:
        _register(node.url, keys["miner"] if mode == "strict" else "")
        words = _furnish(node.url, keys["admin"])
        with _serving(node.url, keys["admin"]):
            yield Stage(url=node.url, keys=keys, words=words)
    finally:
        node.stop()


def _register(url: str, key: str) -> None:
    """Make the miners that requests name; without a key they are anybody's."""
    with Caller(url, key) as caller:
        for name in MINERS:
            body = {"miner_id": name, "capabilities": ["gpu"]}
            caller.post("/v1/miners/register", **body).raise_for_status()


def _furnish(url: str, key: str) -> dict[str, tuple[str, ...]]:
    with Caller(url, key) as caller:
        receipts = []
        for height in (1, 2):
            receipts.append(caller.finish_job())
            caller.wait_for_block(height)
        shown = [caller.get(f"/v1/receipts/{name}").json() for name in receipts]
    return {
        "job_id": tuple(receipt["job_id"] for receipt in shown),
        "receipt_id": tuple(receipts),
        "transaction_id": tuple(receipt["transaction_id"] for receipt in shown),
        "account": (shown[0]["client"], shown[0]["provider"]),
        "miner_id": MINERS,
        "model": (SERVED_MODEL,),
    }


@contextmanager
def _serving(url: str, key: str) -> Iterator[None]:
    """Run a miner for SERVED_MODEL in a thread."""
    ended = threading.Event()
    problems: list[BaseException] = []

    def work() -> None:
        try:
            with Caller(url, key) as caller:
                _serve(caller, ended)
        except Exception as error:
            problems.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(_JOIN_S)
    assert not problems, problems


def _serve(caller: Caller, ended: threading.Event) -> None:
    miner = {"miner_id": "stage"}
    # A test may drain or delete the miner, or cancel the job, between any two of these; then there
    # is another one.
    while not ended.is_set():
        caller.post("/v1/miners/register", **miner, capabilities=[SERVED_MODEL]).raise_for_status()
        answer = caller.get("/v1/jobs/available?miner_id=stage&wait=1")
        job = answer.json() if answer.is_success else None
        if job is None:
            continue
        place = f"/v1/jobs/{job['job_id']}"
        if caller.post(f"{place}/claim", **miner).is_success:
            caller.post(f"{place}/complete", **miner, result="A result.")
