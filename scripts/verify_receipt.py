# /// script
# requires-python = ">=3.9"
# dependencies = ["bech32>=1.2", "blake3>=0.4", "pynacl>=1.6.2"]
# ///
"""Verify a proof bundle or a statement offline, against a genesis that you already trust.

    python3 verify_receipt.py bundle.json --genesis genesis.json [--disclosure FILE] [--json]
    python3 verify_receipt.py statement.json --genesis genesis.json [--json]

Ends with 0 if every claim holds, 1 if one failed or the file is no bundle, 2 if it was called
wrongly or one of your own files (genesis, disclosure) is missing or malformed.

This is a second implementation of docs/protocol.md, sections 1 to 11, written from that text. It
imports nothing of the node on purpose: read it from top to bottom, then trust it or rewrite it.
Nothing in a bundle is believed before it was checked, and no bundle brings its own root of trust.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

try:
    import bech32
    from blake3 import blake3
    from nacl.exceptions import CryptoError
    from nacl.signing import VerifyKey
except ImportError as _error:  # which must not end with 1, as if a claim had failed
    print(f"{_error.name} is missing: pip install bech32 blake3 pynacl", file=sys.stderr)
    raise SystemExit(2) from None

Document = dict[str, Any]
Claim = dict[str, str]

MAX_BUNDLE_BYTES = 16 << 20
MAX_STATEMENT_BYTES = 32 << 20
MAX_LINES = 5000
MAX_ENVELOPE_BYTES = (64 << 10) - 1
MAX_INTEGER = 2**53 - 1
MAX_DIGITS = 17
MAX_MESSAGE_LENGTH = 400

INCOMPLETE = "That the statement is complete: a receipt of this account may have been left out."
NOT_PROVED = [
    "That the answer is good, or that the named model really produced it (see audits).",
    "That the times are exact: they are the coordinator's and the provider's clocks.",
    "That a payment was made: the receipt states a price, settlement happens elsewhere.",
]


class MalformedError(Exception):
    """A file is not the document it should be, so there is nothing to judge."""


class ClaimError(Exception):
    """A claim does not hold; the message is the sentence that says why."""


# --- 1. Canonical bytes -----------------------------------------------------------------------


def canonical(value: Any) -> bytes:
    """Return the RFC 8785 form of a value without floats, whose keys are ASCII.

    On that domain Python's own writer agrees with the RFC once keys are sorted, white space is
    left out and text stays UTF-8; the tests hold it to that.
    """
    written = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return written.encode("utf-8")


def read_canonical(data: bytes) -> Any:
    """Parse canonical bytes, with one optional line feed behind them.

    Whatever a lenient parser lets pass (white space, other escapes, keys out of order, minus
    zero) differs from the canonical form when it is written again.
    """
    data = data[:-1] if data.endswith(b"\n") else data
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_int=_integer,
            parse_float=_refuse_number,
            parse_constant=_refuse_number,
        )
        is_canonical = canonical(value) == data
    except UnicodeError:
        raise MalformedError("it holds text that is not Unicode") from None
    except RecursionError:
        raise MalformedError("it is nested too deeply") from None
    except ValueError as error:
        raise MalformedError(f"it is not JSON: {error}") from None
    if not is_canonical:
        raise MalformedError("it is not in canonical form (RFC 8785)")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> Document:
    if len(dict(pairs)) != len(pairs):
        raise MalformedError("an object has the same key twice")
    return dict(pairs)


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS or abs(int(digits)) > MAX_INTEGER:
        raise MalformedError("a number is not below 2^53")
    return int(digits)


def _refuse_number(_: str) -> NoReturn:
    raise MalformedError("a number is not an integer")


# --- 2. Shapes of documents: a shape raises MalformedError unless a value has it ---------------

Shape = Callable[[Any, str], None]


def _require(holds: bool, where: str, expected: str) -> None:  # noqa: FBT001
    if not holds:
        raise MalformedError(f"{where}: expected {expected}")


def integer(low: int, high: int) -> Shape:
    """An integer from `low` to `high`; true and false are none."""

    def check(value: Any, where: str) -> None:
        _require(type(value) is int and low <= value <= high, where, f"{low} to {high}")

    return check


def text(pattern: str) -> Shape:
    """A string that matches as a whole."""
    compiled = re.compile(pattern, re.DOTALL)

    def check(value: Any, where: str) -> None:
        fits = isinstance(value, str) and compiled.fullmatch(value) is not None
        _require(fits, where, f"text of the form {pattern}")

    return check


def list_of(shape: Shape, least: int, most: int) -> Shape:
    """A list of `least` to `most` values of one shape."""

    def check(value: Any, where: str) -> None:
        fits = isinstance(value, list) and least <= len(value) <= most
        _require(fits, where, f"a list of {least} to {most}")
        for i, item in enumerate(value):
            shape(item, f"{where}[{i}]")

    return check


def record(**fields: Shape) -> Shape:
    """An object with exactly these fields."""

    def check(value: Any, where: str) -> None:
        _require(isinstance(value, dict), where, "an object")
        missing, unknown = sorted(fields.keys() - value), sorted(value.keys() - fields)
        _require(not missing, where, "the field " + ", ".join(missing))
        _require(not unknown, where, "no field " + ascii(", ".join(unknown)))
        for name, shape in fields.items():
            shape(value[name], f"{where}.{name}")

    return check


def vote(value: Any, where: str) -> None:
    """A pair of member index and signature."""
    _require(isinstance(value, list) and len(value) == 2, where, "a pair")
    integer(0, 99)(value[0], f"{where}[0]")
    text(".*")(value[1], f"{where}[1]")


VERSION = integer(1, 1)
COUNT = integer(0, MAX_INTEGER)
HASH = text("[0-9a-f]{64}")
OPTIONAL_HASH = text("([0-9a-f]{64})?")
IDENTIFIER = text("[A-Za-z0-9][A-Za-z0-9_.:@-]{0,127}")
ACCOUNT_TEXT = text(".{0,90}")
PLAIN = r"[^\x00-\x1f\x7f]"

RECEIPT = record(
    v=VERSION,
    type=text("receipt"),
    genesis=HASH,
    receipt_id=text("rcp_[a-z2-7]{26}"),
    job_id=text("job_[0-9A-HJKMNP-TV-Z]{26}"),
    attempt=integer(1, 1000),
    client=IDENTIFIER,
    provider=IDENTIFIER,
    coordinator=IDENTIFIER,
    model=text(PLAIN + "{1,128}"),
    model_digest=OPTIONAL_HASH,
    prompt_digest=HASH,
    result_digest=HASH,
    tokens_digest=OPTIONAL_HASH,
    max_tokens=integer(1, 1_000_000),
    temperature_micros=integer(0, 2_000_000),
    top_p_micros=integer(1, 1_000_000),
    seed=COUNT,
    sampler=text("[a-z0-9.-]{0,64}"),
    prompt_tokens=COUNT,
    completion_tokens=COUNT,
    unit_type=text("tokens|gpu_seconds"),
    units_micros=COUNT,
    price_micros=COUNT,
    started_at_ms=COUNT,
    completed_at_ms=COUNT,
    metered_by=text("coordinator|provider"),
)
SIGNATURE = record(
    key_id=ACCOUNT_TEXT,
    role=text("auditor|authority|coordinator|provider"),
    sig=text(".{0,86}"),
)


def receipt(value: Any, where: str) -> None:
    """A receipt: transactions of other types are told from a receipt with fields amiss."""
    kind = value.get("type") if isinstance(value, dict) else None
    if isinstance(kind, str) and kind != "receipt":
        raise MalformedError(f"{where}: expected a receipt, got type {kind[:80]!a}")
    RECEIPT(value, where)


ENVELOPE = record(payload=receipt, signatures=list_of(SIGNATURE, 0, 256))
HEADER = record(
    v=VERSION,
    genesis=HASH,
    height=integer(1, MAX_INTEGER),
    prev_hash=HASH,
    time_ms=COUNT,
    tree_size=COUNT,
    tree_root=HASH,
    set_hash=HASH,
    next_set_hash=HASH,
    proposer=ACCOUNT_TEXT,
)
CERTIFICATE = record(view=COUNT, votes=list_of(vote, 0, 100))
MEMBER = record(account=ACCOUNT_TEXT, name=text(PLAIN + "{1,64}"), url=text("[!-~]{0,256}"))
AUTHORITY_SET = record(
    v=VERSION,
    epoch=COUNT,
    members=list_of(MEMBER, 1, 100),
    coordinators=list_of(text(".*"), 0, 100),
)
EPOCH = record(header=HEADER, certificate=CERTIFICATE, authority_set=AUTHORITY_SET)
LEAF: dict[str, Shape] = {"envelope": ENVELOPE, "index": COUNT, "path": list_of(HASH, 0, 63)}
CERTIFIED: dict[str, Shape] = {"header": HEADER, "certificate": CERTIFICATE}
EPOCHS = list_of(EPOCH, 0, 10_000)
BUNDLE = record(v=VERSION, epochs=EPOCHS, **LEAF, **CERTIFIED)
STATEMENT = record(
    v=VERSION,
    account=IDENTIFIER,
    from_ms=COUNT,
    to_ms=COUNT,
    entries=list_of(record(**LEAF), 1, MAX_LINES),
    opening=record(parent=list_of(HEADER, 0, 1), **CERTIFIED),
    epochs=EPOCHS,
    **CERTIFIED,
)
GENESIS = record(
    v=VERSION,
    network=text("[a-z0-9][a-z0-9-]{0,62}"),
    created_ms=COUNT,
    authority_set=AUTHORITY_SET,
    limits=record(
        max_block_transactions=integer(1, 65536), max_block_bytes=integer(65536, 64 << 20)
    ),
    settlement=text("off_chain"),
)


def parse_bundle(data: bytes) -> Document:
    """Parse a bundle. Raises MalformedError if it is none."""
    bundle = _parse(data, BUNDLE, "bundle", MAX_BUNDLE_BYTES)
    _check_envelope(bundle["envelope"])
    return bundle


def is_statement(data: bytes) -> bool:
    """Tell a statement from a bundle: keys are sorted, so the first one differs."""
    return data.startswith(b'{"account":')


def parse_statement(data: bytes) -> Document:
    """Parse a statement. Raises MalformedError if it is none."""
    statement = _parse(data, STATEMENT, "statement", MAX_STATEMENT_BYTES)
    for entry in statement["entries"]:
        _check_envelope(entry["envelope"])
    leaves = [entry["index"] for entry in statement["entries"]]
    _require(leaves == sorted(set(leaves)), "entries", "distinct leaves in ascending order")
    return statement


def _parse(data: bytes, shape: Shape, name: str, max_bytes: int) -> Document:
    if len(data) > max_bytes + 1:
        raise MalformedError(f"it is longer than {max_bytes} bytes")
    document: Document = read_canonical(data)
    shape(document, name)
    return document


def _check_envelope(envelope: Document) -> None:
    if len(canonical(envelope)) > MAX_ENVELOPE_BYTES:
        raise MalformedError(f"envelope: it is longer than {MAX_ENVELOPE_BYTES} bytes")
    order = [(signature["role"], signature["key_id"]) for signature in envelope["signatures"]]
    if order != sorted(set(order)):
        raise MalformedError("signatures: expected distinct ones, sorted by role and key_id")


def parse_genesis(data: bytes) -> Document:
    """Parse your own genesis document. Raises MalformedError if it is none."""
    genesis: Document = read_canonical(data)
    GENESIS(genesis, "genesis")
    try:
        check_authority_set(genesis["authority_set"])
    except ClaimError as error:
        raise MalformedError(str(error)) from None
    _require(genesis["authority_set"]["epoch"] == 0, "genesis.authority_set.epoch", "0")
    return genesis


def parse_disclosure(data: bytes) -> Document:
    """Parse a disclosure, in any spelling. Raises MalformedError if it is none."""
    try:
        shown = json.loads(data.decode("utf-8"), parse_constant=_refuse_number)
        if isinstance(shown, dict) and isinstance(shown.get("disclosure"), dict):
            # The API's answer about a job: texts beside salts, and much else.
            texts = {name: shown[name] for name in ("prompt", "result") if name in shown}
            shown = {**texts, **shown["disclosure"]}
        canonical(shown)
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"it is not JSON: {error}") from None
    kinds = {"prompt": str, "prompt_salt": str, "result": str, "result_salt": str}
    _require(isinstance(shown, dict), "disclosure", "an object")
    for name, value in shown.items():
        if name == "output_token_ids":
            fits = value is None or (
                isinstance(value, list) and all(type(token) is int for token in value)
            )
        else:
            fits = isinstance(value, kinds.get(name, ())) or (
                value is None and name in ("prompt", "result")
            )
        _require(fits, ascii(name), "a field of a disclosure")
    fields = ("prompt", "result", "output_token_ids")
    has_text = any(shown.get(name) is not None for name in fields)
    _require(has_text, "disclosure", "a prompt, a result or token ids")
    disclosure: Document = shown
    return disclosure


# --- 3. Hashes, accounts, signatures ----------------------------------------------------------


def hash_object(domain: str, data: bytes) -> str:
    """Return the BLAKE3 identity of an object in hex."""
    return blake3(domain.encode() + data).hexdigest()


def hash_genesis(genesis: Document) -> str:
    """Return the hash that names a network."""
    return hash_object("aitbc/genesis/v1\n", canonical(genesis))


def hash_header(header: Document) -> str:
    """Return the block hash."""
    return hash_object("aitbc/block/v1\n", canonical(header))


def hash_set(authority_set: Document) -> str:
    """Return the set hash."""
    return hash_object("aitbc/set/v1\n", canonical(authority_set))


def receipt_id(genesis: str, coordinator: str, job_id: str) -> str:
    """Return the one receipt id that a job can have."""
    message = f"aitbc/receipt-id/v1\n{genesis}\n{coordinator}\n{job_id}\n"
    digest = blake3(message.encode()).digest(length=16)
    return "rcp_" + base64.b32encode(digest).decode().rstrip("=").lower()


def public_key(account: str) -> bytes | None:
    """Return the Ed25519 key of an account (bech32m, prefix `ait`), or None if it is none."""
    head, symbols = account[:4], account[4:]
    if head != "ait1" or len(symbols) != 58 or any(c not in bech32.CHARSET for c in symbols):
        return None
    values = [bech32.CHARSET.index(c) for c in symbols]
    if bech32.bech32_polymod(bech32.bech32_hrp_expand("ait") + values) != 0x2BC830A3:
        return None
    key = bech32.convertbits(values[:-6], 5, 8, False)  # noqa: FBT003 - None if padding is not 0
    return None if key is None else bytes(key)


def decode_base64url(encoded: str, size: int) -> bytes:
    """Parse base64url without padding, in its only spelling."""
    try:
        padded = encoded + "=" * (-len(encoded) % 4)
        data = base64.b64decode(padded, altchars=b"-_", validate=True)
    except ValueError:
        data = b""
    if len(data) != size or base64.urlsafe_b64encode(data).decode().rstrip("=") != encoded:
        raise ClaimError(f"expected {size} bytes as base64url without padding")
    return data


def check_signature(account: str, message: bytes, encoded: str) -> None:
    """Check one Ed25519 signature; libsodium refuses S >= L and keys or R of small order."""
    key = public_key(account)
    if key is None:
        raise ClaimError(f"{account!a} is not an account")
    signature = decode_base64url(encoded, 64)
    try:
        VerifyKey(key).verify(message, signature)
    except (CryptoError, ValueError):
        raise ClaimError(f"the signature of {account} does not verify") from None


# --- 4. The receipt ---------------------------------------------------------------------------


def list_signers(payload: Document) -> list[tuple[str, str]]:
    """Return who must sign: the coordinator, and the provider if it has a key."""
    signers = [("coordinator", payload["coordinator"])]
    if public_key(payload["provider"]) is not None:
        signers.append(("provider", payload["provider"]))
    return signers


def check_receipt(envelope: Document, genesis_hash: str) -> str:
    """Check the receipt's fields against each other, and that the right parties are named."""
    payload = envelope["payload"]
    if payload["genesis"] != genesis_hash:
        raise ClaimError(f"it is for the network {payload['genesis']}, yours is {genesis_hash}")
    expected = receipt_id(genesis_hash, payload["coordinator"], payload["job_id"])
    if payload["receipt_id"] != expected:
        raise ClaimError(f"receipt_id: this job's is {expected}, not {payload['receipt_id']}")
    if public_key(payload["coordinator"]) is None:
        raise ClaimError("the coordinator is not an account")
    if payload["provider"].startswith("ait1") and public_key(payload["provider"]) is None:
        raise ClaimError("the provider looks like an account, but is none")
    elapsed_ms = payload["completed_at_ms"] - payload["started_at_ms"]
    if elapsed_ms < 0:
        raise ClaimError("it was completed before it was started")
    if payload["completion_tokens"] > payload["max_tokens"]:
        raise ClaimError("it has more tokens than the job allowed")
    tokens = payload["prompt_tokens"] + payload["completion_tokens"]
    if payload["unit_type"] == "tokens" and payload["units_micros"] != tokens * 1_000_000:
        raise ClaimError("the units are not the sum of the tokens")
    if payload["unit_type"] == "gpu_seconds" and payload["units_micros"] > elapsed_ms * 1000:
        raise ClaimError("more GPU time is charged than the job took")
    given = [(signature["role"], signature["key_id"]) for signature in envelope["signatures"]]
    if given != list_signers(payload):
        raise ClaimError(f"signers: expected {list_signers(payload)}, got {given!a}")
    return f"canonical bytes, consistent fields, transaction {transaction_id(payload)}"


