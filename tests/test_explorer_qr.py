"""The QR code on a receipt: what it holds, and that it stays inside the page's own rules."""

import re

import segno
from starlette.applications import Starlette
from starlette.testclient import TestClient

from explorer_ui.qr import MASK, MAX_TEXT, QUIET_ZONE, draw_qr
from explorer_ui.routes import build_explorer
from tests.crawler import Skeleton, text_of
from tests.fake_views import FakeViews, build_app, build_chain, now_ms, receipt_id

PIECE = re.compile(r"M(\d+) (\d+)h(\d+)v1h-(\d+)z")


def read_modules(path: str, size: int) -> list[list[int]]:
    """The modules of a path of unit rows, which is all that it may be."""
    pieces = PIECE.findall(path)
    assert "".join(f"M{x} {y}h{w}v1h-{v}z" for x, y, w, v in pieces) == path
    modules = [[0] * size for _ in range(size)]
    for x, y, width, _ in pieces:
        for column in range(int(x), int(x) + int(width)):
            modules[int(y)][column] = 1
    return modules


def test_a_code_is_the_one_of_its_text_with_light_around_it():
    text = "https://node.example/receipts/" + receipt_id(1)
    drawn = draw_qr(text)
    modules = read_modules(drawn.path, drawn.size)
    inner = [row[QUIET_ZONE:-QUIET_ZONE] for row in modules[QUIET_ZONE:-QUIET_ZONE]]
    made = segno.make_qr(text, error="m", mask=MASK)
    assert inner == [list(row) for row in made.matrix]
    assert sum(map(sum, modules)) == sum(map(sum, inner))


def test_a_text_too_fine_for_paper_has_no_code():
    assert draw_qr("x" * MAX_TEXT) is not None
    assert draw_qr("x" * (MAX_TEXT + 1)) is None


def path_of(response) -> str:
    return re.search(r'<path fill="#000" d="([^"]+)"', response.text)[1]


def test_a_receipt_shows_its_id_as_a_code_and_with_a_public_address_that():
    views = build_chain(1)
    with TestClient(build_app(views)) as client:
        page = client.get(f"/receipts/{receipt_id(0)}")
    assert path_of(page) == draw_qr(receipt_id(0)).path
    assert "s id, which every node of the network finds." in text_of(page)
    with TestClient(build_public_app(views, "https://node.example/aitbc")) as client:
        page = client.get(f"/receipts/{receipt_id(0)}")
    address = f"https://node.example/aitbc/receipts/{receipt_id(0)}"
    assert path_of(page) == draw_qr(address).path
    assert "The code holds the address of this receipt." in text_of(page)
    assert f"curl -s https://node.example/aitbc/v1/receipts/{receipt_id(0)}" in page.text
    assert not [names for _, names in Skeleton(page.text).tags if "style" in names]


def build_public_app(views: FakeViews, public_url: str) -> Starlette:
    return Starlette(
        routes=build_explorer(
            views,
            market=views.market,
            clock_ms=now_ms,
            head_changed=views,
            release="1",
            public_url=public_url,
        )
    )


def test_a_pending_receipt_asks_to_be_printed_once_it_is_final():
    views = build_chain(1)
    views.add_receipt(9)
    with TestClient(build_app(views)) as client:
        text = text_of(client.get(f"/receipts/{receipt_id(9)}"))
    assert "It is pending: print it again once it is final." in text
