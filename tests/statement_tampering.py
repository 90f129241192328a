"""Statement bundles, genuine and tampered (tests/vectors/statements.json).

As in `tampering.py`, `failed` and `lines` are written by hand: which claims a verifier has to find
false, and at which leaves. Where `failed` is None the bytes are no statement bundle at all.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from ledger import merkle
from ledger.block import Genesis, Header, hash_genesis
from ledger.encoding import MAX_INTEGER, encode
from ledger.keys import KeyPair
from ledger.statement import verify_statement
from ledger.transaction import Transaction, build_transaction
from tests.builders import (
    CREATED_MS,
    Chain,
    build_certificate,
    build_chain,
    build_genesis,
    build_key,
    build_members,
    build_payload,
    build_receipt,
    sign_receipt,
)

Document = dict[str, Any]

CLIENT = "client-1"
MINER = build_key("miner").account
BLOCK_MS = 500
"""Between two blocks of `build_chain`."""
UNKNOWN_SET = ["quorum", "authority_chain", "coordinator", "period"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One statement and what a verifier must say about it."""

    why: str
    genesis: Genesis
    statement: str
    failed: list[str] | None
    lines: tuple[int, ...] = ()
    """Leaves of the lines that must fail."""


def build_statements() -> Document:
    """Return the vector file. `claims` and `totals` are those of ledger/statement.py."""
    cases = build_cases()
    return {
        "genesis": {_hash(case): encode(case.genesis).decode() for case in cases},
        "cases": [_describe(case) for case in cases],
    }


def build_cases() -> list[Case]:
    """Return all cases, the genuine ones first."""
    return [
        *_genuine(),
        *_lines(),
        *_sealed(),
        *_periods(),
        *_headers(),
        *_epochs(),
        *_malformed(),
    ]


def build_market() -> Chain:
    """A chain on which `CLIENT`, two other clients and three providers deal with each other."""
    chain = build_chain(1, blocks=[1])
    genesis = chain.genesis
    chain.append(
        build_receipt(genesis, 2, client="client-2"),
        build_receipt(genesis, 3, provider="old-miner", model="llama3.2", price_micros=7),
        build_receipt(
            genesis, 4, unit_type="gpu_seconds", units_micros=830_000, price_micros=1_000_001
        ),
    )
    chain.append(build_receipt(genesis, 5, client="client-3", provider="old-miner"))
    chain.append(
        build_receipt(genesis, 6, client=MINER),
        build_receipt(genesis, 7, model="=1+1 😀", price_micros=2**53 - 1),
    )
    chain.append(build_receipt(genesis, 8, price_micros=2**53 - 1))
    return chain


def _time(height: int) -> int:
    return CREATED_MS + height * BLOCK_MS


def _hash(case: Case) -> str:
    return hash_genesis(case.genesis).hex()


def _describe(case: Case) -> Document:
    described: Document = {
        "why": case.why,
        "genesis": _hash(case),
        "statement": case.statement,
        "failed": case.failed,
    }
    if case.failed is not None:
        verdict = verify_statement(case.statement.encode(), genesis=case.genesis)
        described["failed_lines"] = list(case.lines)
        described["claims"] = [[claim.name, claim.status] for claim in verdict.claims]
        described["totals"] = msgspec.to_builtins(verdict.totals)
    return described


def _text(document: object) -> str:
    return encode(document).decode()


def _case(chain: Chain, why: str, account: str, **period: int) -> Case:
    return Case(
        why=why,
        genesis=chain.genesis,
        statement=_text(chain.statement(account, **period)),
        failed=[],
    )


def _change(
    why: str,
    chain: Chain,
    change: Callable[[Document], object],
    failed: list[str] | None,
    *,
    lines: tuple[int, ...] = (),
    account: str = CLIENT,
    from_ms: int = 0,
    to_ms: int = MAX_INTEGER,
) -> Case:
    """Change the parsed statement of an account."""
    statement = chain.statement(account, from_ms=from_ms, to_ms=to_ms)
    document: Document = msgspec.json.decode(encode(statement))
    change(document)
    return Case(
        why=why, genesis=chain.genesis, statement=_text(document), failed=failed, lines=lines
    )


