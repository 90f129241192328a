"""Proof bundles, genuine and tampered, with the claims that must fail (tests/vectors/bundles.json).

`failed` is written by hand: it says what a verifier has to find, not what ours finds. Where it is
None the bytes are no bundle at all and no claim is judged.

Many cases are *sealed*: a dishonest authority put the tampered receipt into a block, so that
everything around it is genuine and only the claim in question can catch it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from ledger import merkle
from ledger.authorities import hash_authority_set
from ledger.block import Genesis, Header, VoteKind, hash_genesis
from ledger.encoding import decode_base64url, encode, encode_base64url
from ledger.keys import SIGNATURE_BYTES, KeyPair, encode_account
from ledger.proof import ProofBundle, parse_disclosure, verify_bundle
from ledger.transaction import Signature, Transaction, build_signed_message, build_transaction
from tests import edwards
from tests.builders import (
    TOKEN_IDS,
    Chain,
    build_authority_set,
    build_certificate,
    build_chain,
    build_disclosure,
    build_evidence,
    build_genesis,
    build_job_id,
    build_key,
    build_members,
    build_payload,
    build_receipt,
    build_salt,
    sign_receipt,
)

Document = dict[str, Any]

AUTHORITIES_UNKNOWN = ["quorum", "authority_chain", "coordinator"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One bundle and what a verifier must say about it."""

    why: str
    genesis: Genesis
    bundle: str
    failed: list[str] | None
    disclosure: Document | None = None


def build_cases() -> list[Case]:
    """Return all cases, the genuine ones first."""
    return [
        *_genuine(),
        *_sealed(),
        *_signatures(),
        *_paths(),
        *_headers(),
        *_certificates(),
        *_epochs(),
        *_disclosures(),
        *_malformed(),
    ]


def build_bundles() -> Document:
    """Return the vector file. `claims` is the verdict of ledger/proof.py, claim by claim."""
    cases = build_cases()
    return {
        "genesis": {_hash(case): _text(case.genesis) for case in cases},
        "cases": [_describe(case) for case in cases],
    }


def _hash(case: Case) -> str:
    return hash_genesis(case.genesis).hex()


def _describe(case: Case) -> Document:
    described: Document = {
        "why": case.why,
        "genesis": _hash(case),
        "bundle": case.bundle,
        "failed": case.failed,
    }
    shown = None
    if case.disclosure is not None:
        described["disclosure"] = case.disclosure
        shown = parse_disclosure(msgspec.json.encode(case.disclosure))
    if case.failed is not None:
        verdict = verify_bundle(case.bundle.encode(), genesis=case.genesis, disclosure=shown)
        described["claims"] = [[claim.name, claim.status] for claim in verdict.claims]
    return described


def _text(document: object) -> str:
    return encode(document).decode()


def _document(bundle: ProofBundle) -> Document:
    document: Document = msgspec.json.decode(encode(bundle))
    return document


def _one() -> Chain:
    return build_chain(1, blocks=[3])


def _four() -> Chain:
    return build_chain(4, blocks=[3, 2])


def _two_changes() -> Chain:
    """Four authorities, then five, then seven; authority 0 stays and coordinates."""
    chain = build_chain(4, blocks=[2])
    chain.change_authorities(build_members(5, epoch=1), build_receipt(chain.genesis, 3))
    chain.append(build_receipt(chain.genesis, 4))
    chain.change_authorities(build_members(7, epoch=2), build_receipt(chain.genesis, 5))
    chain.append(build_receipt(chain.genesis, 6), build_receipt(chain.genesis, 7))
    return chain


