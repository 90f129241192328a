"""The REST face as routes: every documented path at the root and under `/api`.

The viewers of the document stand beside them. Whatever else is asked for under `/v1`, `/api`,
`/explorer/` and `/tile/` is answered in JSON too, so these routes can stand in one application
before the pages of the explorer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import msgspec
import yaml
from starlette.convertors import PathConvertor, register_url_convertor
from starlette.routing import BaseRoute, Mount, Route

from api.answers import Answer
from api.audits import AuditEndpoints
from api.errors import RequestError
from api.market import list_market_paths
from api.nomarket import NoMarket
from api.ports import Market, Tree, Views
from api.records import RecordEndpoints
from api.requests import BodyRoom, Request
from api.resource import ApiSettings, Boundary, Handler, Operation, Resource
from api.statements import StatementEndpoints
from api.transactions import TransactionEndpoints
from api.transparency import TransparencyEndpoints
from api.viewers import Viewers
from ledger.views import SyncProgress

METRICS_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
OPENAPI_FILE = Path(__file__).with_name("openapi.yaml")

# Under these the API answers for paths that do not exist; elsewhere the explorer does.
_UNKNOWN = ("/v1", "/v1/{rest:path}", "/api", "/explorer/{rest:path}", "/tile/{rest:path}")


class _WholePath(PathConvertor):
    """The rest of an address, whatever it holds.

    Starlette's own ends at a line feed, so that an address with one would be no address of the API.
    """

    regex = "(?s:.*)"


register_url_convertor("path", _WholePath())


def build_api(
    market: Market | NoMarket,
    views: Views,
    settings: ApiSettings,
    *,
    tree: Tree,
    checkpoint: Callable[[], bytes | None],
    genesis: bytes,
    clock_ms: Callable[[], int],
    make_request_id: Callable[[], str],
    find_obstacle: Callable[[], RequestError | None] = lambda: None,
    find_sync: Callable[[], SyncProgress | None] = lambda: None,
    boundary: Boundary | None = None,
    metrics: Callable[[], bytes] = lambda: b"",
) -> list[BaseRoute]:
    """Return the routes of the REST face; put them before any others.

    Args:
        market: takes every write, or refuses it.
        views: public reads.
        settings: mode, version, defaults.
        tree: public reads of the Merkle tree.
        checkpoint: the newest signed checkpoint, None on a node that signs none.
        genesis: canonical bytes of the genesis document.
        clock_ms: Unix time in milliseconds.
        make_request_id: a new id of at most 64 letters, digits and `._-`.
        find_obstacle: why the node takes no work now, a SYSTEM_ error, or None.
        find_sync: how far the node is with catching up, or None if it does not.
        boundary: limits the rate of requests, and is told of every answer.
        metrics: the node's metrics in Prometheus' text format, version 0.0.4.
    """
    records = RecordEndpoints(
        views,
        settings,
        genesis=genesis,
        clock_ms=clock_ms,
        find_obstacle=find_obstacle,
        find_sync=find_sync,
    )
    paths = {
        **(
            market.paths(settings)
            if isinstance(market, NoMarket)
            else list_market_paths(market, settings)
        ),
        **TransactionEndpoints(market, views).paths(),
        **records.paths(),
        **StatementEndpoints(views).paths(),
        **AuditEndpoints(views).paths(),
        **TransparencyEndpoints(tree, checkpoint).paths(),
        "/metrics": {"GET": _show_metrics(metrics)},
        "/openapi.yaml": {"GET": _file(OPENAPI_FILE.read_bytes(), b"application/yaml")},
        "/openapi.json": {"GET": _file(_load_document(), b"application/json")},
    }

    room = BodyRoom()

    def route(path: str, operations: Mapping[str, Operation]) -> Route:
        resource = Resource(
            operations,
            keys=market,
            settings=settings,
            make_request_id=make_request_id,
            room=room,
            path=path,
            boundary=boundary or Boundary(),
        )
        return Route(path, resource)

    routes: list[BaseRoute] = [route(path, operations) for path, operations in paths.items()]
    viewers = Viewers()
    return [
        *routes,
        *viewers.routes(home="./"),
        Mount("/api", routes=[*routes, *viewers.routes(home="../"), route("/{rest:path}", {})]),
        *(route(path, {}) for path in _UNKNOWN),
    ]


@cache
def _load_document() -> bytes:
    with OPENAPI_FILE.open("rb") as file:
        return msgspec.json.encode(yaml.load(file, Loader=yaml.CSafeLoader))


def _show_metrics(render: Callable[[], bytes]) -> Operation:
    async def show(_request: Request) -> Answer:
        return Answer(body=render(), content_type=METRICS_TYPE)

    # Figures of a business are not for everybody; an admin's key goes into Prometheus' settings.
    return Operation(handler=show, role="admin", key="strict")


def _file(body: bytes, content_type: bytes) -> Operation:
    async def show(_request: Request) -> Answer:
        return Answer(body=body, content_type=content_type)

    handler: Handler = show
    return Operation(handler=handler)
