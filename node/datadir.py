"""A node's data directory: who it is, and the three databases.

    genesis.json          the network's trust root; public
    ledger.db             the chain; public
    node.db               jobs, prompts, API keys; private
    votes.db              what this authority has signed; never copied, backed up or restored
    keys/authority.json   the key that seals blocks and coordinates jobs (0600)
    keys/miner.json       the key of the miner that `aitbc up` starts (0600)
    node.toml             options of `aitbc run` for this directory, if it has any of its own

    witness.db            what a witness has co-signed; never copied, backed up or restored
    keys/witness.json     the key of a witness (0600)

The directory is made whole beside its place and then renamed, so there is no half-made one.
"""

from __future__ import annotations

import contextlib
import fcntl
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from ledger.authorities import Authority, AuthoritySet
from ledger.block import Genesis, Limits, hash_genesis, parse_genesis
from ledger.encoding import decode_base64url, encode, encode_base64url
from ledger.errors import LedgerError, StoreError
from ledger.keys import SEED_BYTES, KeyPair
from ledger.store.database import sync_directory
from ledger.store.votes import VoteStore
from node.files import write_private, write_public

Draw = Callable[[int], bytes]
"""Returns so many random bytes."""

_PRIVATE_DIRECTORY = 0o700
_INSTANCE_BYTES = 16


class KeyFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A signing key on disk."""

    v: Literal[1] = 1
    account: str
    """Derived from the seed; there for people, and checked."""
    seed: str
    """32 bytes, base64url."""
    instance: Annotated[str, msgspec.Meta(max_length=64)] = ""
    """Matches an authority's key to the votes.db that was made with it."""

    def __repr__(self) -> str:
        return f"KeyFile(account={self.account!r})"


