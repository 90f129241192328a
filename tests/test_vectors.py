"""The golden vectors and the examples of docs/protocol.md are what the code makes, byte for byte.

If one of these fails on purpose, the protocol changed: `make vectors`, and say so in the commit.
"""

import contextlib
import json
import re
from dataclasses import replace

import pytest
from blake3 import blake3

from ledger.authorities import AuthoritySet, hash_authority_set
from ledger.block import build_genesis_tip, find_next_set, hash_genesis, parse_genesis
from ledger.encoding import decode, decode_base64url, encode
from ledger.errors import EncodingError, InvalidBlockError, InvalidTransactionError
from ledger.hashing import build_receipt_id, hash_text, hash_tokens
from ledger.jobs import build_registration_message
from ledger.keys import verify_signature
from ledger.proof import MAX_BUNDLE_BYTES, NOT_PROVED
from ledger.rules import verify_transaction
from ledger.statement import MAX_STATEMENT_BYTES, MAX_STATEMENT_LINES
from ledger.transaction import parse_transaction
from miner.models.digest import hash_manifest, name_files
from scripts import vectors
from scripts import verify_receipt as script
from tests import golden
from tests.builders import Chain, build_genesis, build_members, build_receipt
from tests.test_chain_store import fill

FILES = vectors.build_files()