def _genuine() -> list[Case]:
    one, four, changed = _one(), _four(), _two_changes()
    single = build_chain(1, blocks=[1])
    nameless = _seal(build_receipt(one.genesis, 9, provider="old-miner.local"))
    disclosure: Document = msgspec.to_builtins(build_disclosure(2))
    found = [
        Case(
            why="one authority",
            genesis=one.genesis,
            bundle=_text(one.bundle(1)),
            failed=[],
            disclosure=disclosure,
        ),
        Case(
            why="one receipt, hence an empty path",
            genesis=single.genesis,
            bundle=_text(single.bundle(0)),
            failed=[],
        ),
        Case(
            why="a line feed at the end of the file",
            genesis=one.genesis,
            bundle=_text(one.bundle(0)) + "\n",
            failed=[],
        ),
        Case(why="provider without a key", genesis=one.genesis, bundle=_text(nameless), failed=[]),
        Case(why="four authorities", genesis=four.genesis, bundle=_text(four.bundle(4)), failed=[]),
        _change(
            "three of four authorities, in a later view",
            four,
            lambda d: d.update(certificate=_certify(four, voters=[0, 2, 3], view=5)),
            [],
            index=3,
        ),
        Case(
            why="two changes of the authority set",
            genesis=changed.genesis,
            bundle=_text(changed.bundle(8)),
            failed=[],
        ),
        Case(
            why="a receipt of the block that changes the set",
            genesis=changed.genesis,
            bundle=_text(changed.bundle(5)),
            failed=[],
        ),
    ]
    later = _document(one.bundle(1))
    one.append(build_receipt(one.genesis, 4))
    later["header"] = msgspec.to_builtins(one.blocks[1].header)
    later["certificate"] = msgspec.to_builtins(one.certificates[1])
    path = merkle.build_inclusion_path(1, one.tip.tree_size, one.read)
    later["path"] = [node.hex() for node in path]
    found.append(
        Case(why="proved under a later header", genesis=one.genesis, bundle=_text(later), failed=[])
    )
    return found


def _seal(transaction: Transaction, chain: Chain | None = None) -> ProofBundle:
    """Put `transaction` into a block, valid or not, and prove it."""
    chain = chain or _one()
    chain.append(transaction)
    return chain.bundle(chain.tip.tree_size - 1)


def _sealed() -> list[Case]:
    genesis = build_genesis()
    stranger = build_key("stranger")

    def case(why: str, failed: list[str], **changes: Any) -> Case:
        return Case(
            why=why,
            genesis=genesis,
            bundle=_text(_seal(build_receipt(genesis, 9, **changes))),
            failed=failed,
        )

    foreign = build_payload(genesis, 9, coordinator=stranger.account)
    unlisted = build_transaction(foreign, sign_receipt(foreign, coordinator=stranger))
    nobody = build_transaction(
        build_payload(genesis, 9, coordinator="nobody", provider="old-miner.local"),
        [Signature(key_id="nobody", role="coordinator", sig="A" * 86)],
    )
    return [
        case("receipt id of another job", ["receipt"], receipt_id="rcp_" + "a" * 26),
        case("receipt of another network", ["receipt"], genesis="ab" * 32),
        case(
            "receipt of another network under this network's id",
            ["receipt"],
            genesis="ab" * 32,
            receipt_id=build_payload(genesis, 9).receipt_id,
        ),
        case("completed before it started", ["receipt"], completed_at_ms=1),
        case("more tokens than the job allowed", ["receipt"], max_tokens=9),
        case("one micro-unit too many", ["receipt"], units_micros=46_000_001),
        case("more GPU time than time", ["receipt"], unit_type="gpu_seconds", units_micros=830_001),
        case(
            "provider looks like an account, but is none",
            ["receipt"],
            provider=build_key("miner").account[:-1] + "q",
        ),
        Case(
            why="coordinator is nobody of this network",
            genesis=genesis,
            bundle=_text(_seal(unlisted)),
            failed=["coordinator"],
        ),
        Case(
            why="coordinator is no account",
            genesis=genesis,
            bundle=_text(_seal(nobody)),
            failed=["receipt", "coordinator_signature", "coordinator"],
        ),
    ]


