"""Make the golden vectors and the examples of docs/protocol.md from fixed seeds.

    .venv/bin/python scripts/vectors.py            write tests/vectors/*.json and the examples
    .venv/bin/python scripts/vectors.py --check    say which of them differ, and end with 1

A vector that changes is a change of the protocol.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from ledger.authorities import hash_authority_set  # noqa: E402
from ledger.block import hash_genesis  # noqa: E402
from ledger.checkpoint import (  # noqa: E402
    Checkpoint,
    build_origin,
    log_key,
    witness_key,
)
from ledger.encoding import encode, encode_base64url  # noqa: E402
from ledger.keys import decode_account  # noqa: E402
from ledger.proof import verify_bundle  # noqa: E402
from ledger.statement import verify_statement  # noqa: E402
from ledger.transaction import ReceiptPayload, Transaction  # noqa: E402
from tests import (  # noqa: E402
    golden,
    golden_audits,
    golden_authorities,
    statement_tampering,
    tampering,
)
from tests.builders import (  # noqa: E402
    PROMPT,
    TOKEN_IDS,
    Chain,
    build_chain,
    build_disclosure,
    build_key,
    build_salt,
)

VECTORS = ROOT / "tests" / "vectors"
PROTOCOL = ROOT / "docs" / "protocol.md"

_EXAMPLE = re.compile(r"(<!-- example (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def build_files() -> dict[Path, str]:
    """Return the text of every generated file."""
    contents = golden.build_all() | {
        "bundles": tampering.build_bundles(),
        "statements": statement_tampering.build_statements(),
    }
    files = {
        VECTORS / f"{name}.json": json.dumps(content, indent=1) + "\n"
        for name, content in contents.items()
    }
    files[PROTOCOL] = fill_examples(PROTOCOL.read_text(encoding="utf-8"), build_examples())
    return files


def fill_examples(text: str, examples: Mapping[str, str]) -> str:
    """Put each example between its marks."""
    if sorted(name for _, name, _ in _EXAMPLE.findall(text)) != sorted(examples):
        raise SystemExit(f"{PROTOCOL.name}: expected one mark for each of {sorted(examples)}")
    return _EXAMPLE.sub(lambda mark: mark[1] + examples[mark[2]] + mark[3], text)


def build_examples() -> dict[str, str]:
    """Return the Markdown of each example."""
    chain = build_chain(1, blocks=[3])
    receipt, block = chain.transactions[1], chain.blocks[0]
    bundle, disclosure = encode(chain.bundle(1)), build_disclosure(2)
    verdict = verify_bundle(bundle, genesis=chain.genesis, disclosure=disclosure)
    registration = golden.build_registration()
    miner = build_key("miner").account
    change, evidence = golden_authorities.EXAMPLE_CHANGE, golden_authorities.EXAMPLE_EVIDENCE
    payload = receipt.payload
    assert isinstance(payload, ReceiptPayload), "the chain is built of receipts"
    return {
        "account": _text(f"public key  {decode_account(miner).hex()}", f"account     {miner}"),
        "receipt": _example_of(receipt),
        "audit": _example_of(golden_audits.EXAMPLE_AUDIT),
        "authority_set": _example_of(change),
        "evidence": _example_of(evidence),
        "digests": _text(
            f"salt           {encode_base64url(build_salt('prompt 2'))}",
            f"prompt         {PROMPT}",
            f"prompt_digest  {payload.prompt_digest}",
            "",
            f"salt           {encode_base64url(build_salt('result 2'))}",
            f"token ids      {' '.join(map(str, TOKEN_IDS))}",
            f"tokens_digest  {payload.tokens_digest}",
            "",
            *(f"file           {path}: {data!r}" for path, data in golden.MODEL_FILES.items()),
            f"model_digest   {golden.hash_model(golden.MODEL_FILES)}",
        ),
        "registration": _text(
            registration["message"] + f"\nsignature  {registration['signature']}"
        ),
        "genesis": _json(chain.genesis)
        + _text(
            f"genesis hash  {hash_genesis(chain.genesis).hex()}",
            f"set hash      {hash_authority_set(chain.genesis.authority_set).hex()}",
        ),
        "header": _json(block.header) + _text(f"block hash  {block.hash.hex()}"),
        "certificate": _json(chain.certificates[0]),
        "bundle": _json(msgspec.Raw(bundle)),
        "disclosure": _json(disclosure),
        "verdict": _json(verdict, is_sorted=False),
        "checkpoint": _checkpoint_example(chain),
        **_build_statement(),
    }


def _build_statement() -> dict[str, str]:
    """A period with one line of a client, whose other receipt is older."""
    chain = build_chain(1, blocks=[1, 1])
    times = [block.header.time_ms for block in chain.blocks]
    statement = encode(chain.statement("client-1", from_ms=times[1], to_ms=times[1] + 1_000))
    verdict = verify_statement(statement, genesis=chain.genesis)
    return {
        "statement": _json(msgspec.Raw(statement)),
        "statement_verdict": _json(verdict, is_sorted=False),
    }


def _example_of(transaction: Transaction) -> str:
    return _json(msgspec.Raw(transaction.envelope)) + _text(
        f"transaction id  {transaction.id.hex()}"
    )


def _checkpoint_example(chain: Chain) -> str:
    """Return the head of a chain as its authority signs it and a witness co-signs it."""
    origin, header = build_origin(chain.genesis), chain.blocks[-1].header
    root = bytes.fromhex(header.tree_root)
    note = golden.build_cosigned(Checkpoint(origin=origin, size=header.tree_size, root=root))
    authority, witness = build_key("authority 0"), build_key("witness")
    return _text(*note.decode().splitlines()) + _text(
        "keys, as name+id+base64(kind ‖ public key)",
        str(log_key(origin, authority.account)),
        str(witness_key(witness.account)),
    )


def _json(value: object, *, is_sorted: bool = True) -> str:
    data = encode(value) if is_sorted else msgspec.json.encode(value)
    return f"```json\n{msgspec.json.format(data).decode()}\n```\n"


def _text(*lines: str) -> str:
    return "```text\n" + "\n".join(lines) + "\n```\n"


def main() -> int:
    """Write the files, or compare them. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    check = parser.parse_args().check
    different = 0
    VECTORS.mkdir(parents=True, exist_ok=True)
    for path, text in build_files().items():
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        different += 1
        print(f"{'differs' if check else 'written'}: {path.relative_to(ROOT)}")
        if not check:
            path.write_text(text, encoding="utf-8")
    return int(check and different > 0)


if __name__ == "__main__":
    raise SystemExit(main())
