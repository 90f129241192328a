"""Chromium and a real socket for tests: whatever a page complains of fails the test."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Dialog,
    Page,
    Request,
    expect,
    sync_playwright,
)
from starlette.types import ASGIApp

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
ARGUMENTS = [
    *("--no-sandbox", "--headless", "--disable-gpu", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--no-first-run"),
]
START_S = 20
ACTION_MS = 30_000
"""A busy machine is not a bug: the slowest page took six seconds on two cores with eight jobs."""
expect.set_options(timeout=ACTION_MS)


class Server:
    """An application on an ephemeral port of the loopback, in a thread of its own."""

    def __init__(self, app: ASGIApp) -> None:
        config = uvicorn.Config(app, log_level="error", lifespan="off")
        self._server = uvicorn.Server(config)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run)
        self._ready = threading.Event()

    def _run(self) -> None:
        async def serve() -> None:
            listener = socket.create_server(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            self._ready.set()  # connections queue up until the server accepts them
            await self._server.serve(sockets=[listener])

        self._loop.run_until_complete(serve())
        self._loop.close()

    def __enter__(self):
        self._thread.start()
        assert self._ready.wait(START_S)
        return self

    def __exit__(self, *_):
        self._server.should_exit = True
        self._thread.join(START_S)
        assert not self._thread.is_alive(), "an open stream must not hold the shutdown"

    def call(self, coroutine: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(START_S)


@contextmanager
def launch_browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@contextmanager
def open_page(
    browser: Browser, server: Server, path: str, *, expected: str | None = None, **options: Any
) -> Iterator[Page]:
    """A page whose complaints and foreign requests fail the test when it is closed.

    `expected` is a part of the one complaint that the test provokes.
    """
    context = new_context(browser, **options)
    page = context.new_page()
    problems = watch(page, server.url, expected=expected)
    page.goto(server.url + path, wait_until="domcontentloaded")
    yield page
    context.close()
    assert problems == []


def new_context(browser: Browser, **options: Any) -> BrowserContext:
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | options)
    context.set_default_timeout(ACTION_MS)
    return context


def watch(page: Page, *origins: str, expected: str | None = None) -> list[str]:
    """Return what the page complains of, a list that grows: its console, dialogs, foreign requests.

    A page that answers 404 is reported to the console as well; that is no complaint.
    """
    problems: list[str] = []

    def note(message: ConsoleMessage) -> None:
        is_own_status = message.location["url"] == page.url and "status of " in message.text
        is_expected = expected is not None and expected in message.text
        if message.type in {"error", "warning"} and not is_own_status and not is_expected:
            problems.append(message.text)

    def close(dialog: Dialog) -> None:
        problems.append("dialog: " + dialog.message)
        dialog.dismiss()

    def check(request: Request) -> None:
        if not request.url.removeprefix("blob:").startswith(tuple(f"{o}/" for o in origins)):
            problems.append("request to " + request.url)

    page.on("console", note)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("dialog", close)
    page.on("request", check)
    return problems