def _signatures() -> list[Case]:
    genesis = build_genesis()
    payload = build_payload(genesis, 9)
    message = build_signed_message(payload)
    coordinator, provider = sign_receipt(payload)
    stranger = build_key("stranger")

    def case(why: str, failed: list[str], *signatures: Signature) -> Case:
        bundle = _seal(build_transaction(payload, signatures))
        return Case(why=why, genesis=genesis, bundle=_text(bundle), failed=failed)

    def swap(signature: Signature, **changes: Any) -> Signature:
        return msgspec.structs.replace(signature, **changes)

    forged, broken = stranger.sign(message), build_key("miner").sign(message + b" ")
    raw = decode_base64url(coordinator.sig, size_bytes=SIGNATURE_BYTES)
    s = int.from_bytes(raw[32:], "little") + edwards.L
    malleated = encode_base64url(raw[:32] + s.to_bytes(32, "little"))
    small = encode_account(edwards.encode(edwards.IDENTITY))
    weak = build_payload(genesis, 9, provider=small)
    weak_signatures = [
        sign_receipt(weak)[0],
        Signature(key_id=small, role="provider", sig=encode_base64url(b"\1" + bytes(63))),
    ]
    last = coordinator.sig[:-1] + chr(ord(coordinator.sig[-1]) + 1)
    return [
        case("no provider signature", ["receipt", "provider_signature"], coordinator),
        case("no coordinator signature", ["receipt", "coordinator_signature"], provider),
        case("no signature", ["receipt", "provider_signature", "coordinator_signature"]),
        case(
            "a spare signature",
            ["receipt"],
            coordinator,
            provider,
            Signature(key_id=stranger.account, role="auditor", sig=forged),
        ),
        case(
            "roles swapped",
            ["receipt", "provider_signature", "coordinator_signature"],
            swap(coordinator, role="provider"),
            swap(provider, role="coordinator"),
        ),
        case(
            "provider's signature made by another key",
            ["provider_signature"],
            coordinator,
            swap(provider, sig=forged),
        ),
        case(
            "provider signed something else",
            ["provider_signature"],
            coordinator,
            swap(provider, sig=broken),
        ),
        case(
            "coordinator's signature made by another key",
            ["coordinator_signature"],
            swap(coordinator, sig=forged),
            provider,
        ),
        case(
            "coordinator's signature with L added to S",
            ["coordinator_signature"],
            swap(coordinator, sig=malleated),
            provider,
        ),
        case(
            "coordinator's signature with a spare bit in its base64url",
            ["coordinator_signature"],
            swap(coordinator, sig=last),
            provider,
        ),
        case(
            "provider's signature is empty",
            ["provider_signature"],
            coordinator,
            swap(provider, sig=""),
        ),
        Case(
            why="provider's key is of small order and its signature fits every message",
            genesis=genesis,
            bundle=_text(_seal(build_transaction(weak, weak_signatures))),
            failed=["provider_signature"],
        ),
    ]


def _change(
    why: str,
    chain: Chain,
    change: Callable[[Document], object],
    failed: list[str] | None,
    *,
    index: int,
) -> Case:
    """Change the parsed bundle of leaf `index`."""
    document = copy.deepcopy(_document(chain.bundle(index)))
    change(document)
    return Case(why=why, genesis=chain.genesis, bundle=_text(document), failed=failed)


def _paths() -> list[Case]:
    chain = build_chain(1, blocks=[7])
    signers = ["provider_signature", "coordinator_signature"]

    def case(why: str, change: Callable[[Document], object], *failed: str) -> Case:
        return _change(why, chain, change, [*failed, "inclusion"], index=4)

    def price(document: Document) -> None:
        document["envelope"]["payload"]["price_micros"] += 1

    return [
        case("another price", price, *signers),
        case("the next index", lambda d: d.update(index=5)),
        case("an index outside the tree", lambda d: d.update(index=7)),
        case("an index outside the tree that folds alike", lambda d: d.update(index=4 + 8)),
        case("another node in the path", lambda d: d["path"].__setitem__(0, "00" * 32)),
        case("path too short", lambda d: d["path"].pop()),
        case("path too long", lambda d: d["path"].append("00" * 32)),
        case("path empty", lambda d: d.update(path=[])),
        case("path reversed", lambda d: d["path"].reverse()),
        case("another receipt's envelope", lambda d: d.update(envelope=_envelope(chain, 5))),
    ]


def _envelope(chain: Chain, index: int) -> Document:
    envelope: Document = msgspec.json.decode(chain.transactions[index].envelope)
    return envelope