def transaction_id(payload: Document) -> str:
    """Return the hash of the message that every signer signs."""
    return hash_object("aitbc/tx/v1\n", canonical(payload))


def check_role(envelope: Document, role: str) -> str:
    """Check the signature of the provider or of the coordinator."""
    account = envelope["payload"][role]
    message = b"aitbc/tx/v1\n" + canonical(envelope["payload"])
    for signature in envelope["signatures"]:
        if signature["role"] == role and signature["key_id"] == account:
            check_signature(account, message, signature["sig"])
            return f"signed by {account}"
    raise ClaimError(f"{account} did not sign as {role}")


# --- 5. The tree (RFC 9162, section 2.1.3.2) --------------------------------------------------


def check_inclusion(leaf: Document, header: Document) -> str:
    """Fold the path from the envelope's leaf to the root of the header."""
    index, size, root = leaf["index"], header["tree_size"], header["tree_root"]
    if index >= size:
        raise ClaimError(f"there is no leaf {index} in a tree of {size}")
    position, last = index, size - 1
    node = hashlib.sha256(b"\x00" + canonical(leaf["envelope"])).digest()
    for sibling in map(bytes.fromhex, leaf["path"]):
        if last == 0:
            raise ClaimError("the path is longer than the tree is high")
        if position % 2 == 1 or position == last:
            node = hashlib.sha256(b"\x01" + sibling + node).digest()
            while position % 2 == 0 and position != 0:
                position, last = position // 2, last // 2
        else:
            node = hashlib.sha256(b"\x01" + node + sibling).digest()
        position, last = position // 2, last // 2
    if last != 0:
        raise ClaimError("the path is shorter than the tree is high")
    if node.hex() != root:
        raise ClaimError(f"the path leads to {node.hex()}, the header's root is {root}")
    return f"leaf {index} of {size} under root {root}"


