"""Where a network stands, for whoever is about to change it: from a data directory, or a node."""

from __future__ import annotations

import contextlib
import sqlite3

import msgspec

from ledger.authorities import Authority, AuthoritySet, hash_authority_set
from ledger.block import (
    Certificate,
    Genesis,
    Header,
    Tip,
    build_genesis_tip,
    build_tip,
    hash_genesis,
    parse_genesis,
)
from ledger.errors import LedgerError, StoreError
from ledger.store.chain import load_tip
from ledger.store.database import open_reader
from node.datadir import DataDirectory
from node.restclient import RequestFailedError, RestClient


class _Member(msgspec.Struct):
    account: str
    name: str
    url: str


class _Authorities(msgspec.Struct):
    """What is needed of `GET /v1/authorities`."""

    height: int
    epoch: int
    members: tuple[_Member, ...]
    coordinators: tuple[str, ...]


class _RawBlock(msgspec.Struct):
    """`/blocks/{height}.json`."""

    header: Header
    certificate: Certificate


def read_local_tip(data: DataDirectory) -> Tip:
    """Return the newest state in a data directory, whether its node runs or not.

    Raises:
        StoreError: there is no chain to read.
    """
    if not data.ledger.exists():
        raise StoreError(
            f"{data.ledger}: there is no chain here yet; give --url with the address of a node"
        )
    try:
        with contextlib.closing(open_reader(data.ledger)) as connection:
            return load_tip(connection)
    except sqlite3.DatabaseError as error:
        raise StoreError(f"{data.ledger}: cannot be read: {error}") from error


def fetch_tip(client: RestClient, *, genesis: Genesis | None) -> Tip:
    """Return the newest state that a node shows, and that fits together.

    That it is the true one is only as sure as the node is honest. It need not be: whoever signs is
    shown what it signs, and what is submitted is verified by every authority on its own chain.

    Raises:
        RequestFailedError: no answer, or one that does not fit together or is of another network
            than `genesis`.
    """
    try:
        theirs = parse_genesis(client.genesis())
        tip = _fetch_newest(client, theirs)
    except RequestFailedError:
        raise
    except (LedgerError, msgspec.MsgspecError) as error:
        raise RequestFailedError(f"{client.url}: what it shows is not sound: {error}") from error
    if genesis is not None and theirs != genesis:
        raise RequestFailedError(
            f"{client.url}: is of network {hash_genesis(theirs).hex()[:16]}…, expected "
            f"{hash_genesis(genesis).hex()[:16]}…"
        )
    return tip


def _fetch_newest(client: RestClient, genesis: Genesis) -> Tip:
    shown = msgspec.json.decode(client.fetch("/v1/authorities"), type=_Authorities)
    current = AuthoritySet(
        epoch=shown.epoch,
        members=tuple(Authority(account=m.account, name=m.name, url=m.url) for m in shown.members),
        coordinators=shown.coordinators,
    )
    if shown.height == 0:
        tip = build_genesis_tip(genesis)
        if tip.authority_set != current:
            raise StoreError("the set of epoch 0 is not that of genesis")
        return tip
    path = f"/blocks/{shown.height}.json"
    header = msgspec.json.decode(client.fetch(path), type=_RawBlock).header
    genesis_hash, set_hash = hash_genesis(genesis), hash_authority_set(current).hex()
    if (header.genesis, header.next_set_hash) != (genesis_hash.hex(), set_hash):
        raise StoreError(f"block {header.height} names another network, or another next set")
    return build_tip(header, authority_set=current, limits=genesis.limits)