def _headers() -> list[Case]:
    chain = _one()
    foreign = build_genesis(network="other-net")

    def case(why: str, failed: list[str], **fields: Any) -> Case:
        return _change(why, chain, lambda d: d["header"].update(fields), failed, index=1)

    def certified(why: str, failed: list[str], **fields: Any) -> Case:
        header = msgspec.structs.replace(chain.blocks[0].header, **fields)
        change = {
            "header": msgspec.to_builtins(header),
            "certificate": msgspec.to_builtins(build_certificate(header, chain.members)),
        }
        return _change(why, chain, lambda d: d.update(change), failed, index=1)

    return [
        case("another time", ["quorum"], time_ms=1),
        case("another height", ["quorum"], height=2),
        case("another parent", ["quorum"], prev_hash="00" * 32),
        case("another proposer", ["quorum"], proposer="nobody"),
        case("another next set", ["quorum"], next_set_hash="00" * 32),
        case("another root", ["inclusion", "quorum"], tree_root="00" * 32),
        case("a tree of one leaf more", ["quorum"], tree_size=4),
        case("a tree of one leaf", ["inclusion", "quorum"], tree_size=1),
        case("another set", AUTHORITIES_UNKNOWN, set_hash="00" * 32),
        certified("a header of another network, certified", ["header"], genesis="ab" * 32),
        certified("a tree too large for its root, certified", ["inclusion"], tree_size=9),
        _lonely_leaf(chain),
        Case(
            why="another network of the same authorities",
            genesis=foreign,
            bundle=_text(chain.bundle(1)),
            failed=["receipt", "header"],
        ),
        Case(
            why="another network",
            genesis=build_genesis(4),
            bundle=_text(chain.bundle(1)),
            failed=["receipt", "header", *AUTHORITIES_UNKNOWN],
        ),
    ]


def _lonely_leaf(chain: Chain) -> Case:
    """A certified tree of one leaf whose root is that of two: the path is one node too long."""
    leaf = merkle.hash_leaf(chain.transactions[0].envelope)
    root = merkle.hash_children(bytes(32), leaf)
    header = msgspec.structs.replace(chain.blocks[0].header, tree_size=1, tree_root=root.hex())
    change = {
        "path": [bytes(32).hex()],
        "header": msgspec.to_builtins(header),
        "certificate": msgspec.to_builtins(build_certificate(header, chain.members)),
    }
    why = "a tree too small for its root, certified"
    return _change(why, chain, lambda d: d.update(change), ["inclusion"], index=0)


def _certify(
    chain: Chain,
    *,
    voters: list[int],
    view: int = 0,
    kind: VoteKind = "finalize",
    header: Header | None = None,
) -> Document:
    certificate = build_certificate(
        header or chain.blocks[1].header, chain.members, voters=voters, view=view, kind=kind
    )
    document: Document = msgspec.to_builtins(certificate)
    return document


def _certificates() -> list[Case]:
    chain = _four()
    header = chain.blocks[1].header
    genuine = _certify(chain, voters=[0, 1, 2, 3])["votes"]
    stranger = build_key("stranger")

    def case(why: str, certificate: Document) -> Case:
        return _change(why, chain, lambda d: d.update(certificate=certificate), ["quorum"], index=4)

    def votes(*chosen: list[Any]) -> Document:
        return {"view": 0, "votes": list(chosen)}

    def other(**fields: Any) -> Document:
        return _certify(
            chain, voters=[0, 1, 2, 3], header=msgspec.structs.replace(header, **fields)
        )

    impostor = _certify(
        Chain(
            genesis=chain.genesis,
            members=[*chain.members[:3], stranger],
            tip=chain.tip,
            blocks=chain.blocks,
        ),
        voters=[0, 1, 2, 3],
    )
    return [
        case("no votes", votes()),
        case("one vote too few", votes(*genuine[:2])),
        case("one vote three times", votes(genuine[0], genuine[0], genuine[0])),
        case("a vote twice beside a quorum", votes(*genuine, genuine[3])),
        case("votes in descending order", votes(*genuine[::-1])),
        case("a vote under another's index", votes(*genuine[:2], [2, genuine[3][1]])),
        case("a member that does not exist", votes(*genuine[:2], [4, genuine[2][1]])),
        case("a quorum and one vote by a stranger", impostor),
        case("a quorum and one vote that is no signature", votes(*genuine[:3], [3, "AA"])),
        case("notarize votes", _certify(chain, voters=[0, 1, 2], kind="notarize")),
        case("votes of another view", {"view": 1, "votes": genuine}),
        case("votes of another block", other(time_ms=header.time_ms + 1)),
        case("votes of another height", other(height=header.height + 1)),
        case("votes of another network", other(genesis="ab" * 32)),
    ]