# --- 6. Headers, authorities, votes -----------------------------------------------------------


def check_header(header: Document, genesis_hash: str) -> str:
    """Check that the header is of the verifier's network."""
    if header["genesis"] != genesis_hash:
        raise ClaimError(f"it is of the network {header['genesis']}, yours is {genesis_hash}")
    return f"block {header['height']} is {hash_header(header)}"


def check_authority_set(authority_set: Document) -> None:
    """Check the accounts of a set."""
    members = [member["account"] for member in authority_set["members"]]
    coordinators = authority_set["coordinators"]
    if any(public_key(account) is None for account in members + coordinators):
        raise ClaimError("an authority set lists something that is not an account")
    if len(set(members)) != len(members) or coordinators != sorted(set(coordinators)):
        raise ClaimError("an authority set lists an account twice or out of order")


def check_certificate(certificate: Document, header: Document, authority_set: Document) -> str:
    """Check that a quorum of `authority_set` voted to finalize `header`, and every vote in it."""
    if hash_set(authority_set) != header["set_hash"]:
        raise ClaimError("the header names another authority set")
    members = authority_set["members"]
    voters, quorum = [index for index, _ in certificate["votes"]], 2 * len(members) // 3 + 1
    if len(voters) < quorum:
        raise ClaimError(f"{len(voters)} of {len(members)} authorities voted, {quorum} are needed")
    if voters != sorted(set(voters)) or voters[-1] >= len(members):
        raise ClaimError("votes: expected distinct members in ascending order")
    message = (
        f"aitbc/vote/v1\n{header['genesis']}\nfinalize\n{header['height']}\n"
        f"{certificate['view']}\n{hash_header(header)}\n"
    )
    for index, signature in certificate["votes"]:
        check_signature(members[index]["account"], message.encode(), signature)
    return f"{len(voters)} of {len(members)} authorities signed, {quorum} are needed"