@dataclass(frozen=True, slots=True)
class DataDirectory:
    """The paths of one node's files."""

    root: Path

    @property
    def genesis(self) -> Path:
        """The genesis document."""
        return self.root / "genesis.json"

    @property
    def ledger(self) -> Path:
        """The public chain."""
        return self.root / "ledger.db"

    @property
    def market(self) -> Path:
        """Jobs, keys, mempool."""
        return self.root / "node.db"

    @property
    def votes(self) -> Path:
        """The authority's votes."""
        return self.root / "votes.db"

    @property
    def authority_key(self) -> Path:
        """The authority's key file."""
        return self.root / "keys" / "authority.json"

    @property
    def miner_key(self) -> Path:
        """The key file of the miner beside this node."""
        return self.root / "keys" / "miner.json"

    @property
    def witness(self) -> Path:
        """What the witness of this node has co-signed."""
        return self.root / "witness.db"

    @property
    def witness_key(self) -> Path:
        """The witness' key file."""
        return self.root / "keys" / "witness.json"

    @property
    def connection(self) -> Path:
        """Addresses and API keys of a running `aitbc up`."""
        return self.root / "connection.json"

    @property
    def options(self) -> Path:
        """Options of `aitbc run` that belong to this directory."""
        return self.root / "node.toml"

    def log(self, name: str) -> Path:
        """The log of a process that runs beside others: `node` or `miner`."""
        return self.root / "logs" / f"{name}.log"

    def load_genesis(self) -> Genesis:
        """Read the genesis document.

        Raises:
            StoreError: there is none, or it is not one.
        """
        try:
            return parse_genesis(self.genesis.read_bytes())
        except OSError as error:
            raise StoreError(
                f"{self.genesis}: cannot be read ({error.strerror}); make a data directory with "
                f"./aitbc init --data {self.root}"
            ) from error
        except LedgerError as error:
            raise StoreError(f"{self.genesis}: {error}") from error

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the directory: two nodes on one would sign against each other.

        Raises:
            StoreError: another process holds it.
        """
        try:
            handle = (self.root / "node.lock").open("w")
        except OSError as error:
            raise StoreError(f"{self.root}: is not writable: {error.strerror}") from error
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise StoreError(
                    f"{self.root}: another node runs on this data directory; stop it first"
                ) from error
            yield


@dataclass(frozen=True, slots=True, kw_only=True)
class Founder:
    """One authority of a network to be made."""

    root: Path
    """Its data directory."""
    name: str
    url: str = ""
    """Where peers will reach it."""


def load_key(path: Path) -> tuple[KeyPair, str]:
    """Read a key file; returns the key and its instance id.

    Raises:
        StoreError: missing, malformed, or its account is not the seed's.
    """
    try:
        stored = msgspec.json.decode(path.read_bytes(), type=KeyFile)
        key = KeyPair.from_seed(decode_base64url(stored.seed, size_bytes=SEED_BYTES))
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, LedgerError) as error:
        raise StoreError(f"{path}: is not a key file") from error
    if key.account != stored.account:
        raise StoreError(f"{path}: its seed belongs to {key.account}, it says {stored.account}")
    return key, stored.instance


def create_key(path: Path, *, instance: str = "", draw: Draw = secrets.token_bytes) -> KeyPair:
    """Draw a new key and write its file, readable by its owner alone."""
    seed = draw(SEED_BYTES)
    key = KeyPair.from_seed(seed)
    stored = KeyFile(account=key.account, seed=encode_base64url(seed), instance=instance)
    path.parent.mkdir(parents=True, exist_ok=True, mode=_PRIVATE_DIRECTORY)
    write_private(path, encode(stored) + b"\n")
    return key


def create_data_directory(
    root: Path,
    *,
    network: str,
    name: str,
    url: str = "",
    now_ms: int,
    draw: Draw = secrets.token_bytes,
) -> DataDirectory:
    """Make the data directory of the one authority of a new network.

    Raises:
        StoreError: there is something already, or the disk refuses.
    """
    (made,) = create_network(
        [Founder(root=root, name=name, url=url)], network=network, now_ms=now_ms, draw=draw
    )
    return made


def create_network(
    founders: Sequence[Founder],
    *,
    network: str,
    now_ms: int,
    draw: Draw = secrets.token_bytes,
) -> list[DataDirectory]:
    """Make the data directories of all authorities of a new network, on one machine.

    Raises:
        StoreError: there is something already, or the disk refuses.
    """
    with contextlib.ExitStack() as stack:
        drafts = [stack.enter_context(_draft(founder.root)) for founder in founders]
        identities = [_draw_identity(draft, draw) for draft in drafts]
        members = tuple(
            Authority(account=key.account, name=founder.name, url=founder.url)
            for founder, (key, _) in zip(founders, identities, strict=True)
        )
        genesis = Genesis(
            network=network,
            created_ms=now_ms,
            authority_set=AuthoritySet(epoch=0, members=members),
            limits=Limits(),
            settlement="off_chain",
        )
        for draft, (key, instance) in zip(drafts, identities, strict=True):
            _found(draft, genesis, key=key, instance=instance)
    return [DataDirectory(founder.root) for founder in founders]


def create_joining_directory(root: Path, genesis: Genesis) -> DataDirectory:
    """Make the data directory of a node with a new key on a network that exists.

    Its key has no vote until the authorities take it into their set. Its votes.db is made now,
    with the key and for this network, as every authority's is.

    Raises:
        StoreError: there is something already, or the disk refuses.
    """
    with _draft(root) as draft:
        key, instance = _draw_identity(draft)
        _found(draft, genesis, key=key, instance=instance)
    return DataDirectory(root)


def create_follower_directory(root: Path, genesis: Genesis) -> DataDirectory:
    """Make the data directory of a node that follows a network without a key of its own.

    Raises:
        StoreError: there is something already, or the disk refuses.
    """
    with _draft(root) as draft:
        write_public(draft.genesis, encode(genesis) + b"\n")
    return DataDirectory(root)


@contextmanager
def _draft(root: Path) -> Iterator[DataDirectory]:
    """Fill a directory beside its place; it appears there whole, or not at all."""
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise StoreError(f"{root}: is not an empty directory; choose another --data")
    if root.is_mount():
        raise StoreError(
            f"{root}: is where a volume is mounted, and a data directory is moved to its place "
            f"whole; choose one inside, such as --data {root / 'node'}"
        )
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        draft = DataDirectory(Path(tempfile.mkdtemp(prefix=f".{root.name}.", dir=root.parent)))
        try:
            yield draft
            draft.root.replace(root)  # fails if somebody else made the directory meanwhile
        finally:
            shutil.rmtree(draft.root, ignore_errors=True)
        sync_directory(root.parent)
    except OSError as error:
        raise StoreError(f"{root}: cannot be created: {error.strerror or error}") from error


def _draw_identity(draft: DataDirectory, draw: Draw = secrets.token_bytes) -> tuple[KeyPair, str]:
    """Draw the keys of a node; returns the authority's and its instance id."""
    instance = draw(_INSTANCE_BYTES).hex()
    create_key(draft.miner_key, draw=draw)
    return create_key(draft.authority_key, instance=instance, draw=draw), instance


def _found(draft: DataDirectory, genesis: Genesis, *, key: KeyPair, instance: str) -> None:
    """Bind a key to a network: its genesis, and the memory of its votes there."""
    VoteStore.create(
        draft.votes,
        instance=instance,
        account=key.account,
        genesis_hash=hash_genesis(genesis),
    ).close()
    document = encode(genesis) + b"\n"
    parse_genesis(document)  # names that no reader accepts are refused before anything is made
    write_public(draft.genesis, document)