def _epochs() -> list[Case]:
    chain = _two_changes()
    first, second = [msgspec.to_builtins(epoch) for epoch in chain.epochs]

    def case(why: str, change: Callable[[Document], object]) -> Case:
        return _change(why, chain, change, AUTHORITIES_UNKNOWN, index=8)

    def with_epochs(why: str, *epochs: Document) -> Case:
        return case(why, lambda d: d.update(epochs=list(epochs)))

    def add_member(document: Document) -> None:
        document["epochs"][1]["authority_set"]["members"].append(
            {"account": build_key("stranger").account, "name": "stranger", "url": ""}
        )

    return [
        with_epochs("all changes left out"),
        with_epochs("the first change left out", second),
        with_epochs("the last change left out", first),
        with_epochs("changes in the wrong order", second, first),
        with_epochs("a change twice", first, first, second),
        case("a member added to the last set", add_member),
        case(
            "the last set changed by its own new members",
            lambda d: d["epochs"][1].update(certificate=_self_certified(chain)),
        ),
        case(
            "a change with one vote too few",
            lambda d: d["epochs"][0]["certificate"]["votes"].__delitem__(slice(2, None)),
        ),
        case(
            "the first set's name changed",
            lambda d: d["epochs"][0]["authority_set"]["members"][0].update(name="x"),
        ),
        case(
            "a change above the header",
            lambda d: d["epochs"][1]["header"].update(height=d["header"]["height"]),
        ),
        case(
            "a change at the header's height, certified",
            lambda d: _recertify(d, 1, build_members(5, epoch=1), height=d["header"]["height"]),
        ),
        case(
            "two changes at one height, certified",
            lambda d: _recertify(d, 1, build_members(5, epoch=1), height=first["header"]["height"]),
        ),
        case(
            "a change of another network, certified",
            lambda d: _recertify(d, 0, build_members(4), genesis="ab" * 32),
        ),
        case(
            "a change that names other voters, certified",
            lambda d: _recertify(d, 1, build_members(5, epoch=1), set_hash="00" * 32),
        ),
        case("a set that the change does not name, with a header of its own", _usurp),
        _account_twice(),
        _stranger_in(why="a change by a stranger alone", sealed_by_stranger=True, epoch_step=1),
        _stranger_in(why="a change that skips an epoch", sealed_by_stranger=False, epoch_step=2),
    ]


def _self_certified(chain: Chain) -> Document:
    certificate = build_certificate(chain.epochs[1].header, build_members(7, epoch=2))
    document: Document = msgspec.to_builtins(certificate)
    return document


def _recertify(document: Document, place: int, members: list[KeyPair], **fields: Any) -> None:
    """Change the header of one epoch and let those certify it who certified it before."""
    epoch = document["epochs"][place]
    header = msgspec.convert(epoch["header"] | fields, Header)
    epoch["header"] = msgspec.to_builtins(header)
    epoch["certificate"] = msgspec.to_builtins(build_certificate(header, members))


def _usurp(document: Document) -> None:
    """Swap the last set for a stranger's, and let the stranger certify the header."""
    members = [build_key("authority 0"), build_key("stranger")]
    usurper = build_authority_set(members, epoch=2)
    document["epochs"][1]["authority_set"] = msgspec.to_builtins(usurper)
    fields = document["header"] | {"set_hash": hash_authority_set(usurper).hex()}
    header = msgspec.convert(fields, Header)
    document["header"] = msgspec.to_builtins(header)
    document["certificate"] = msgspec.to_builtins(build_certificate(header, members))


def _account_twice() -> Case:
    """The authorities agreed on a set in which one of them would vote twice."""
    chain = build_chain(1, blocks=[1])
    chain.change_authorities(chain.members * 2, build_receipt(chain.genesis, 2))
    chain.append(build_receipt(chain.genesis, 3))
    return Case(
        why="a set that lists an account twice",
        genesis=chain.genesis,
        bundle=_text(chain.bundle(3)),
        failed=AUTHORITIES_UNKNOWN,
    )


