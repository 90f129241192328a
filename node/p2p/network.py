"""This node among the others: it speaks to every member of the set, and knows who is heard.

The links follow the authority set: a block that changes it starts and ends links. Addresses come
from the set; `--peer URL` gives others, whose account their status tells. Transactions that this
coordinator accepted go to every member, each at its own pace; those that stay are repeated, since a
peer keeps them in memory only.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from time import monotonic

from consensus.messages import Message
from consensus.presence import Presence
from ledger.authorities import AuthoritySet
from ledger.block import Tip
from ledger.encoding import encode
from ledger.keys import KeyPair
from ledger.store.chain import ChainStore
from node.mempool import Mempool
from node.p2p.address import STATUS_PATH, TRANSACTIONS_PATH, PeerError, parse_url
from node.p2p.documents import MAX_GOSSIP_BYTES, MAX_GOSSIP_TRANSACTIONS, build_gossip
from node.p2p.peers import (
    MAX_BACKOFF_S,
    Peer,
    PeerLink,
    exchange,
    open_client,
    read_status,
)
from node.signal import Signal

RESEND_S = 5.0
"""The oldest transactions that wait are told again this often."""
GRACE_S = 0.25
"""A block that others have is fetched if it is still missing after this long."""
IDENTIFY_S = 5.0
"""Pause between two attempts to learn whose an operator's address is."""

logger = logging.getLogger(__name__)

Fetch = Callable[[int], None]
"""Is told up to which height others have blocks."""