def _genuine() -> list[Case]:
    market, four, changed = build_market(), build_chain(4, blocks=[3, 2]), _two_changes()
    whole = _text(market.statement(CLIENT))
    return [
        _case(market, "a client, from genesis on", CLIENT),
        _case(market, "a provider that is its own client once", MINER),
        _case(market, "a provider without a key", "old-miner"),
        _case(market, "one line in the first block", CLIENT, to_ms=_time(2)),
        _case(market, "one line in the last block", CLIENT, from_ms=_time(5)),
        _case(
            market,
            "a period that just fits its blocks",
            MINER,
            from_ms=_time(2),
            to_ms=_time(4) + 1,
        ),
        _case(market, "a period in which no other block lies", MINER, from_ms=_time(1) + 1),
        Case(
            why="a line feed at the end of the file",
            genesis=market.genesis,
            statement=whole + "\n",
            failed=[],
        ),
        _change("a line left out, which nothing shows", market, lambda d: d["entries"].pop(1), []),
        _change("a longer period, which says less", market, lambda d: d.update(from_ms=1), []),
        _case(four, "four authorities", CLIENT),
        _case(changed, "lines before, between and after two changes of the authorities", CLIENT),
        _case(
            changed, "an opening after the first change", CLIENT, from_ms=_time(3), to_ms=_time(6)
        ),
        _case(changed, "an opening that changes the authorities", CLIENT, from_ms=_time(2)),
        _departed_coordinator(),
    ]


def _two_changes() -> Chain:
    """Four authorities, then five, then seven; authority 0 stays and coordinates."""
    chain = build_chain(4, blocks=[2])
    chain.change_authorities(build_members(5, epoch=1), build_receipt(chain.genesis, 3))
    chain.append(build_receipt(chain.genesis, 4))
    chain.change_authorities(build_members(7, epoch=2), build_receipt(chain.genesis, 5))
    chain.append(build_receipt(chain.genesis, 6), build_receipt(chain.genesis, 7))
    return chain


def _coordinate(chain: Chain, number: int, coordinator: KeyPair) -> Transaction:
    payload = build_payload(chain.genesis, number, coordinator=coordinator.account)
    return build_transaction(payload, sign_receipt(payload, coordinator=coordinator))


def _depart() -> tuple[Chain, KeyPair, KeyPair]:
    """One authority hands over to another; each coordinates in its own epoch, up to its end."""
    chain = build_chain(1, blocks=[1])
    (old,) = chain.members
    new = build_key("successor")
    chain.change_authorities([new], build_receipt(chain.genesis, 2))
    chain.append(_coordinate(chain, 3, new))
    return chain, old, new


def _departed_coordinator() -> Case:
    chain, _, _ = _depart()
    return _case(chain, "coordinators that were allowed in their time", CLIENT)


def _lines() -> list[Case]:
    """A line that was changed without the signers and the authorities."""
    chain = build_market()

    def case(
        why: str, change: Callable[[Document], object], failed: list[str], *lines: int
    ) -> Case:
        return _change(why, chain, lambda d: change(d["entries"][1]), failed, lines=lines or (2,))

    def edit(why: str, failed: list[str], **fields: Any) -> Case:
        return case(why, lambda e: e["envelope"]["payload"].update(fields), failed)

    def all_paths(document: Document) -> None:
        for entry in document["entries"]:
            entry["path"] = []

    coordinator = ["coordinator_signature", "inclusion"]
    return [
        edit("another price", coordinator, price_micros=6),
        edit("another client", ["account", *coordinator], client="client-9"),
        edit("another model", coordinator, model="other"),
        edit("fewer units", ["receipt", *coordinator], units_micros=45_000_000),
        edit("another network", ["receipt", *coordinator], genesis="ab" * 32),
        case("another index", lambda e: e.update(index=1), ["inclusion"], 1),
        case("no path", lambda e: e.update(path=[]), ["inclusion"]),
        case("another node", lambda e: e["path"].__setitem__(0, "00" * 32), ["inclusion"]),
        case(
            "an envelope in place of another",
            lambda e: e.update(envelope=_envelope(chain, 0)),
            ["inclusion"],
        ),
        case(
            "somebody else's receipt",
            lambda e: e.update(_entry(chain, 1)),
            ["account"],
            1,
        ),
        _change(
            "the statement of another account",
            chain,
            lambda d: d.update(account="client-2"),
            ["account"],
            lines=(0, 2, 3, 6, 7),
        ),
        _change("no paths at all", chain, all_paths, ["inclusion"], lines=(0, 2, 3, 6, 7)),
    ]


def _envelope(chain: Chain, leaf: int) -> Document:
    envelope: Document = msgspec.json.decode(chain.transactions[leaf].envelope)
    return envelope


def _entry(chain: Chain, leaf: int) -> Document:
    path = merkle.build_inclusion_path(leaf, chain.tip.tree_size, chain.read)
    return {
        "envelope": _envelope(chain, leaf),
        "index": leaf,
        "path": [node.hex() for node in path],
    }


