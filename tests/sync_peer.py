"""A peer that answers requests for blocks with whatever bytes a test wants, over a real socket."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from ledger.block import Block, Certificate, Tip, hash_genesis
from ledger.encoding import encode
from ledger.store.chain import ChainStore
from ledger.views import SyncProgress
from node.p2p.frames import GENESIS_HEADER, HEIGHT_HEADER, LENGTH_BYTES
from node.sync import Syncer
from node.sync.pipeline import Apply
from tests.builders import Chain

WAIT_S = 30

Script = Callable[[int], bytes | Iterable[bytes]]
"""Gets the height asked for, returns the body of the answer."""


def build_frame(block: Block, certificate: Certificate) -> bytes:
    """The frame of a block, with its prefix."""
    parts = [encode(block.header), encode(certificate)]
    body = b"\n".join([*parts, *(t.envelope for t in block.transactions)])
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


def build_frames(chain: Chain) -> list[bytes]:
    """The frames of a chain, lowest first."""
    return [build_frame(*pair) for pair in zip(chain.blocks, chain.certificates, strict=True)]


def serve_chain(chain: Chain) -> Script:
    """What an honest peer answers."""
    frames = build_frames(chain)
    return lambda first: b"".join(frames[first - 1 :])


class ScriptedPeer:
    """Serves one script on an ephemeral port of the loopback. Use as a context manager."""

    def __init__(
        self,
        chain: Chain,
        script: Script,
        *,
        headers: dict[str, str] | None = None,
        status: int = 200,
    ) -> None:
        self.asked: list[int] = []
        said = {
            GENESIS_HEADER: hash_genesis(chain.genesis).hex(),
            HEIGHT_HEADER: str(chain.tip.height),
        } | (headers or {})
        peer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                first = int(parse_qs(urlsplit(self.path).query)["from"][0])
                peer.asked.append(first)
                self.send_response(status)
                for name, value in said.items():
                    self.send_header(name, value)
                self.end_headers()
                body = script(first)
                try:
                    for piece in [body] if isinstance(body, bytes) else body:
                        self.wfile.write(piece)
                except (BrokenPipeError, ConnectionResetError):
                    pass  # the caller has heard enough

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def __enter__(self) -> ScriptedPeer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class Watch:
    """Sees every progress of a syncer, and waits for one."""

    def __init__(self) -> None:
        self.seen: list[SyncProgress] = []
        self.failures: list[BaseException] = []
        self._changed = threading.Condition()

    def shown(self, progress: SyncProgress) -> None:
        with self._changed:
            self.seen.append(progress)
            self._changed.notify_all()

    def failed(self, error: BaseException) -> None:
        with self._changed:
            self.failures.append(error)
            self._changed.notify_all()

    def wait_for(self, wanted: Callable[[SyncProgress], bool]) -> SyncProgress:
        def is_there() -> bool:
            return bool(self.failures) or any(map(wanted, self.seen))

        with self._changed:
            assert self._changed.wait_for(is_there, WAIT_S), self.seen[-1:]
            if self.failures:
                raise self.failures[0]
            return next(filter(wanted, self.seen))


def catch_up(
    store: ChainStore,
    urls: Sequence[str],
    *,
    height: int,
    tip: Callable[[], Tip] | None = None,
    apply: Apply | None = None,
) -> SyncProgress:
    """Fetch up to `height`; return where it ended, there or at the end of all sources."""
    watch = Watch()
    syncer = Syncer(
        tip=tip or store.tip,
        apply=apply or store.append_verified,
        sources=lambda: urls,
        follow=lambda: False,
        failed=watch.failed,
        shown=watch.shown,
        workers=2,
    )
    watch.seen.clear()
    syncer.request(height)
    syncer.start()
    try:
        return watch.wait_for(lambda progress: progress.state == "idle")
    finally:
        syncer.stop()