def load(name):
    return json.loads((vectors.VECTORS / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_code_reproduces_every_generated_file(path):
    assert path.read_text(encoding="utf-8") == FILES[path]


def test_check_says_which_file_differs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(vectors.sys, "argv", ["vectors.py", "--check"])
    assert vectors.main() == 0
    text = vectors.PROTOCOL.read_text(encoding="utf-8")
    monkeypatch.setattr(vectors, "PROTOCOL", tmp_path / "protocol.md")
    monkeypatch.setattr(vectors, "ROOT", tmp_path)
    monkeypatch.setattr(vectors, "VECTORS", tmp_path / "vectors")
    vectors.PROTOCOL.write_text(text.replace("public key  e", "public key  f"), encoding="utf-8")
    assert vectors.main() == 1
    assert "differs: protocol.md" in capsys.readouterr().out
    monkeypatch.setattr(vectors.sys, "argv", ["vectors.py"])
    assert vectors.main() == 0
    assert vectors.PROTOCOL.read_text(encoding="utf-8") == text


def test_the_protocol_names_every_domain_and_bound_of_the_code():
    text = vectors.PROTOCOL.read_text(encoding="utf-8")
    source = (vectors.ROOT / "ledger" / "hashing.py").read_text(encoding="utf-8")
    domains = re.findall(r'_DOMAIN = b"(.*)"', source)
    assert len(domains) == 7
    assert [domain for domain in domains if f"`{domain}`" not in text] == []
    assert f"{MAX_BUNDLE_BYTES:,}" in text
    fields = [name for case in load("bundles")["cases"] for name, _ in case.get("claims", [])]
    assert [name for name in fields if f"| `{name}` |" not in text] == []
    assert list(NOT_PROVED) == script.NOT_PROVED
    assert f"{MAX_STATEMENT_BYTES:,}" in text
    assert f"1 … {MAX_STATEMENT_LINES:,} of" in text
    section = text[text.index("### 11.5 Statements") : text.index("## 12 Storage")]
    claims = [name for case in load("statements")["cases"] for name, _ in case.get("claims", [])]
    assert [name for name in claims if f"`{name}`" not in section] == []


def test_links_inside_the_protocol_lead_somewhere():
    text = vectors.PROTOCOL.read_text(encoding="utf-8")
    headings = {
        re.sub(r"[^a-z0-9 -]", "", line.lstrip("#").strip().lower()).replace(" ", "-")
        for line in text.splitlines()
        if line.startswith("#")
    }
    links = re.findall(r"\]\(#([^)]*)\)", text)
    assert links
    assert [link for link in links if link not in headings] == []


@pytest.mark.parametrize("case", load("canonical")["canonical"], ids=lambda case: case["text"])
def test_canonical_vectors(case):
    value = json.loads(case["text"])
    assert encode(value).decode() == case["canonical"]
    assert script.canonical(value).decode() == case["canonical"]
    assert script.read_canonical(case["canonical"].encode()) == value


@pytest.mark.parametrize(
    "case", load("canonical")["not_canonical"], ids=lambda case: case["text"] or "empty"
)
def test_texts_that_are_not_canonical(case):
    with pytest.raises(script.MalformedError):
        script.read_canonical(case["text"].encode())


def test_digest_vectors():
    digests = load("digests")
    salt = decode_base64url(digests["salt"], size_bytes=32)
    for case in digests["texts"]:
        assert hash_text(salt, case["text"]).hex() == case["digest"]
    for case in digests["tokens"]:
        assert hash_tokens(salt, case["ids"]).hex() == case["digest"]
    for case in digests["receipt_ids"]:
        expected = case.pop("receipt_id")
        assert build_receipt_id(**case) == expected == script.receipt_id(**case)


@pytest.mark.parametrize("case", load("authorities")["cases"], ids=lambda case: case["why"])
def test_authority_vectors(case):
    genesis = parse_genesis(load("authorities")["genesis"].encode())
    tip = replace(
        build_genesis_tip(genesis),
        height=case["height"] - 1,
        authority_set=decode(case["set"].encode(), AuthoritySet),
    )
    transaction = parse_transaction(case["envelope"].encode())
    assert transaction.id.hex() == case["transaction_id"]
    assert blake3(case["signed_message"].encode()).hexdigest() == case["transaction_id"]
    if "next_set_hash" in case:
        following = find_next_set([transaction])
        assert hash_authority_set(following).hex() == case["next_set_hash"]
    if case["verdict"] == "valid":
        verify_transaction(transaction, tip)
    else:
        with pytest.raises(InvalidTransactionError):
            verify_transaction(transaction, tip)


@pytest.mark.parametrize("case", load("audits")["cases"], ids=lambda case: case["why"])
def test_audit_vectors(tmp_path, case):
    vectors = load("audits")
    genesis = parse_genesis(vectors["genesis"].encode())
    chain = Chain(genesis=genesis, members=build_members(4), tip=build_genesis_tip(genesis))
    chain.append(*([parse_transaction(case["receipt"].encode())] if "receipt" in case else []))
    chain.append(build_receipt(genesis, 50))
    audit = parse_transaction(case["envelope"].encode())
    assert audit.id.hex() == case["transaction_id"]
    assert blake3(case["signed_message"].encode()).hexdigest() == case["transaction_id"]
    assert vectors["height"] == chain.tip.height + 1
    with contextlib.closing(fill(tmp_path / "ledger.db", chain)) as store:
        if case["verdict"] == "valid":
            store.validate(chain.propose(audit), chain.tip)
        else:
            with pytest.raises((InvalidBlockError, InvalidTransactionError)):
                store.validate(chain.propose(audit), chain.tip)


def test_the_registration_vector_is_what_the_job_market_asks_for():
    vector = load("digests")["registration"]
    message = build_registration_message(
        genesis_hash=hash_genesis(build_genesis()), miner_id="miner-1", account=vector["account"]
    )
    assert message.decode() == vector["message"]
    verify_signature(vector["account"], message, vector["signature"])


def test_the_model_vector_is_what_the_miner_reports(tmp_path):
    vector = load("digests")["model"]
    for name, text in vector["files"].items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(text.encode())
    assert hash_manifest(name_files(tmp_path, tmp_path.rglob("*"))) == vector["digest"]


def test_a_model_digest_depends_on_every_name_and_byte_but_not_on_their_order():
    files = golden.MODEL_FILES
    digest = load("digests")["model"]["digest"]
    assert golden.hash_model(dict(reversed(files.items()))) == digest
    manifest = (
        f"aitbc/model/v1\n{blake3(b'{}').hexdigest()} 2 config.json\n"
        f"{blake3(b'').hexdigest()} 0 onnx.txt\n"
        f"{blake3(b'weights').hexdigest()} 7 onnx/model.onnx\n"
        f"{blake3(files['tokenizer.json']).hexdigest()} 12 tokenizer.json\n"
    )
    assert blake3(manifest.encode()).hexdigest() == digest
    assert golden.hash_model(files | {"config.json": b"{ }"}) != digest


@pytest.mark.parametrize("token", [-1, 2**32])
def test_a_token_id_that_does_not_fit_has_no_digest(token):
    with pytest.raises(OverflowError):
        hash_tokens(bytes(32), [token])


def test_text_without_utf_8_has_no_canonical_form():
    with pytest.raises(EncodingError):
        encode("\ud800")
