"""Proof bundles: one receipt with everything that proves it, for offline checking.

A bundle is canonical JSON. It never carries what the verifier must trust: the genesis document is
the verifier's own. The verdict is given claim by claim, so that a reader learns *what* failed.

    envelope --leaf hash, path--> header.tree_root
    header   --block hash, votes--> quorum of the authority set
    set      --epochs, each certified by the set before--> genesis

The checks are functions of what they look at, so that `statement.py` makes the same ones.
`scripts/verify_receipt.py` is a second, independent implementation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import msgspec

from ledger import merkle
from ledger.authorities import AuthoritySet, hash_authority_set, validate_authority_set
from ledger.block import Certificate, Genesis, Header, hash_genesis, hash_header, verify_certificate
from ledger.encoding import Count, Hex32, decode, decode_base64url, encode
from ledger.errors import (
    EncodingError,
    InvalidProofError,
    InvalidSignatureError,
    InvalidTransactionError,
    LedgerError,
)
from ledger.hashing import SALT_BYTES, hash_text, hash_tokens
from ledger.keys import is_account, verify_signature
from ledger.payloads import name_type
from ledger.rules import list_signers, validate_receipt
from ledger.transaction import (
    Envelope,
    ReceiptPayload,
    Role,
    Transaction,
    parse_transaction,
)

MAX_BUNDLE_BYTES = 16 << 20
MAX_EPOCHS = 10_000
MAX_DISCLOSURE_BYTES = 16 << 20

Status = Literal["failed", "not_applicable", "verified"]


class Epoch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One change of the authority set: the certified header that names the next set."""

    header: Header
    certificate: Certificate
    authority_set: AuthoritySet


