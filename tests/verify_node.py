"""A node with final receipts behind its pages, and what a reader does on the verifying ones."""

from pathlib import Path

from playwright.sync_api import Page
from starlette.testclient import TestClient

from ledger.encoding import encode
from ledger.proof import ProofBundle
from tests.api_node import ApiNode, run_job
from tests.browser import Server
from tests.builders import Chain, build_chain, build_members, build_receipt
from tests.explorer_node import build_faces

OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


class Market(Server):
    """A node on a socket, with two final receipts."""

    def __init__(self, root: Path) -> None:
        self._node = node = ApiNode(root)
        app = build_faces(node)
        with TestClient(app) as client:
            self.receipt, self.other = (run_job(client, node)[1]["receipt_id"] for _ in range(2))
            node.start_sealing()
            node.wait_final(1)
        self.genesis, self.keys = encode(node.genesis), node.keys
        super().__init__(app)

    def __exit__(self, *exception):
        super().__exit__(*exception)
        self._node.close()


def build_changed_chain() -> Chain:
    """Four authorities, then five, then six, who seal receipt 4."""
    chain = build_chain(4, blocks=[1])
    chain.change_authorities(build_members(5, epoch=1), build_receipt(chain.genesis, 2))
    chain.change_authorities(build_members(6, epoch=2), build_receipt(chain.genesis, 3))
    chain.append(build_receipt(chain.genesis, 4))
    return chain


def last_bundle(chain: Chain) -> ProofBundle:
    """The proof of the newest receipt."""
    return chain.bundle(len(chain.transactions) - 1)


def choose(page: Page, kind: str, data: bytes) -> None:
    file = {"name": f"{kind}.json", "mimeType": "application/json", "buffer": data}
    page.set_input_files(f"#file-{kind}", files=[file])


def verify(page: Page) -> None:
    page.get_by_role("button", name="Verify", exact=True).click()


def verdict(page: Page):
    return page.locator("main .verdict")


def claims(page: Page) -> list[tuple[str, str]]:
    """(name, status in words) of each claim that is shown."""
    names = page.locator(".claims summary code").all_inner_texts()
    return list(zip(names, page.locator(".claims .state").all_inner_texts(), strict=True))
