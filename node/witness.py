"""A witness: a follower that co-signs the heads which a log publishes, once it has verified them.

It believes nothing that it is told: the chain it compares with is its own, verified from genesis.
One round asks for the log's newest checkpoint and co-signs it only if

1. an authority of the block that ends there (or of the next one) signed it;
2. a final block of the own chain ends at that size, with that root;
3. it extends, by a consistency proof, the checkpoint that was co-signed last.

What it co-signs is durable in witness.db before the signature leaves. A checkpoint that breaks 2 or
3 is kept there, beside what it contradicts: both are signed, so together they convict the signer.
"""

from __future__ import annotations

import contextlib
import secrets
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from ledger import merkle
from ledger.authorities import AuthoritySet
from ledger.block import Header
from ledger.checkpoint import (
    Checkpoint,
    SignedCheckpoint,
    build_origin,
    cosign_checkpoint,
    log_keys,
    read_checkpoint,
    verify_checkpoint,
)
from ledger.errors import (
    CheckpointRefusedError,
    ConflictError,
    InvalidProofError,
    LedgerError,
    StoreError,
)
from ledger.keys import KeyPair
from ledger.store.chain import ChainStore, load_authority_set, load_tip, read_node
from ledger.store.database import sync_directory
from ledger.store.witness import Cosigned, Evidence, WitnessStore
from ledger.views.bundles import load_raw_block
from ledger.views.tree import find_block
from node.datadir import DataDirectory, create_key, load_key
from node.restclient import RequestFailedError, RestClient

INTERVAL_S = 10.0
_INSTANCE_BYTES = 16
_JOIN_TIMEOUT_S = 120


class Log(Protocol):
    """Where checkpoints come from (`node.restclient.RestClient`)."""

    def checkpoint(self) -> bytes:
        """Return the newest checkpoint of the log, whatever it holds."""


