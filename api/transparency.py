"""The tree for everybody: checkpoint, tiles, entry bundles and consistency proofs.

Checkpoint, tiles and bundles are what C2SP tlog-tiles says, so that its tools and witnesses can
read the ledger. They never change once they exist, and caches may keep them; a refusal is not kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from api.answers import IMMUTABLE, Answer
from api.errors import RequestError, refuse_field
from api.ports import Tree
from api.requests import Request
from api.resource import Operation
from ledger.tiles import parse_level, parse_place

_TEXT = b"text/plain; charset=utf-8"
_BYTES = b"application/octet-stream"


class TransparencyEndpoints:
    """`/checkpoint`, `/tile` and `/v1/consistency`: reads that anybody may do."""

    def __init__(self, tree: Tree, checkpoint: Callable[[], bytes | None]) -> None:
        self._tree = tree
        self._checkpoint = checkpoint

    def paths(self) -> Mapping[str, Mapping[str, Operation]]:
        """Return the operations by path."""
        handlers = {
            "/checkpoint": self.show_checkpoint,
            "/tile/entries/{index:path}": self.show_entries,
            "/tile/{level}/{index:path}": self.show_tile,
            "/v1/consistency": self.show_consistency,
        }
        return {path: {"GET": Operation(handler=handler)} for path, handler in handlers.items()}

    async def show_checkpoint(self, _request: Request) -> Answer:
        """`GET /checkpoint`: the newest head, signed."""
        note = self._checkpoint()
        if note is None:
            raise RequestError(
                "CHECKPOINT_NOT_FOUND",
                "this node has signed no checkpoint; ask an authority or a witness",
            )
        return Answer(body=note, content_type=_TEXT)

    async def show_tile(self, request: Request) -> Answer:
        """`GET /tile/{level}/{index}`."""
        level = parse_level(request.scope["path_params"]["level"])
        place = parse_place(request.scope["path_params"]["index"])
        if level is None or place is None:
            return _answer_bytes(None)
        return _answer_bytes(self._tree.tile(level, place))

    async def show_entries(self, request: Request) -> Answer:
        """`GET /tile/entries/{index}`."""
        place = parse_place(request.path_id)
        return _answer_bytes(self._tree.entries(place) if place else None)

    async def show_consistency(self, request: Request) -> Answer:
        """`GET /v1/consistency`: that the tree at `from` is the beginning of the one at `to`."""
        from_size, to_size = request.integer("from"), request.integer("to")
        if from_size is None or from_size < 0:
            raise refuse_field("from", "expected a number of leaves")
        if to_size is not None and to_size < from_size:
            raise refuse_field("to", "expected a number of leaves not below from")
        proof = self._tree.consistency(from_size, to_size)
        if proof is None:
            raise RequestError("TREE_SIZE_NOT_FOUND", "this node's tree has not so many leaves")
        return Answer(body=proof)


def _answer_bytes(data: bytes | None) -> Answer:
    if data is None:
        raise RequestError("TILE_NOT_FOUND", "this node's tree has no such tile or entry bundle")
    return Answer(body=data, content_type=_BYTES, cache_control=IMMUTABLE)