class ProofBundle(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a user keeps. About 2 KB; it grows with the logarithm of the chain."""

    v: Literal[1] = 1
    envelope: Envelope
    index: Count
    """Leaf index of the envelope in the global tree."""
    path: Annotated[tuple[Hex32, ...], msgspec.Meta(max_length=merkle.MAX_PATH_LENGTH)]
    """Inclusion path to `header.tree_root`, leaf side first."""
    header: Header
    certificate: Certificate
    epochs: Annotated[tuple[Epoch, ...], msgspec.Meta(max_length=MAX_EPOCHS)]
    """Every set change from genesis up to `header`, oldest first."""


class Disclosure(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The private texts behind a receipt's digests, which its owner may show."""

    prompt: str | None = None
    prompt_salt: str = ""
    """32 bytes, base64url."""
    result: str | None = None
    result_salt: str = ""
    output_token_ids: tuple[int, ...] | None = None
    """Salted with `result_salt`, as the result is."""


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """One thing a bundle says, and whether it holds."""

    name: str
    status: Status
    detail: str
    """One sentence for people."""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """All claims of a bundle. `verified` means that none of them failed."""

    verified: bool
    receipt_id: str
    transaction_id: str
    genesis: str
    block_height: int
    block_hash: str
    claims: tuple[Claim, ...]
    not_proved: tuple[str, ...]


NOT_PROVED = (
    "That the answer is good, or that the named model really produced it (see audits).",
    "That the times are exact: they are the coordinator's and the provider's clocks.",
    "That a payment was made: the receipt states a price, settlement happens elsewhere.",
)


def parse_bundle(data: bytes) -> ProofBundle:
    """Parse a bundle file: canonical JSON with one optional line feed at its end.

    Raises:
        InvalidProofError: not a bundle, or not in its canonical spelling.
    """
    try:
        bundle = decode(data.removesuffix(b"\n"), ProofBundle, max_bytes=MAX_BUNDLE_BYTES)
        parse_transaction(encode(bundle.envelope))
    except (EncodingError, InvalidTransactionError) as error:
        raise InvalidProofError(f"bundle: {error}") from error
    if not isinstance(bundle.envelope.payload, ReceiptPayload):
        raise InvalidProofError(
            "bundle: expected the envelope of a receipt, got one of type "
            f"{name_type(bundle.envelope.payload)}; only receipts have bundles"
        )
    return bundle


def parse_disclosure(data: bytes) -> Disclosure:
    """Parse a disclosure file; any JSON spelling will do, nothing in it is signed.

    The API's answer about a completed job is one too: texts beside salts in `disclosure`.

    Raises:
        InvalidProofError: not a disclosure, one without a text, or one that is too long.
    """
    if len(data) > MAX_DISCLOSURE_BYTES:
        raise InvalidProofError(f"disclosure: expected at most {MAX_DISCLOSURE_BYTES} bytes")
    try:
        document = msgspec.json.decode(data)
        if isinstance(document, dict) and isinstance(document.get("disclosure"), dict):
            texts = {name: document[name] for name in ("prompt", "result") if name in document}
            document = texts | document["disclosure"]
        shown = msgspec.convert(document, Disclosure)
    except (ValueError, RecursionError) as error:
        raise InvalidProofError(f"disclosure: {error}") from error
    if all(text is None for text in (shown.prompt, shown.result, shown.output_token_ids)):
        raise InvalidProofError("disclosure: expected a prompt, a result or token ids, got none")
    return shown


def verify_bundle(
    data: bytes, *, genesis: Genesis, disclosure: Disclosure | None = None
) -> Verdict:
    """Check every claim of a bundle against the verifier's own genesis.

    Raises:
        InvalidProofError: `data` is not a bundle at all; otherwise failures are in the verdict.
    """
    bundle = parse_bundle(data)
    payload = bundle.envelope.payload
    assert isinstance(payload, ReceiptPayload), "parse_bundle lets no other type through"
    transaction = parse_transaction(encode(bundle.envelope))
    digest = hash_genesis(genesis)
    claims = [
        judge("receipt", lambda: check_receipt(transaction, payload, digest)),
        judge_signature(transaction, "provider", payload.provider),
        judge_signature(transaction, "coordinator", payload.coordinator),
        judge(
            "inclusion",
            lambda: check_inclusion(
                transaction, index=bundle.index, path=bundle.path, header=bundle.header
            ),
        ),
        judge("header", lambda: check_header(bundle.header, digest)),
    ]
    claims += _judge_authorities(bundle, genesis, payload)
    claims += judge_disclosure(payload, disclosure or Disclosure())
    return Verdict(
        verified=all(claim.status != "failed" for claim in claims),
        receipt_id=payload.receipt_id,
        transaction_id=transaction.id.hex(),
        genesis=digest.hex(),
        block_height=bundle.header.height,
        block_hash=hash_header(bundle.header).hex(),
        claims=tuple(claims),
        not_proved=NOT_PROVED,
    )


def judge(name: str, check: Callable[[], str]) -> Claim:
    """Turn a check, which returns its detail or raises, into a claim."""
    try:
        return Claim(name=name, status="verified", detail=check())
    except LedgerError as error:
        return Claim(name=name, status="failed", detail=str(error))


def check_receipt(transaction: Transaction, payload: ReceiptPayload, genesis_hash: bytes) -> str:
    """Check a receipt's fields, and that it names the signers it must have."""
    validate_receipt(payload, genesis_hash=genesis_hash)
    given = [(signature.role, signature.key_id) for signature in transaction.signatures]
    expected = list_signers(payload)
    if given != expected:
        raise InvalidSignatureError(f"signers: expected {expected}, got {given}")
    return f"canonical bytes, consistent fields, transaction {transaction.id.hex()}"


def judge_signature(transaction: Transaction, role: Role, account: str) -> Claim:
    """Judge the signature of one role; a provider without a key cannot sign."""
    name = f"{role}_signature"
    if role == "provider" and not is_account(account):
        detail = f"{account} has no key: only the coordinator vouches for this receipt"
        return Claim(name=name, status="not_applicable", detail=detail)
    return judge(name, lambda: _verify_role(transaction, role, account))


def _verify_role(transaction: Transaction, role: Role, account: str) -> str:
    message = transaction.signed_message
    for signature in transaction.signatures:
        if (signature.role, signature.key_id) == (role, account):
            verify_signature(account, message, signature.sig)
            return f"signed by {account}"
    raise InvalidSignatureError(f"no signature by {account} as {role}")


def check_inclusion(
    transaction: Transaction, *, index: int, path: Sequence[str], header: Header
) -> str:
    """Check that `path` leads from the envelope at `index` to the root of `header`."""
    merkle.verify_inclusion(
        leaf=merkle.hash_leaf(transaction.envelope),
        index=index,
        size=header.tree_size,
        path=[bytes.fromhex(node) for node in path],
        root=bytes.fromhex(header.tree_root),
    )
    return f"leaf {index} of {header.tree_size} under root {header.tree_root}"


def check_header(header: Header, genesis_hash: bytes) -> str:
    """Check that a header is of the verifier's network."""
    if header.genesis != genesis_hash.hex():
        raise InvalidProofError(
            f"header genesis: expected {genesis_hash.hex()}, got {header.genesis}"
        )
    return f"block {header.height} is {hash_header(header).hex()}"


def _judge_authorities(
    bundle: ProofBundle, genesis: Genesis, payload: ReceiptPayload
) -> list[Claim]:
    quorum, chain, authority_set = judge_quorum(
        bundle.certificate, header=bundle.header, epochs=bundle.epochs, genesis=genesis
    )
    if authority_set is None:
        return [quorum, chain, Claim(name="coordinator", status="failed", detail=quorum.detail)]
    return [
        quorum,
        chain,
        judge("coordinator", lambda: check_coordinator(payload, authority_set)),
    ]


def judge_quorum(
    certificate: Certificate, *, header: Header, epochs: Sequence[Epoch], genesis: Genesis
) -> tuple[Claim, Claim, AuthoritySet | None]:
    """Walk the sets from genesis to the header, then count its votes under the last one.

    Returns the claims `quorum` and `authority_chain`, and the set; None if genesis does not lead
    to it. Votes of such a set prove nothing, however many there are.
    """
    try:
        authority_set = walk_epochs(epochs, header=header, genesis=genesis)
    except LedgerError as error:
        unknown = "genesis does not lead to the authority set of this header"
        return (
            Claim(name="quorum", status="failed", detail=unknown),
            Claim(name="authority_chain", status="failed", detail=str(error)),
            None,
        )
    chain = f"{len(epochs)} changes since genesis lead to epoch {authority_set.epoch}"
    return (
        judge("quorum", lambda: _check_quorum(certificate, header, authority_set)),
        Claim(name="authority_chain", status="verified", detail=chain),
        authority_set,
    )


def walk_epochs(epochs: Sequence[Epoch], *, header: Header, genesis: Genesis) -> AuthoritySet:
    """Follow the changes of the authority set from genesis to the set that certifies `header`.

    Raises:
        InvalidProofError: a change is out of place, or they lead to another set.
        InvalidBlockError: a set is malformed or a change is not certified.
    """
    current, height = genesis.authority_set, 0
    genesis_hash = hash_genesis(genesis).hex()
    for epoch in epochs:
        changed, following = epoch.header, epoch.authority_set
        if changed.genesis != genesis_hash or not height < changed.height < header.height:
            raise InvalidProofError(f"epoch {following.epoch}: its header is out of place")
        verify_certificate(epoch.certificate, header=changed, authority_set=current)
        validate_authority_set(following)
        if hash_authority_set(following).hex() != changed.next_set_hash:
            raise InvalidProofError(f"epoch {following.epoch}: the header names another set")
        if following.epoch != current.epoch + 1:
            raise InvalidProofError(f"epoch: expected {current.epoch + 1}, got {following.epoch}")
        current, height = following, changed.height
    if hash_authority_set(current).hex() != header.set_hash:
        raise InvalidProofError(
            f"authority set: expected {header.set_hash}, "
            f"genesis leads to {hash_authority_set(current).hex()}"
        )
    return current


def _check_quorum(certificate: Certificate, header: Header, authority_set: AuthoritySet) -> str:
    verify_certificate(certificate, header=header, authority_set=authority_set)
    votes, members = len(certificate.votes), len(authority_set.members)
    return f"{votes} of {members} authorities signed, {authority_set.quorum} are needed"


def check_coordinator(payload: ReceiptPayload, authority_set: AuthoritySet) -> str:
    """Check that the set allows the coordinator of a receipt."""
    if not authority_set.allows_coordinator(payload.coordinator):
        raise InvalidProofError(f"{payload.coordinator} is not a coordinator of this network")
    return f"{payload.coordinator} may issue receipts"


def judge_disclosure(payload: ReceiptPayload, shown: Disclosure) -> list[Claim]:
    """Compare the texts and token ids that are shown with the receipt's digests."""
    claims = []
    if shown.prompt is not None:
        prompt = shown.prompt
        claims.append(
            _judge_digest(
                "prompt", payload.prompt_digest, shown.prompt_salt, lambda s: hash_text(s, prompt)
            )
        )
    if shown.result is not None:
        result = shown.result
        claims.append(
            _judge_digest(
                "result", payload.result_digest, shown.result_salt, lambda s: hash_text(s, result)
            )
        )
    if shown.output_token_ids is not None:
        ids = shown.output_token_ids
        claims.append(
            _judge_digest(
                "tokens", payload.tokens_digest, shown.result_salt, lambda s: hash_tokens(s, ids)
            )
        )
    return claims


def _judge_digest(name: str, expected: str, salt: str, digest: Callable[[bytes], bytes]) -> Claim:
    def check() -> str:
        if not expected:
            raise InvalidProofError(f"{name}_digest: the receipt names none to compare with")
        try:
            got = digest(decode_base64url(salt, size_bytes=SALT_BYTES)).hex()
        except (ValueError, OverflowError) as error:
            raise InvalidProofError(f"{name}: {error}") from error
        if got != expected:
            raise InvalidProofError(f"{name}_digest: expected {expected}, the text gives {got}")
        return f"matches what was disclosed ({name})"

    return judge(f"{name}_digest", check)
