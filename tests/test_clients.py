"""What clients generated from the reference alone do on a real node, up to a proof that verifies.

The reference has no proofs, so the proof is fetched with plain HTTP; the stand-alone verifier
checks it against nothing but the genesis file.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.caller import Caller
from tests.clients import generate
from tests.live import LiveNode

CLIENTS = Path(generate.__file__).parent

GENERATORS: dict[str, Callable[[Path], None]] = {
    "openapi_python_client": generate.generate_with_openapi_python_client,
    "openapi_generator": generate.generate_with_openapi_generator,
    "typescript": generate.generate_typescript,
}


@pytest.fixture(scope="session")
def generated(tmp_path_factory):
    """Each client, generated when it is first asked for."""
    folders: dict[str, Path] = {}

    def find(name: str) -> Path:
        if name not in folders:
            folder = tmp_path_factory.mktemp(name)
            GENERATORS[name](folder)
            folders[name] = folder
        return folders[name]

    return find


class Market:
    """A node with keys; what a miner sends in dev mode is what the reference says, no key."""

    def __init__(self, root: Path, mode: str) -> None:
        self.node = LiveNode(root / "data", "--mode", mode)
        self.client_key = self.node.create_key("client")
        self.miner_key = self.node.create_key("miner") if mode == "strict" else ""
        self.node.start()


@pytest.fixture(scope="module", params=["dev", "strict"])
def market(request, tmp_path_factory):
    market = Market(tmp_path_factory.mktemp(f"market-{request.param}"), request.param)
    yield market
    market.node.stop()


def walk(name: str, folder: Path, market: Market) -> str:
    """Run a walk; returns the receipt's id."""
    words = (market.node.url, market.client_key, market.miner_key)
    if name == "typescript":
        return generate.run_tool(generate.NODE, "out/walk.js", *words, folder=folder).strip()
    return generate.run_tool(
        *(sys.executable, "-W", "error", CLIENTS / f"walk_{name}.py", *words),
        folder=folder,
        PYTHONPATH=str(folder),
    ).strip()


def verify(market: Market, receipt_id: str, folder: Path) -> None:
    """Fetch the proof once there is one, and verify it offline."""
    bundle = folder / "bundle.json"
    with Caller(market.node.url) as caller:
        wait_until_final(caller, receipt_id)
        proof = caller.get(f"/v1/receipts/{receipt_id}/proof").raise_for_status()
        bundle.write_bytes(proof.content)
    told = generate.run_tool(
        *(sys.executable, generate.ROOT / "scripts/verify_receipt.py", bundle),
        *("--genesis", market.node.data.genesis),
        folder=folder,
    )
    assert receipt_id in told


def wait_until_final(caller: Caller, receipt_id: str) -> None:
    """Each block brings some of the receipts that wait."""
    for height in range(1, 20):
        if caller.get(f"/v1/receipts/{receipt_id}").json()["status"] == "final":
            return
        caller.wait_for_block(height)
    raise AssertionError(f"{receipt_id} is still pending")


@pytest.mark.parametrize("name", GENERATORS)
def test_a_generated_client_takes_a_job_to_a_receipt_that_verifies(
    generated, market, name, tmp_path
):
    receipt_id = walk(name, generated(name), market)
    verify(market, receipt_id, tmp_path)


def test_a_client_in_typescript_that_misuses_the_reference_does_not_compile(generated, tmp_path):
    """The compiler really looks: a field of another type is an error."""
    folder = generated("typescript")
    text = (folder / "walk.ts").read_text(encoding="utf-8")
    (folder / "wrong.ts").write_text(text.replace("maxTokens: 32", 'maxTokens: "32"'))
    config = folder / "wrong.json"
    config.write_text('{"extends": "./tsconfig.json", "files": ["wrong.ts"]}')
    with pytest.raises(AssertionError, match=r"^wrong\.ts\S* error TS2322: .*'string'"):
        generate.run_tool(generate.NODE, generate.TSC, "--project", config, folder=folder)
