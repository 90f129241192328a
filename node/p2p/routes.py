"""What a node answers to other nodes under /p2p/.

    POST /p2p/messages       a consensus message of a member; answered once the engine took it
    POST /p2p/transactions   transactions that a coordinator waits to see in a block
    GET  /p2p/status         who this is, and how high its chain

The first two need a stamp (`stamp.py`), which is checked before the body is read. Every good answer
is this node's status, so that a sender learns when it is behind. A refusal names the class of our
error and its sentence.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from consensus.messages import compute_max_message_bytes
from ledger.authorities import AuthoritySet
from ledger.encoding import encode
from ledger.errors import InvalidTransactionError, LedgerError, StoreError
from ledger.keys import KeyPair
from ledger.payloads import find_receipt_id
from ledger.rules import verify_transaction
from ledger.store.chain import ChainStore
from ledger.store.writequeue import DatabaseBusyError
from ledger.transaction import Transaction
from node.mempool import Mempool
from node.p2p.address import MESSAGES_PATH, STATUS_PATH, TRANSACTIONS_PATH
from node.p2p.documents import MAX_GOSSIP_BYTES, Status, parse_gossip
from node.p2p.frames import HEIGHT_HEADER
from node.p2p.stamp import UnknownPeerError, is_body, verify_stamp
from node.sealer import Sealer

MAX_REQUESTS_PER_PEER = 4
"""Two links of a peer may overlap while it restarts."""
BODY_TIMEOUT_S = 30.0
ANSWER_TIMEOUT_S = 10.0
_DOCUMENT_BYTES = 4096
"""Of a gossip document around its envelopes."""

_Take = Callable[[str, bytes], Awaitable[None]]


class BodyError(LedgerError):
    """The body of a request between nodes is too long, too slow, or not the stamped one."""


class PeerEndpoints:
    """The routes under /p2p/ of a node that has a key."""

    def __init__(
        self,
        *,
        chain: ChainStore,
        mempool: Mempool,
        sealer: Sealer,
        key: KeyPair,
        release: str,
        note_heard: Callable[[str], None],
    ) -> None:
        self._chain = chain
        self._mempool = mempool
        self._sealer = sealer
        self._key = key
        self._release = release
        self._note_heard = note_heard
        self._genesis_hash = chain.tip().genesis_hash
        self._open: Counter[str] = Counter()

    def routes(self) -> list[BaseRoute]:
        """Return the routes."""
        return [
            build_status_route(self._chain, account=self._key.account, release=self._release),
            Route(MESSAGES_PATH, self.take_message, methods=["POST"]),
            Route(TRANSACTIONS_PATH, self.take_transactions, methods=["POST"]),
        ]

    async def take_message(self, request: Request) -> Response:
        """`POST /p2p/messages`."""
        tip = self._chain.tip()

        async def take(_sender: str, body: bytes) -> None:
            future = asyncio.wrap_future(self._sealer.receive(body))
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                await future

        bound = compute_max_message_bytes(tip)
        return await self._take(
            request, MESSAGES_PATH, tip.authority_set, bound, take, members_only=True
        )

    async def take_transactions(self, request: Request) -> Response:
        """`POST /p2p/transactions`."""
        authority_set = self._chain.tip().authority_set

        async def take(sender: str, body: bytes) -> None:
            await asyncio.to_thread(self._take_transactions, sender, body)
            self._sealer.kick()

        bound = MAX_GOSSIP_BYTES + _DOCUMENT_BYTES
        return await self._take(
            request, TRANSACTIONS_PATH, authority_set, bound, take, members_only=False
        )

    async def _take(
        self,
        request: Request,
        path: str,
        authority_set: AuthoritySet,
        max_bytes: int,
        take: _Take,
        *,
        members_only: bool,
    ) -> Response:
        try:
            sender, digest = verify_stamp(
                request.headers,
                genesis_hash=self._genesis_hash,
                recipient=self._key.account,
                path=path,
            )
            _check_standing(sender, authority_set, members_only=members_only)
            with self._occupy(sender):
                body = await _read_body(request, max_bytes)
                if not is_body(body, digest):
                    raise BodyError("body: it is not the one that was stamped")
                self._note_heard(sender)
                await take(sender, body)
        except (DatabaseBusyError, TimeoutError) as error:
            return self._refuse(503, "DatabaseBusyError", str(error) or "too much waits; try again")
        except StoreError:
            return self._refuse(503, "StoreError", "this node cannot store anything")
        except LedgerError as error:
            status = 403 if isinstance(error, UnknownPeerError) else 400
            return self._refuse(status, type(error).__name__, str(error))
        except ClientDisconnect:
            return self._refuse(400, "BodyError", "body: the connection ended")
        return self._answer_status()

    @contextmanager
    def _occupy(self, sender: str) -> Iterator[None]:
        if self._open[sender] >= MAX_REQUESTS_PER_PEER:
            raise DatabaseBusyError("too many requests of this peer are open")
        self._open[sender] += 1
        try:
            yield
        finally:
            self._open[sender] -= 1
            if not self._open[sender]:
                del self._open[sender]

    def _take_transactions(self, sender: str, body: bytes) -> None:
        """Keep every valid transaction; then say what is wrong with the first that is not."""
        tip = self._chain.tip()
        fresh: list[Transaction] = []
        refusal: LedgerError | None = None
        for transaction in parse_gossip(body, genesis_hash=self._genesis_hash):
            receipt_id = find_receipt_id(transaction.payload)
            if self._mempool.knows(transaction) or self._chain.contains(transaction.id, receipt_id):
                continue
            try:
                verify_transaction(transaction, tip)
                is_due = self._chain.is_due(transaction)
            except InvalidTransactionError as error:
                refusal = refusal or error
            else:
                if is_due:  # else this node is behind, and will be sent it again
                    fresh.append(transaction)
        senders = len(tip.authority_set.members) + len(tip.authority_set.coordinators)
        self._mempool.add_foreign(sender, fresh, senders=senders)
        if refusal is not None:
            raise refusal

    def _refuse(self, status: int, code: str, detail: str) -> Response:
        answer = _answer(status, {"detail": detail, "error_code": code})
        answer.headers[HEIGHT_HEADER] = str(self._chain.tip().height)
        if status == 503:
            answer.headers["retry-after"] = "1"
        return answer

    def _answer_status(self) -> Response:
        return _answer_status(self._chain, self._key.account, self._release)


def build_status_route(chain: ChainStore, *, account: str, release: str) -> Route:
    """Return the route of `GET /p2p/status`; `account` is empty for a follower."""

    async def show_status(_request: Request) -> Response:
        return _answer_status(chain, account, release)

    return Route(STATUS_PATH, show_status, methods=["GET"])


def _answer_status(chain: ChainStore, account: str, release: str) -> Response:
    tip = chain.tip()
    status = Status(
        genesis=tip.genesis_hash.hex(),
        account=account,
        height=tip.height,
        hash=tip.hash.hex(),
        release=release,
    )
    return _answer(200, status)


def _check_standing(sender: str, authority_set: AuthoritySet, *, members_only: bool) -> None:
    if authority_set.index_of(sender) is None and (
        members_only or not authority_set.allows_coordinator(sender)
    ):
        role = "a member" if members_only else "a member or coordinator"
        raise UnknownPeerError(
            f"stamp: expected {role} of authority set {authority_set.epoch}, got {sender}"
        )


async def _read_body(request: Request, max_bytes: int) -> bytes:
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for piece in request.stream():
                body += piece
                if len(body) > max_bytes:
                    raise BodyError(f"body: expected at most {max_bytes} bytes")
    except TimeoutError as error:
        raise BodyError(f"body: did not arrive within {BODY_TIMEOUT_S:.0f} s") from error
    return bytes(body)


def _answer(status: int, document: object) -> Response:
    headers = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
    return Response(encode(document), status, headers, "application/json")