def _stranger_in(*, why: str, sealed_by_stranger: bool, epoch_step: int) -> Case:
    """A stranger joins the set in a change that nobody may accept."""
    chain = build_chain(1, blocks=[1])
    joined = [*chain.members, build_key("stranger")]
    if sealed_by_stranger:
        chain.members = joined[1:]
    chain.change_authorities(joined, build_receipt(chain.genesis, 2), epoch_step=epoch_step)
    chain.append(build_receipt(chain.genesis, 3))
    return Case(
        why=why, genesis=chain.genesis, bundle=_text(chain.bundle(3)), failed=AUTHORITIES_UNKNOWN
    )


def _disclosures() -> list[Case]:
    chain = _one()
    unbound = _seal(build_receipt(chain.genesis, 9, tokens_digest=""))

    def case(why: str, failed: list[str], **shown: Any) -> Case:
        return Case(
            why=why,
            genesis=chain.genesis,
            bundle=_text(chain.bundle(1)),
            failed=failed,
            disclosure=shown,
        )

    genuine: Document = msgspec.to_builtins(build_disclosure(2))
    result = encode_base64url(build_salt("result 2"))
    return [
        case("only the prompt", [], prompt=genuine["prompt"], prompt_salt=genuine["prompt_salt"]),
        case("another prompt", ["prompt_digest"], **{**genuine, "prompt": "Why?"}),
        case("another result", ["result_digest"], **{**genuine, "result": ""}),
        case(
            "other token ids", ["tokens_digest"], **{**genuine, "output_token_ids": TOKEN_IDS[::-1]}
        ),
        case("a token id below 0", ["tokens_digest"], output_token_ids=[-1], result_salt=result),
        case("a token id of 2^32", ["tokens_digest"], output_token_ids=[2**32], result_salt=result),
        case("the salts swapped", ["prompt_digest"], prompt=genuine["prompt"], prompt_salt=result),
        case("no salt", ["prompt_digest"], prompt=genuine["prompt"]),
        case("salt too short", ["prompt_digest"], prompt=genuine["prompt"], prompt_salt="AAAA"),
        case(
            "salt with padding",
            ["prompt_digest"],
            prompt=genuine["prompt"],
            prompt_salt=genuine["prompt_salt"] + "=",
        ),
        Case(
            why="token ids for a receipt that binds none",
            genesis=chain.genesis,
            bundle=_text(unbound),
            failed=["tokens_digest"],
            disclosure={"output_token_ids": [], "result_salt": result},
        ),
    ]