def _sealed() -> list[Case]:
    """A dishonest authority put a bad receipt into a block: only its own claim can catch it."""
    genesis, stranger = build_genesis(), build_key("stranger")

    def case(why: str, failed: list[str], transaction: Transaction) -> Case:
        chain = build_chain(1, blocks=[2])
        chain.append(transaction)
        return Case(
            why=why,
            genesis=genesis,
            statement=_text(chain.statement(CLIENT)),
            failed=failed,
            lines=(2,),
        )

    payload = build_payload(genesis, 9)
    coordinator, provider = sign_receipt(payload)
    forged = msgspec.structs.replace(provider, sig=coordinator.sig)
    foreign = build_payload(genesis, 9, coordinator=stranger.account)
    unlisted = build_transaction(foreign, sign_receipt(foreign, coordinator=stranger))
    return [
        case("one micro-unit too many", ["receipt"], build_receipt(genesis, 9, units_micros=1)),
        case(
            "a provider's signature that is none",
            ["provider_signature"],
            build_transaction(payload, [coordinator, forged]),
        ),
        case(
            "a receipt that its provider did not sign",
            ["receipt", "provider_signature"],
            build_transaction(payload, [coordinator]),
        ),
        case("a coordinator that is nobody of this network", ["coordinator"], unlisted),
        _departed_too_late(),
        _successor_too_early(),
    ]


def _departed_too_late() -> Case:
    chain, old, _ = _depart()
    chain.append(_coordinate(chain, 4, old))
    case = _case(chain, "a coordinator that had left", CLIENT)
    return Case(
        why=case.why,
        genesis=case.genesis,
        statement=case.statement,
        failed=["coordinator"],
        lines=(4,),  # after the leaf of the change
    )


def _successor_too_early() -> Case:
    """In the very block that names the next set, the old one still decides."""
    chain = build_chain(1, blocks=[1])
    new = build_key("successor")
    chain.change_authorities([new], _coordinate(chain, 2, new))
    chain.append(_coordinate(chain, 3, new))
    return Case(
        why="a coordinator that came with the next block",
        genesis=chain.genesis,
        statement=_text(chain.statement(CLIENT)),
        failed=["coordinator"],
        lines=(1,),
    )


def _periods() -> list[Case]:
    """Genuine lines in a period that is not theirs: the same receipt on two invoices."""
    chain = build_market()

    def case(
        why: str,
        change: Callable[[Document], object],
        *failed: str,
        from_ms: int = 0,
        to_ms: int = MAX_INTEGER,
    ) -> Case:
        return _change(why, chain, change, [*failed, "period"], from_ms=from_ms, to_ms=to_ms)

    def earlier_opening(document: Document) -> None:
        """Claim the first block for the opening, so that its time would do."""
        document["opening"] = _opening(chain, 1)

    def later_opening(document: Document) -> None:
        document["opening"] = _opening(chain, 4)

    def other_parent(document: Document) -> None:
        document["opening"]["parent"] = [msgspec.to_builtins(chain.blocks[0].header)]

    fourth = _time(4)
    return [
        case(
            "begins a millisecond after its first block", lambda d: d.update(from_ms=_time(1) + 1)
        ),
        case("ends with its last block", lambda d: d.update(to_ms=_time(5))),
        case("ends before it begins", lambda d: d.update(from_ms=_time(1), to_ms=_time(1))),
        case("an opening after the first line", later_opening),
        case("an opening before the period", earlier_opening, from_ms=fourth),
        case("a parent that is not the opening's", other_parent, from_ms=fourth),
        case("no parent", lambda d: d["opening"].update(parent=[]), from_ms=fourth),
        case(
            "a parent of another size",
            lambda d: d["opening"]["parent"][0].update(tree_size=0),
            from_ms=fourth,
        ),
        case(
            "a parent of the first block",
            lambda d: d["opening"].update(parent=[d["header"]]),
        ),
        case(
            "another time for the opening",
            lambda d: d["opening"]["header"].update(time_ms=_time(9)),
            from_ms=fourth,
        ),
        case(
            "an opening that nobody certified",
            lambda d: d["opening"]["certificate"].update(votes=[]),
            from_ms=fourth,
        ),
        case(
            "an opening certified by strangers",
            _certify_opening(build_members(2)[1:]),
            from_ms=fourth,
        ),
        case(
            "an opening of another network, certified",
            _certify_opening(chain.members, genesis="ab" * 32),
            from_ms=fourth,
        ),
        case(
            "another time for the header",
            lambda d: d["header"].update(time_ms=_time(1)),
            "quorum",
            to_ms=_time(5),
        ),
    ]


def _opening(chain: Chain, height: int) -> Document:
    opening: Document = msgspec.to_builtins(
        {
            "header": chain.blocks[height - 1].header,
            "certificate": chain.certificates[height - 1],
            "parent": [block.header for block in chain.blocks[: height - 1][-1:]],
        }
    )
    return opening