def walk_epochs(epochs: list[Document], header: Document, genesis: Document) -> Document:
    """Follow the changes of the authority set from your genesis to the set of a header."""
    current, height = genesis["authority_set"], 0
    for epoch in epochs:
        changed, following = epoch["header"], epoch["authority_set"]
        name = f"epoch {following['epoch']}"
        if changed["genesis"] != hash_genesis(genesis):
            raise ClaimError(f"{name}: its header is of another network")
        if not height < changed["height"] < header["height"]:
            raise ClaimError(f"{name}: its header is out of place")
        check_certificate(epoch["certificate"], changed, current)
        check_authority_set(following)
        if hash_set(following) != changed["next_set_hash"]:
            raise ClaimError(f"{name}: its header names another set")
        if following["epoch"] != current["epoch"] + 1:
            raise ClaimError(f"{name}: it does not follow epoch {current['epoch']}")
        current, height = following, changed["height"]
    if hash_set(current) != header["set_hash"]:
        raise ClaimError("your genesis does not lead to the authority set of the header")
    return dict(current)


def check_coordinator(payload: Document, authority_set: Document | None) -> str:
    """Check that the coordinator is an authority or listed by the authorities."""
    account = payload["coordinator"]
    if authority_set is None:
        raise ClaimError(UNKNOWN_SET)
    members = [member["account"] for member in authority_set["members"]]
    if account not in members + authority_set["coordinators"]:
        raise ClaimError(f"{account} is not a coordinator of this network")
    return f"{account} may issue receipts"