class PeerNetwork:
    """Fulfils `node.sealer.Peers` over HTTP. Runs in the event loop."""

    def __init__(
        self,
        *,
        chain: ChainStore,
        mempool: Mempool,
        key: KeyPair,
        urls: Sequence[str],
        fetch: Fetch,
        returned: Callable[[], None],
    ) -> None:
        """Put it together.

        Args:
            chain: whose tip names the members.
            mempool: whose own transactions are told to all.
            key: this node's.
            urls: addresses that an operator gave. Raises PeerError if one is none.
            fetch: told up to which height others have blocks, from any thread.
            returned: told that a member answers which did not.
        """
        self._chain = chain
        self._mempool = mempool
        self._key = key
        self._urls = [parse_url(url) for url in urls]
        self._fetch = fetch
        self._returned = returned
        self._genesis_hash = chain.tip().genesis_hash
        self._given: dict[str, str] = {}
        """Addresses that an operator gave, by account, once their status has told it."""
        self._presence = Presence()
        self._listening = threading.Lock()
        self._links: dict[str, PeerLink] = {}
        self._tasks: dict[str, list[asyncio.Task[None]]] = {}
        self._unusable: set[tuple[str, str]] = set()
        """(account, address) of members that cannot be called, and were spoken of in the log."""
        self._others_height = 0
        """The highest that others say they have, while we wait a moment for it."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting = Signal()
        self._changed = Signal()

    # --- what the sealer and the coordinator ask ------------------------------------------------

    def broadcast(self, message: Message) -> None:
        """Send a message to every other member. Any thread may."""
        if self._loop is not None and self._links:
            with contextlib.suppress(RuntimeError):  # the loop has closed, at the end of the node
                self._loop.call_soon_threadsafe(self._put, encode(message))

    def fetch(self, height: int) -> None:
        """Have the final blocks up to `height` fetched, unless they come by themselves."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has closed, at the end of the node
                self._loop.call_soon_threadsafe(self._look_later, height)

    def list_silent(self, tip: Tip) -> frozenset[int]:
        """Return the members not heard for a while, none unless a quorum is heard."""
        with self._listening:
            return self._presence.list_silent(
                tip.authority_set, self._key.account, now_ms=_now_ms()
            )

    def note_heard(self, account: str) -> None:
        """Note that a member has stamped a request to us."""
        with self._listening:
            self._presence.hear(account, now_ms=_now_ms())

    def note_waiting(self) -> None:
        """Say that our coordinator has a new transaction. Any thread may."""
        self._waiting.fire()

    def note_block(self) -> None:
        """Say that there is a new block, which may have changed the set. Any thread may."""
        self._changed.fire()

    def is_member(self) -> bool:
        """Tell whether this node's key is in the current set."""
        return self._chain.tip().authority_set.index_of(self._key.account) is not None

    def list_sources(self) -> list[str]:
        """Return where to fetch blocks, the highest chain first."""
        heights = {peer.url: peer.height for _, peer in self._by_account()}
        members = self._chain.tip().authority_set.members
        others = [m.url for m in members if m.url and m.account != self._key.account]
        urls = dict.fromkeys([*heights, *self._urls, *others])
        return sorted(urls, key=lambda url: heights.get(url, 0), reverse=True)

    def list_peers(self) -> list[Peer]:
        """Return every other member that has an address, in the order of the set."""
        members = self._chain.tip().authority_set.members
        found = (self._links.get(member.account) for member in members)
        return [link.peer for link in found if link is not None]

    # --- running --------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Keep the links while the context lasts."""
        self._loop = asyncio.get_running_loop()
        self._waiting.bind()
        self._changed.bind()
        tasks = [asyncio.create_task(self._follow_set())]
        tasks += [asyncio.create_task(self._identify(url)) for url in self._urls]
        try:
            yield
        finally:
            await _end(tasks)
            for account in list(self._links):
                await self._unlink(account)

    async def _follow_set(self) -> None:
        while True:
            await self._relink(self._chain.tip().authority_set)
            await self._changed.wait()

    async def _relink(self, authority_set: AuthoritySet) -> None:
        wanted = {}
        if authority_set.allows_coordinator(self._key.account):
            for member in authority_set.members:
                url = self._given.get(member.account) or member.url
                if url and member.account != self._key.account:
                    wanted[member.account] = member, url
        self._unusable &= {(account, url) for account, (_, url) in wanted.items()}
        for account, link in list(self._links.items()):
            if account not in wanted or wanted[account][1] != link.peer.url:
                await self._unlink(account)
        for account, (member, url) in wanted.items():
            if account not in self._links:
                peer = Peer(account=account, name=member.name, url=url, stated_url=member.url)
                self._link(peer)

    def _link(self, peer: Peer) -> None:
        try:
            link = PeerLink(
                peer,
                key=self._key,
                genesis_hash=self._genesis_hash,
                returned=self._returned,
                heard=self._note_answer,
            )
        except PeerError as error:
            # A set may state any address. It must not cost us the other members.
            if (peer.account, peer.url) not in self._unusable:
                logger.warning("peer %s at %s: %s", peer.name, peer.url, error)
            self._unusable.add((peer.account, peer.url))
            return
        self._links[peer.account] = link
        self._tasks[peer.account] = [
            asyncio.create_task(link.deliver()),
            asyncio.create_task(self._gossip(link)),
        ]

    async def _unlink(self, account: str) -> None:
        link = self._links.pop(account)
        await _end(self._tasks.pop(account))
        await link.close()

    async def _identify(self, url: str) -> None:
        """Learn whose an operator's address is, and use it from then on."""
        try:
            opened = open_client(url)
        except PeerError as error:
            logger.warning("peer at %s: %s", url, error)
            return
        async with opened as client:
            said = ""
            while True:
                try:
                    request = client.build_request("GET", STATUS_PATH)
                    status = read_status(*await exchange(client, request), self._genesis_hash)
                except PeerError as error:
                    if said != str(error):
                        logger.warning("peer at %s: %s", url, error)
                    said = str(error)
                    await asyncio.sleep(IDENTIFY_S)
                    continue
                if status.account:
                    self._given[status.account] = url
                    self._changed.fire()
                return

    def _put(self, message: bytes) -> None:
        for link in self._links.values():
            link.put(message)

    def _note_answer(self, account: str, height: int) -> None:
        self.note_heard(account)
        self._look_later(height)

    def _look_later(self, height: int) -> None:
        """Fetch what is missing in a moment: mostly the votes for it are on their way already."""
        is_looking = self._others_height > self._chain.tip().height
        self._others_height = max(self._others_height, height)
        if not is_looking and self._others_height > self._chain.tip().height:
            assert self._loop is not None, "it was given by the running loop"
            self._loop.call_later(GRACE_S, self._look)

    def _look(self) -> None:
        if self._others_height > self._chain.tip().height:
            self._fetch(self._others_height)
        self._others_height = 0

    async def _gossip(self, link: PeerLink) -> None:
        """Tell a peer of every transaction that waits here, and of the oldest ones again.

        From the start once it was away: it keeps them in memory. Otherwise only the oldest are
        repeated, however many wait: they become final first.
        """
        seq, returns, again_at = 0, link.returns, monotonic() + RESEND_S
        while True:
            if link.returns != returns:
                seq, returns = 0, link.returns
            if monotonic() >= again_at:
                again_at = monotonic() + RESEND_S
                await self._tell(link, list(self._page(0)))
            page = list(self._page(seq))
            if not page:
                await self._waiting.wait(max(again_at - monotonic(), 0))
            elif await self._tell(link, page):
                seq = page[-1][0]
            else:
                await asyncio.sleep(MAX_BACKOFF_S)

    async def _tell(self, link: PeerLink, page: Sequence[tuple[int, bytes]]) -> bool:
        if not page:
            return True
        body = build_gossip(self._genesis_hash, [envelope for _, envelope in page])
        return await link.try_send(TRANSACTIONS_PATH, body)

    def _page(self, after: int) -> Iterator[tuple[int, bytes]]:
        size_bytes = 0
        for seq, envelope in self._mempool.list_own(MAX_GOSSIP_TRANSACTIONS, after=after):
            size_bytes += len(envelope)
            if size_bytes > MAX_GOSSIP_BYTES:
                return
            yield seq, envelope

    def _by_account(self) -> list[tuple[str, Peer]]:
        return [(account, link.peer) for account, link in list(self._links.items())]


def _now_ms() -> int:
    return int(monotonic() * 1000)


async def _end(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