def _malformed() -> list[Case]:
    chain = _one()
    text = _text(chain.bundle(1))
    hostile_id = build_job_id(2) + "\\n"

    def edit(why: str, old: str, new: str) -> Case:
        assert text.count(old) >= 1, old
        return Case(why=why, genesis=chain.genesis, bundle=text.replace(old, new, 1), failed=None)

    def whole(why: str, bundle: str) -> Case:
        return Case(why=why, genesis=chain.genesis, bundle=bundle, failed=None)

    def change(why: str, mutate: Callable[[Document], object]) -> Case:
        return _change(why, chain, mutate, None, index=1)

    def payload(why: str, **fields: Any) -> Case:
        return change(why, lambda d: d["envelope"]["payload"].update(fields))

    node = "00" * 32
    return [
        whole("no bytes", ""),
        whole("not JSON", "receipt"),
        whole("another document", "[]"),
        whole("null", "null"),
        whole("truncated", text[:-1]),
        whole("two line feeds at the end", text + "\n\n"),
        whole("a carriage return at the end", text + "\r\n"),
        whole("text behind it", text + "{}"),
        whole("a byte order mark", "\ufeff" + text),
        whole("deep nesting", "[" * 10_000),
        whole("deep nesting of objects", '{"v":' * 2000),
        whole("keys out of order", '{"v":1,' + text[1:].removesuffix(',"v":1}') + "}"),
        edit("a key twice", '"v":1}', '"v":1,"v":1}'),
        edit("a key twice, deep inside", '"attempt":1', '"attempt":1,"attempt":1'),
        edit("white space", '"index":1', '"index": 1'),
        edit("an escape that is not needed", '"tokens"', '"token\\u0073"'),
        edit("a float", '"index":1', '"index":1.0'),
        edit("an exponent", '"index":1', '"index":1e0'),
        edit("minus zero", '"view":0', '"view":-0'),
        edit("a leading zero", '"index":1', '"index":01'),
        edit("not a number", '"index":1', '"index":NaN'),
        edit("a huge number", '"index":1', '"index":1' + "0" * 5000),
        edit("a number as text", '"index":1', '"index":"1"'),
        edit("true for 1", '"attempt":1', '"attempt":true'),
        edit("null for a list", '"epochs":[]', '"epochs":null'),
        edit("a lone surrogate", '"smollm2:135m"', '"\\ud800"'),
        edit("upper-case hex", '"genesis":"', '"genesis":"A'),
        edit("a line feed in an id", build_job_id(2), hostile_id),
        change("an unknown field", lambda d: d.update(extra=1)),
        change("an unknown field of the receipt", lambda d: d["envelope"]["payload"].update(x=1)),
        change("an unknown field of a signature", lambda d: _signature(d).update(x=1)),
        change("a missing field", lambda d: d.pop("epochs")),
        change("a missing version", lambda d: d.pop("v")),
        change("a missing field of the receipt", lambda d: d["envelope"]["payload"].pop("seed")),
        change("a missing type", lambda d: d["envelope"]["payload"].pop("type")),
        change("another version", lambda d: d.update(v=2)),
        change("another version of the header", lambda d: d["header"].update(v=2)),
        payload("another type", type="audit"),
        *_no_receipts(),
        payload("an unknown unit", unit_type="watts"),
        payload("a negative count", price_micros=-1),
        payload("a count of 2^53", price_micros=2**53),
        payload("a seed that is text", seed="1"),
        payload("no model name", model=""),
        payload("a control character in a name", model="a\u007f"),
        payload("a name of 129 characters", model="a" * 129),
        payload("a client with a space", client="a b"),
        payload("a digest that is missing", prompt_digest=""),
        payload("a digest too short", model_digest="ab"),
        payload("attempt 0", attempt=0),
        payload("top_p 0", top_p_micros=0),
        change("a role that does not exist", lambda d: _signature(d).update(role="owner")),
        change("a key id of 91 characters", lambda d: _signature(d).update(key_id="a" * 91)),
        change("a signature of 87 characters", lambda d: _signature(d).update(sig="A" * 87)),
        change("signatures out of order", lambda d: d["envelope"]["signatures"].reverse()),
        change(
            "a signature twice",
            lambda d: d["envelope"]["signatures"].append(d["envelope"]["signatures"][1]),
        ),
        change("a negative index", lambda d: d.update(index=-1)),
        change("a path of 64 nodes", lambda d: d.update(path=[node] * 64)),
        change("a node that is no hash", lambda d: d.update(path=["00"])),
        change("height 0", lambda d: d["header"].update(height=0)),
        change("a vote of three parts", lambda d: d["certificate"]["votes"][0].append(1)),
        change("voter 100", lambda d: d["certificate"]["votes"][0].__setitem__(0, 100)),
        change("101 votes", lambda d: d["certificate"].update(votes=[[0, ""]] * 101)),
        change("a negative view", lambda d: d["certificate"].update(view=-1)),
        change("an epoch that is none", lambda d: d.update(epochs=[{}])),
        change("an envelope that is too long", _pad_envelope),
    ]


def _no_receipts() -> list[Case]:
    """Genuine transactions of the other types with genuine paths: only receipts have bundles."""
    chain = build_chain(1, blocks=[1])
    chain.change_authorities(
        build_members(2, epoch=1), build_evidence(chain.genesis, chain.members[0])
    )
    return [
        Case(why=why, genesis=chain.genesis, bundle=_text(chain.bundle(index)), failed=None)
        for index, why in (
            (1, "evidence instead of a receipt"),
            (2, "a change instead of a receipt"),
        )
    ]


def _signature(document: Document) -> Document:
    signature: Document = document["envelope"]["signatures"][0]
    return signature


def _pad_envelope(document: Document) -> None:
    """Well-formed signatures, of which each control character in a key id takes six bytes."""
    document["envelope"]["signatures"] = [
        {"key_id": f"{i:03}" + "\1" * 87, "role": "provider", "sig": ""} for i in range(120)
    ]