# --- 7. The claims of a bundle ----------------------------------------------------------------

UNKNOWN_SET = "your genesis does not lead to the authority set of this header"


def judge(name: str, check: Callable[[], str]) -> Claim:
    """Turn a check into a claim."""
    try:
        return {"name": name, "status": "verified", "detail": check()}
    except ClaimError as error:
        return {"name": name, "status": "failed", "detail": str(error)}


def judge_leaf(leaf: Document, header: Document, genesis_hash: str) -> list[Claim]:
    """Judge a receipt with its path, without asking yet who vouches for the header."""
    envelope = leaf["envelope"]
    return [
        judge("receipt", lambda: check_receipt(envelope, genesis_hash)),
        judge_provider(envelope),
        judge("coordinator_signature", lambda: check_role(envelope, "coordinator")),
        judge("inclusion", lambda: check_inclusion(leaf, header)),
    ]


def judge_provider(envelope: Document) -> Claim:
    """A provider without a key cannot sign."""
    provider = envelope["payload"]["provider"]
    if public_key(provider) is not None:
        return judge("provider_signature", lambda: check_role(envelope, "provider"))
    detail = f"{provider} has no key: only the coordinator vouches for this receipt"
    return {"name": "provider_signature", "status": "not_applicable", "detail": detail}