def _certify_opening(members: list[KeyPair], **fields: Any) -> Callable[[Document], object]:
    """Change the opening's header and let `members` certify it."""

    def change(document: Document) -> None:
        opening = document["opening"]
        header = msgspec.convert(opening["header"] | fields, Header)
        opening["header"] = msgspec.to_builtins(header)
        opening["certificate"] = msgspec.to_builtins(build_certificate(header, members))

    return change


def _headers() -> list[Case]:
    chain = build_market()
    leaves = (0, 2, 3, 6, 7)

    def case(why: str, failed: list[str], lines: tuple[int, ...] = (), **fields: Any) -> Case:
        return _change(why, chain, lambda d: d["header"].update(fields), failed, lines=lines)

    genuine = chain.statement(CLIENT)
    return [
        case("another height", ["quorum", "period"], height=6),
        case("another root", ["inclusion", "quorum", "period"], leaves, tree_root="00" * 32),
        case("another set", UNKNOWN_SET, leaves, set_hash="00" * 32),
        _change(
            "no votes",
            chain,
            lambda d: d["certificate"].update(votes=[]),
            ["quorum", "period"],
        ),
        Case(
            why="another network of the same authorities",
            genesis=build_genesis(network="other-net"),
            statement=_text(genuine),
            failed=["receipt", "header", "period"],
            lines=leaves,
        ),
        Case(
            why="another network",
            genesis=build_genesis(4),
            statement=_text(genuine),
            failed=["receipt", "header", *UNKNOWN_SET],
            lines=leaves,
        ),
    ]


def _epochs() -> list[Case]:
    chain = _two_changes()
    first, second = [msgspec.to_builtins(epoch) for epoch in chain.epochs]
    leaves = tuple(entry.index for entry in chain.statement(CLIENT).entries)

    def case(why: str, *epochs: Document) -> Case:
        return _change(
            why, chain, lambda d: d.update(epochs=list(epochs)), UNKNOWN_SET, lines=leaves
        )

    stolen = copy.deepcopy(second)
    stolen["certificate"]["votes"] = stolen["certificate"]["votes"][:3]
    return [
        case("all changes left out"),
        case("the first change left out", second),
        case("the last change left out", first),
        case("a change with one vote too few", first, stolen),
        _change(
            "an opening certified by the set that came after it",
            chain,
            _certify_opening(build_members(7, epoch=2)),
            ["period"],
        ),
    ]


def _malformed() -> list[Case]:
    chain = build_market()
    text = _text(chain.statement(CLIENT))

    def edit(why: str, old: str, new: str) -> Case:
        assert old in text, old
        return Case(
            why=why, genesis=chain.genesis, statement=text.replace(old, new, 1), failed=None
        )

    def change(why: str, mutate: Callable[[Document], object]) -> Case:
        return _change(why, chain, mutate, None)

    return [
        edit("nothing but its beginning", text, '{"account":'),
        edit("truncated", text, text[:-1]),
        edit("two line feeds at the end", text, text + "\n\n"),
        edit("a float", '"index":0', '"index":0.0'),
        edit("an escape that is not needed", '"account":"c', '"account":"\\u0063'),
        edit("white space", '"v":1', '"v": 1'),
        change("no lines", lambda d: d.update(entries=[])),
        change("lines out of order", lambda d: d["entries"].reverse()),
        change("a line twice", lambda d: d["entries"].insert(1, d["entries"][0])),
        change("an unknown field", lambda d: d.update(extra=1)),
        change("totals, which it has none", lambda d: d.update(totals={})),
        change("an unknown field of a line", lambda d: d["entries"][0].update(header={})),
        change("no opening", lambda d: d.pop("opening")),
        change("two parents", lambda d: d["opening"].update(parent=[d["header"]] * 2)),
        change("null for a parent", lambda d: d["opening"].update(parent=None)),
        change("a parent that is none", lambda d: d["opening"].update(parent=[{}])),
        change("another version", lambda d: d.update(v=2)),
        change("an account with a space", lambda d: d.update(account="client 1")),
        change("an account with a line feed", lambda d: d.update(account=CLIENT + "\n")),
        change("no account", lambda d: d.update(account="")),
        change("a negative time", lambda d: d.update(from_ms=-1)),
        change("a time of 2^53", lambda d: d.update(to_ms=2**53)),
        change("a time that is text", lambda d: d.update(to_ms="1")),
        change("a path of 64 nodes", lambda d: d["entries"][0].update(path=["00" * 32] * 64)),
        change("another type", lambda d: _payload(d).update(type="audit")),
        change("a control character in a name", lambda d: _payload(d).update(model="\u007f")),
        change(
            "signatures out of order",
            lambda d: d["entries"][0]["envelope"]["signatures"].reverse(),
        ),
    ]


def _payload(document: Document) -> Document:
    payload: Document = document["entries"][-1]["envelope"]["payload"]
    return payload
