"""A follower: a node without a key and without a vote, which verifies everything from genesis.

It serves reads, the explorer and the block stream from a chain of its own. Of other nodes it needs
only the time: what they send counts for what it proves. Jobs are for coordinators.

With a pinned checkpoint it begins there, and a second syncer fetches the history behind.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from starlette.applications import Starlette

from api.errors import RequestError
from api.nomarket import NoMarket
from ledger.block import Tip, VerifiedBlock, hash_genesis, parse_genesis
from ledger.errors import StoreError
from ledger.keys import self_test
from ledger.pin import MAX_PIN_BYTES, parse_pin
from ledger.store.chain import ChainStore
from ledger.store.market import open_market
from ledger.store.registry import find_key
from ledger.views import LedgerViews, SyncProgress
from node.apikeys import authenticate
from node.application import RELEASE, build_application, build_metrics
from node.clock import read_clock_ms
from node.config import NodeSettings, format_options
from node.datadir import DataDirectory, create_follower_directory
from node.files import load_document, write_private
from node.gauges import NodeState, StateCollector, list_waiters
from node.head import HeadWatch
from node.p2p.address import parse_url
from node.p2p.routes import build_status_route
from node.running import Running
from node.sync import Syncer
from node.sync.progress import describe_progress
from node.watch import NodeWatch
from node.witness import WitnessThread, open_witness

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Follower(Running):
    """A follower with its files open."""

    views: LedgerViews
    syncer: Syncer


def prepare_follower(data: DataDirectory, *, sources: Sequence[str], genesis: Path | None) -> None:
    """Make a follower's data directory, or hold the one that is there to what was given.

    A new one takes a copy of the network's genesis file, and remembers its sources.

    Raises:
        PeerError: a source is no address.
        StoreError: the directory is an authority's or of another network, or there is no genesis.
    """
    if data.authority_key.exists():
        raise StoreError(
            f"{data.root}: holds the key of an authority, which takes part and does not follow; "
            "choose another --data, or run it without --follow"
        )
    for source in sources:
        parse_url(source)
    if genesis is not None:
        given = load_document(genesis, parse_genesis)
        if not data.genesis.exists():
            create_follower_directory(data.root, given)
        elif (known := data.load_genesis()) != given:
            raise StoreError(
                f"{data.root}: belongs to network {hash_genesis(known).hex()[:16]}…, {genesis} "
                f"names {hash_genesis(given).hex()[:16]}…; choose another --data"
            )
    elif not data.genesis.exists():
        raise StoreError(
            "a new follower needs --genesis FILE: your own copy of the network's genesis file, "
            "which is all that it trusts"
        )
    if not data.options.exists():
        write_private(data.options, format_options({"follow": list(sources)}))


@contextlib.contextmanager
def open_follower(
    settings: NodeSettings,
    *,
    stop: Callable[[], None],
    clock_ms: Callable[[], int] = read_clock_ms,
) -> Iterator[Follower]:
    """Open the data directory, hold it, and put the follower together; close it at the end.

    One that holds the key of a witness co-signs what it follows.

    `stop()` is called, from any thread, when it cannot go on; `Follower.failure` tells why.

    Raises:
        StoreError: the directory is missing, foreign, or held by another node.
    """
    self_test()
    data = DataDirectory(settings.data)
    genesis = data.load_genesis()
    with contextlib.ExitStack() as stack:
        stack.enter_context(data.lock())
        chain = ChainStore(data.ledger, genesis)
        stack.callback(chain.close)
        market = open_market(data.market, hash_genesis(genesis))
        stack.callback(market.close)
        if settings.checkpoint is not None:
            pin = load_document(
                settings.checkpoint, lambda data: parse_pin(data, genesis), MAX_PIN_BYTES
            )
            chain.adopt_pin(pin).result()
        head = HeadWatch(chain.tip().height)

        def note_failure(error: BaseException) -> None:
            follower.failure = error
            stop()

        rounds: WitnessThread | None = None
        checkpoint: Callable[[], bytes | None] = _sign_nothing
        if data.witness_key.exists():
            witness = stack.enter_context(
                open_witness(data, chain, urls=settings.follow, clock_ms=clock_ms)
            )
            checkpoint = witness.newest
            rounds = WitnessThread(
                witness, report=lambda sentence: logger.info("%s", sentence), failed=note_failure
            )
            stack.callback(rounds.stop)

        def note_block(height: int) -> None:
            head.note(height)
            if rounds is not None:
                rounds.kick()

        history, syncer = open_syncers(
            stack, chain, settings.follow, note_block=note_block, failed=note_failure
        )
        watch = NodeWatch(progress=lambda: syncer.progress, peers=list)
        views = LedgerViews(chain, market, network=watch)

        metrics = build_metrics(settings, "follower" if rounds is None else "witness")
        state = NodeState(
            chain=chain,
            market=market,
            clock_ms=clock_ms,
            sync=lambda: syncer.progress,
            waiters=list_waiters(head),
        )
        metrics.registry.register(StateCollector(state))

        async def lifespan(_: Starlette) -> AsyncIterator[None]:
            head.signal.bind()
            history.start()
            syncer.start()
            if rounds is not None:
                rounds.start()
            yield

        app = build_application(
            settings,
            market=NoMarket(
                _refuse(chain, settings.follow),
                find_own_key=lambda secret: authenticate(
                    partial(find_key, market.reader), secret, genesis_hash=hash_genesis(genesis)
                ),
            ),
            views=views,
            chain=chain,
            head=head,
            syncer=syncer,
            checkpoint=checkpoint,
            clock_ms=clock_ms,
            metrics=metrics,
            routes=[build_status_route(chain, account="", release=RELEASE)],
            lifespan=lifespan,
        )
        follower = Follower(app=app, views=views, syncer=syncer, head=head)
        yield follower


def open_syncers(
    stack: contextlib.ExitStack,
    chain: ChainStore,
    sources: Sequence[str],
    *,
    note_block: Callable[[int], None],
    failed: Callable[[BaseException], None],
) -> tuple[Syncer, Syncer]:
    """Return what fetches the history below a checkpoint, and what follows the newest block."""
    line = ProgressLine()
    history = Syncer(
        tip=chain.history_tip,
        apply=chain.append_history,
        sources=lambda: sources,
        follow=lambda: False,
        failed=failed,
    )
    stack.callback(history.stop)

    def show(progress: SyncProgress) -> None:
        if missing := chain.missing():
            history.request(missing[-1])  # again and again, whoever could not help before
        if sys.stderr.isatty():
            line.show(progress)

    syncer = Syncer(
        tip=chain.tip,
        apply=lambda batch: _store(chain, note_block, batch),
        sources=lambda: sources,
        follow=lambda: True,
        failed=failed,
        shown=show,
    )
    stack.callback(syncer.stop)
    return history, syncer


def _store(
    chain: ChainStore, note_block: Callable[[int], None], batch: Sequence[VerifiedBlock]
) -> Future[Tip]:
    stored = chain.append_verified(batch)

    def note(done: Future[Tip]) -> None:
        if not done.cancelled() and done.exception() is None:
            note_block(done.result().height)

    stored.add_done_callback(note)
    return stored


def _refuse(chain: ChainStore, sources: Sequence[str]) -> RequestError:
    members = [member.url for member in chain.tip().authority_set.members if member.url]
    return RequestError(
        "NODE_IS_FOLLOWER",
        "this node shows the ledger and takes no jobs; ask a coordinator, such as "
        + (members or list(sources))[0],
    )


class ProgressLine:
    """One line of the terminal that is written over as long as it changes."""

    def __init__(self) -> None:
        self._length = 0

    def show(self, progress: SyncProgress) -> None:
        """Write it."""
        text = describe_progress(progress)
        end = "\n" if progress.state == "idle" and self._length else ""
        if progress.state != "idle" or self._length:
            print(f"\r{text:<{self._length}}", end=end, file=sys.stderr, flush=True)  # noqa: T201
        self._length = 0 if progress.state == "idle" else len(text)


def _sign_nothing() -> None:
    return None