def judge_header(bundle: Document, genesis: Document) -> tuple[list[Claim], Document | None]:
    """Judge who vouches for the header. Votes count only under a set your genesis leads to."""
    header, epochs = bundle["header"], bundle["epochs"]
    claims = [judge("header", lambda: check_header(header, hash_genesis(genesis)))]
    try:
        last = walk_epochs(epochs, header, genesis)
    except ClaimError as error:
        quorum = {"name": "quorum", "status": "failed", "detail": UNKNOWN_SET}
        chain = {"name": "authority_chain", "status": "failed", "detail": str(error)}
        return [*claims, quorum, chain], None
    quorum = judge("quorum", lambda: check_certificate(bundle["certificate"], header, last))
    detail = f"{len(epochs)} changes since genesis lead to epoch {last['epoch']}"
    chain = {"name": "authority_chain", "status": "verified", "detail": detail}
    return [*claims, quorum, chain], last


def judge_disclosure(payload: Document, shown: Document) -> list[Claim]:
    """Compare what the owner shows with the salted digests of the receipt."""
    claims = []
    for field in ("prompt", "result"):
        if shown.get(field) is not None:
            data = b"aitbc/text/v1\n", shown.get(f"{field}_salt", ""), shown[field].encode()
            claims.append(judge_digest(f"{field}_digest", payload, *data))
    ids = shown.get("output_token_ids")
    if ids is not None:
        fits = all(0 <= token < 2**32 for token in ids)
        packed = b"".join(token.to_bytes(4, "little") for token in ids) if fits else None
        data = b"aitbc/tokens/v1\n", shown.get("result_salt", ""), packed
        claims.append(judge_digest("tokens_digest", payload, *data))
    return claims


def judge_digest(
    name: str, payload: Document, domain: bytes, salt: str, data: bytes | None
) -> Claim:
    """Compare one digest. `data` is None where it is no data at all."""

    def check() -> str:
        if payload[name] == "":
            raise ClaimError("the receipt names none to compare with")
        if data is None:
            raise ClaimError("a token id is not one of 0 to 2^32 - 1")
        if blake3(domain + decode_base64url(salt, 32) + data).hexdigest() != payload[name]:
            raise ClaimError("what was disclosed has another digest")
        return "what was disclosed has the digest that was signed"

    return judge(name, check)


def verify(bundle: Document, genesis: Document, shown: Document) -> Document:
    """Return the verdict on a parsed bundle."""
    payload, header, genesis_hash = (
        bundle["envelope"]["payload"],
        bundle["header"],
        hash_genesis(genesis),
    )
    vouched, authorities = judge_header(bundle, genesis)
    claims = [
        *judge_leaf(bundle, header, genesis_hash),
        *vouched,
        judge("coordinator", lambda: check_coordinator(payload, authorities)),
        *judge_disclosure(payload, shown),
    ]
    return {
        "verified": all(claim["status"] != "failed" for claim in claims),
        "receipt_id": payload["receipt_id"],
        "transaction_id": transaction_id(payload),
        "genesis": genesis_hash,
        "block_height": header["height"],
        "block_hash": hash_header(header),
        "claims": claims,
        "not_proved": NOT_PROVED,
    }


# --- 8. The claims of a statement -------------------------------------------------------------


def check_account(account: str, payload: Document) -> str:
    """Check that a line is the account's business."""
    if account not in (payload["client"], payload["provider"]):
        raise ClaimError(f"{account} is neither its client nor its provider")
    return f"{account} is its client or provider"