class Witness:
    """Co-signs one log. `observe` is called by one thread, `newest` by any."""

    def __init__(
        self,
        *,
        chain: ChainStore,
        store: WitnessStore,
        key: KeyPair,
        log: Log,
        clock_ms: Callable[[], int],
    ) -> None:
        self._chain = chain
        self._store = store
        self._key = key
        self._log = log
        self._clock_ms = clock_ms
        self.account = key.account
        self.origin = build_origin(chain.genesis)
        self._newest = store.newest(self.origin)
        self._held: bytes | None = None

    def newest(self) -> bytes | None:
        """Return the note that was co-signed last; None before the first one."""
        return self._newest.note if self._newest else None

    def observe(self) -> bytes:
        """Ask the log for its checkpoint and return it co-signed.

        Raises:
            InvalidNoteError: what the log says is no checkpoint of an authority.
            ConflictError: it contradicts the verified chain; the evidence is kept.
            CheckpointRefusedError: it is behind what was co-signed, or ahead of what is verified.
            LedgerError: the log does not answer.
            StoreError: the own files fail; the witness must stop.
        """
        data = self._log.checkpoint()
        with self._chain.database.snapshot() as ledger:
            data = self._choose(data, verified=load_tip(ledger).tree_size)
            signed = self._judge(ledger, data)
        return self._cosign(signed)

    def _choose(self, data: bytes, *, verified: int) -> bytes:
        """Return the checkpoint to judge: this one, or an earlier one that has come within reach.

        A log that grows is always ahead by a little, so the nearest checkpoint ahead is held until
        the own chain has got there. A lie about a size is forgotten for the next nearer one.
        """
        size = read_checkpoint(data).size
        held, self._held = self._held, None
        if size <= verified:
            return data
        self._held = data
        if held is not None:
            held_size = read_checkpoint(held).size
            if held_size <= verified:
                return held
            if held_size < size:
                self._held = held
        raise CheckpointRefusedError(
            f"checkpoint of {size} leaves: this witness has verified {verified} so far"
        )

    def _judge(self, ledger: sqlite3.Connection, data: bytes) -> SignedCheckpoint:
        size = read_checkpoint(data).size
        block = find_block(ledger, size)
        signers = self._list_signers(ledger, block)
        keys = [key for members in signers for key in log_keys(self.origin, members)]
        signed = verify_checkpoint(data, origin=self.origin, keys=keys)
        try:
            _check_own_chain(ledger, signed.checkpoint, block)
            self._check_progress(ledger, signed.checkpoint)
        except InvalidProofError as error:
            self._keep(ledger, signed, block, str(error))
            raise ConflictError(
                f"checkpoint of {size} leaves contradicts the verified chain: {error}; "
                f"the evidence is kept in {self._store.path}"
            ) from error
        return signed

    def _list_signers(self, ledger: sqlite3.Connection, block: Header | None) -> list[AuthoritySet]:
        if block is None:
            return [self._chain.genesis.authority_set]
        hashes = {bytes.fromhex(block.set_hash), bytes.fromhex(block.next_set_hash)}
        return [load_authority_set(ledger, set_hash) for set_hash in sorted(hashes)]

    def _check_progress(self, ledger: sqlite3.Connection, checkpoint: Checkpoint) -> None:
        if self._newest is None or self._newest.checkpoint.size == 0:
            return
        last = self._newest.checkpoint
        if checkpoint.size < last.size:
            raise CheckpointRefusedError(
                f"checkpoint of {checkpoint.size} leaves: {last.size} were co-signed already"
            )
        merkle.verify_consistency(
            old_size=last.size,
            old_root=last.root,
            new_size=checkpoint.size,
            new_root=checkpoint.root,
            path=merkle.build_consistency_path(
                last.size, checkpoint.size, lambda *node: read_node(ledger, *node)
            ),
        )

    def _keep(
        self,
        ledger: sqlite3.Connection,
        signed: SignedCheckpoint,
        block: Header | None,
        reason: str,
    ) -> None:
        self._store.keep(
            Evidence(
                seen_at_ms=self._clock_ms(),
                reason=reason,
                published=signed.encode(),
                cosigned=self.newest(),
                block=load_raw_block(ledger, block.height) if block else None,
            )
        )

    def _cosign(self, signed: SignedCheckpoint) -> bytes:
        # The clock may have been set back; what was said at a later time stays said.
        time_s = max(self._clock_ms() // 1000, self._newest.time_s if self._newest else 0)
        cosigned = Cosigned(
            checkpoint=signed.checkpoint,
            time_s=time_s,
            note=cosign_checkpoint(signed, self._key, time_s=time_s),
        )
        self._store.record(cosigned)
        self._newest = cosigned
        return cosigned.note


def _check_own_chain(
    ledger: sqlite3.Connection, checkpoint: Checkpoint, block: Header | None
) -> None:
    size = block.tree_size if block else 0
    root = bytes.fromhex(block.tree_root) if block else merkle.EMPTY_ROOT
    if checkpoint.size != size:
        raise InvalidProofError(f"no final block ends at {checkpoint.size} leaves")
    if checkpoint.root != root:
        raise InvalidProofError(f"tree root: expected {root.hex()}, got {checkpoint.root.hex()}")


def open_identity(data: DataDirectory) -> tuple[KeyPair, WitnessStore]:
    """Return a witness' key and its memory; both are made at its first start.

    Raises:
        StoreError: one of them is missing or belongs to another one, or the disk refuses.
    """
    if not data.witness_key.exists():
        _create_identity(data)
    key, instance = load_key(data.witness_key)
    return key, WitnessStore.open(data.witness, instance=instance, account=key.account)


def _create_identity(data: DataDirectory) -> None:
    # The key gets its name last: before that it cannot have signed anything, so what a start that
    # was cut off has left may go.
    WitnessStore.discard_unused(data.witness)
    draft = data.witness_key.with_suffix(".new")
    instance = secrets.token_hex(_INSTANCE_BYTES)
    key = create_key(draft, instance=instance)
    WitnessStore.create(data.witness, instance=instance, account=key.account)
    try:
        draft.replace(data.witness_key)
        sync_directory(draft.parent)
    except OSError as error:
        raise StoreError(f"{data.witness_key}: cannot be written: {error.strerror}") from error


class WitnessThread:
    """Runs a witness beside its node. `kick` it when the chain has grown."""

    def __init__(
        self,
        witness: Witness,
        *,
        report: Callable[[str], None],
        failed: Callable[[BaseException], None],
        interval_s: float = INTERVAL_S,
    ) -> None:
        """Make it, not yet running.

        Args:
            witness: used by this thread alone from now on, but for `newest`.
            report: gets a sentence when it begins to co-sign, or when there is another reason why
                it does not; not with every block.
            failed: is told, from the thread, why the witness had to stop.
            interval_s: most time between two rounds.
        """
        self._witness = witness
        self._report = report
        self._failed = failed
        self._interval_s = interval_s
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="witness", daemon=True)

    def start(self) -> None:
        """Begin with the first round."""
        self._thread.start()

    def kick(self) -> None:
        """Begin the next round now, from any thread."""
        self._wake.set()

    def stop(self) -> None:
        """End after the round that runs. Harmless before the start, and again."""
        self._stopping = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(_JOIN_TIMEOUT_S)

    def _run(self) -> None:
        try:
            self._observe_until_stopped()
        except Exception as error:  # whatever it is, the node must not go on as if it co-signed
            self._failed(error)

    def _observe_until_stopped(self) -> None:
        last = ""
        while not self._stopping:
            self._wake.clear()
            kind, sentence = self._observe()
            if kind != last:
                self._report(sentence)
                last = kind
            if not self._stopping:
                self._wake.wait(self._interval_s)

    def _observe(self) -> tuple[str, str]:
        """Do one round and say how it went: what kind of outcome, and a sentence.

        Raises:
            StoreError: the witness' own files fail; nothing is signed any more.
        """
        try:
            size = read_checkpoint(self._witness.observe()).size
        except StoreError:
            raise
        except ConflictError as error:
            return str(error), f"not co-signed: {error}"  # each of them is worth a line
        except LedgerError as error:
            return type(error).__name__, f"not co-signed: {error}"
        return "co-signed", f"co-signed {size} leaves of {self._witness.origin}"


@contextlib.contextmanager
def open_witness(
    data: DataDirectory, chain: ChainStore, *, urls: Sequence[str], clock_ms: Callable[[], int]
) -> Iterator[Witness]:
    """Put a witness over an open chain, with the key of its data directory.

    `urls` are nodes of the log; the first one that answers is believed as little as the others.

    Raises:
        StoreError: its key or its memory is missing or foreign.
    """
    with contextlib.ExitStack() as stack:
        key, store = open_identity(data)
        stack.callback(store.close)
        logs = [stack.enter_context(RestClient(url)) for url in urls]
        yield Witness(chain=chain, store=store, key=key, log=FirstToAnswer(logs), clock_ms=clock_ms)


class FirstToAnswer:
    """Several nodes of one log, asked in their order."""

    def __init__(self, logs: Sequence[Log]) -> None:
        self._logs = logs

    def checkpoint(self) -> bytes:
        """Return the newest checkpoint of the first node that has one."""
        for log in self._logs[:-1]:
            with contextlib.suppress(RequestFailedError):
                return log.checkpoint()
        return self._logs[-1].checkpoint()