def check_period(statement: Document, genesis: Document, is_certified: bool) -> str:  # noqa: FBT001
    """Check that no line is earlier or later: block times and leaves ascend together."""
    if not is_certified:
        raise ClaimError("no quorum vouches for the time of the header")
    opening, header = statement["opening"]["header"], statement["header"]
    check_header(opening, hash_genesis(genesis))
    before = [e for e in statement["epochs"] if e["header"]["height"] < opening["height"]]
    authorities = walk_epochs(before, opening, genesis)
    check_certificate(statement["opening"]["certificate"], opening, authorities)
    parents, first_leaf = statement["opening"]["parent"], 0
    if opening["height"] != 1 or parents:
        if [hash_header(parent) for parent in parents] != [opening["prev_hash"]]:
            raise ClaimError("the parent of the opening is not the block that it names")
        first_leaf = parents[0]["tree_size"]
    if statement["entries"][0]["index"] < first_leaf:
        raise ClaimError("the first line is older than the opening")
    if opening["time_ms"] < statement["from_ms"]:
        raise ClaimError("the opening is older than the period")
    if header["time_ms"] >= statement["to_ms"]:
        raise ClaimError("the header is younger than the period")
    return f"all lines are of blocks {opening['height']} to {header['height']}"


def merge(claims: list[Claim]) -> Claim:
    """Return one claim about all lines."""
    failed = [claim["detail"] for claim in claims if claim["status"] == "failed"]
    verified = sum(claim["status"] == "verified" for claim in claims)
    status, detail = "verified", f"{verified} of {len(claims)} lines"
    if failed:
        status, detail = "failed", f"{len(failed)} of {len(claims)} lines: {failed[0]}"
    elif verified < len(claims):
        status = "verified" if verified else "not_applicable"
        detail += "; the other providers have no key"
    return {"name": claims[0]["name"], "status": status, "detail": detail}


def add_up(account: str, receipts: list[Document]) -> Document:
    """Return what the account earned and spent by some receipts."""
    sums = {}
    for name, role in (("earned", "provider"), ("spent", "client")):
        total = {"lines": 0, "price_micros": 0, "tokens_micros": 0, "gpu_seconds_micros": 0}
        for receipt in receipts:
            if receipt[role] == account:
                total["lines"] += 1
                total["price_micros"] += receipt["price_micros"]
                total[receipt["unit_type"] + "_micros"] += receipt["units_micros"]
        sums[name] = total
    return sums


def add_up_all(account: str, receipts: list[Document]) -> Document:
    """Return the totals of a statement, also for each model and each counterparty."""
    models: dict[str, list[Document]] = {}
    others: dict[str, list[Document]] = {}
    for receipt in receipts:
        if account in (receipt["client"], receipt["provider"]):
            other = receipt["client" if receipt["provider"] == account else "provider"]
            models.setdefault(receipt["model"], []).append(receipt)
            others.setdefault(other, []).append(receipt)
    shares = [
        [{"name": name, **add_up(account, groups[name])} for name in sorted(groups)]
        for groups in (models, others)
    ]
    return {**add_up(account, receipts), "by_model": shares[0], "by_counterparty": shares[1]}


def list_failures(entry: Document, claims: list[Claim]) -> Document:
    """Return a line with the claims of it that failed."""
    failed = [claim for claim in claims if claim["status"] == "failed"]
    receipt_id = entry["envelope"]["payload"]["receipt_id"]
    return {"leaf": entry["index"], "receipt_id": receipt_id, "claims": failed}


def verify_statement(statement: Document, genesis: Document) -> Document:
    """Return the verdict on a parsed statement."""
    account, entries, header = statement["account"], statement["entries"], statement["header"]
    genesis_hash, receipts = hash_genesis(genesis), [e["envelope"]["payload"] for e in entries]
    vouched, last = judge_header(statement, genesis)
    sets = [genesis["authority_set"], *(e["authority_set"] for e in statement["epochs"])]

    def judge_line(entry: Document) -> list[Claim]:
        payload, authorities = entry["envelope"]["payload"], last
        if last is not None:
            # The set that certified the line's block: as many changes came before it.
            changes = (e["header"]["tree_size"] <= entry["index"] for e in statement["epochs"])
            authorities = sets[sum(changes)]
        return [
            judge("account", lambda: check_account(account, payload)),
            *judge_leaf(entry, header, genesis_hash),
            judge("coordinator", lambda: check_coordinator(payload, authorities)),
        ]

    lines = [judge_line(entry) for entry in entries]
    *merged, coordinator = [merge([line[i] for line in lines]) for i in range(len(lines[0]))]
    is_certified = vouched[1]["status"] == "verified"
    period = judge("period", lambda: check_period(statement, genesis, is_certified))
    claims = [*merged, *vouched, coordinator, period]
    return {
        "verified": all(claim["status"] != "failed" for claim in claims),
        "account": account,
        "from_ms": statement["from_ms"],
        "to_ms": statement["to_ms"],
        "genesis": genesis_hash,
        "block_height": header["height"],
        "block_hash": hash_header(header),
        "lines": len(entries),
        "totals": add_up_all(account, receipts),
        "claims": claims,
        "failed_lines": [line for line in map(list_failures, entries, lines) if line["claims"]],
        "not_proved": [INCOMPLETE, *NOT_PROVED],
    }


# --- 9. The command ---------------------------------------------------------------------------

WORDS = {"verified": "verified", "failed": "FAILED", "not_applicable": "not applicable"}


def describe(verdict: Document) -> str:
    """Return the verdict for people."""
    subject = verdict.get("receipt_id") or f"the statement of {verdict['account']}"
    lines = [
        f"{claim['name']:<22} {WORDS[claim['status']]:<15} {claim['detail']}"
        for claim in verdict["claims"]
    ]
    for line in verdict.get("failed_lines", []):
        reasons = "; ".join(f"{claim['name']}: {claim['detail']}" for claim in line["claims"])
        lines.append(f"line {line['receipt_id']} at leaf {line['leaf']}: {reasons}")
    failed = [claim["name"] for claim in verdict["claims"] if claim["status"] == "failed"]
    if failed:
        lines += ["", f"NOT VERIFIED: {subject}: failed: {', '.join(failed)}"]
    else:
        where = f"height {verdict['block_height']} of the network {verdict['genesis']}"
        lines += ["", f"VERIFIED: {subject} is final at {where}"]
        lines += describe_totals(verdict["totals"]) if "totals" in verdict else []
    return "\n".join([*lines, "", "Not proved:", *(f"- {text}" for text in verdict["not_proved"])])


def describe_totals(totals: Document) -> list[str]:
    """Return the totals for people, who may count on them only if all claims hold."""
    named = [("in all", totals)]
    named += [(f"model {share['name']!a}", share) for share in totals["by_model"]]
    named += [(f"with {share['name']}", share) for share in totals["by_counterparty"]]
    lines = []
    for name, share in named:
        for side in ("earned", "spent"):
            total = share[side]
            if total["lines"]:
                units = [
                    f"{decimal(total[unit + '_micros'])} {unit}"
                    for unit in ("tokens", "gpu_seconds")
                    if total[unit + "_micros"]
                ]
                what = ", ".join([f"{total['lines']} receipts", *units])
                lines.append(f"{name}: {side} {decimal(total['price_micros'])} ({what})")
    return lines


def decimal(micros: int) -> str:
    """Return integer micros as a decimal of at most six places."""
    return f"{micros // 1_000_000}.{micros % 1_000_000:06d}".rstrip("0").rstrip(".")


def read_file(path: Path) -> bytes:
    """Read a file up to one byte more than the longest can have."""
    with path.open("rb") as file:
        return file.read(MAX_STATEMENT_BYTES + 2)


def main(arguments: list[str] | None = None) -> int:
    """Run the command. Returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path, help="the proof bundle or statement bundle")
    parser.add_argument("--genesis", type=Path, required=True, help="a genesis you trust")
    parser.add_argument("--disclosure", type=Path, help="prompt, result and salts of the owner")
    parser.add_argument("--json", action="store_true", help="print the verdict as JSON")
    options = parser.parse_args(arguments)
    path, status = options.genesis, 2
    try:
        genesis = parse_genesis(read_file(path))
        shown: Document = {}
        if options.disclosure is not None:
            path = options.disclosure
            shown = parse_disclosure(read_file(path))
        path = options.bundle
        data, status = read_file(path), 1
        if not is_statement(data):
            verdict = verify(parse_bundle(data), genesis, shown)
        elif shown:
            return _stop(f"{path}: a disclosure is of one receipt, not of many", 2, options.json)
        else:
            verdict = verify_statement(parse_statement(data), genesis)
    except OSError as error:
        return _stop(f"{path}: cannot be read: {error.strerror}", 2, options.json)
    except MalformedError as error:
        kind = "NOT VERIFIED: this is no bundle" if status == 1 else "not what it should be"
        return _stop(f"{path}: {kind}: {error}", status, options.json)
    print(json.dumps(verdict, indent=2) if options.json else describe(verdict))
    return 0 if verdict["verified"] else 1


def _stop(message: str, status: int, as_json: bool) -> int:  # noqa: FBT001
    message = message[:MAX_MESSAGE_LENGTH]
    if as_json:
        print(json.dumps({"verified": False, "error": message}))
    else:
        print(message, file=sys.stderr)
    return status


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):  # `… | head` has read enough: no claim has failed
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    raise SystemExit(main())
