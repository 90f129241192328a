"""What stands in tests/vectors/authorities.json: changes of the set and evidence, good and bad.

`verdict` is written by hand. Every case says for which block it is judged (`height`) and which set
certifies that block (`set`), so a verifier needs nothing but the case and the genesis.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import msgspec

from ledger.authorities import AuthoritySet, hash_authority_set
from ledger.block import Tip, VoteKind, build_genesis_tip
from ledger.encoding import encode
from ledger.keys import KeyPair
from ledger.transaction import (
    Signature,
    Transaction,
    build_signed_message,
    build_transaction,
    sign_payload,
)
from tests.builders import (
    build_authority_set,
    build_change_payload,
    build_evidence,
    build_genesis,
    build_key,
    build_members,
    sign_change,
)

Vectors = dict[str, Any]
Verdict = Literal["valid", "refused"]
Row = tuple[str, Verdict, Tip, Transaction]
"""(why, verdict, the tip it is judged on, transaction)."""

GENESIS = build_genesis(4)
TIP = replace(build_genesis_tip(GENESIS), height=6)
"""The cases are judged for block 7."""
OLD = build_members(4)
JOINING, COORDINATOR, STRANGER = (build_key(name) for name in ("joining", "coordinator", "x"))
NEW = [*OLD[1:], JOINING]
A, B = "aa" * 32, "bb" * 32


EXAMPLE_CHANGE = sign_change(
    build_change_payload(
        build_genesis_tip(build_genesis()), build_authority_set(build_members(2), epoch=1)
    ),
    build_members(2),
)
"""One authority becomes two, on the network of the other examples."""
EXAMPLE_EVIDENCE = build_evidence(build_genesis(), OLD[0], votes=[("finalize", A), ("nullify", "")])


def build_authorities() -> Vectors:
    """Return the file's contents."""
    return {
        "genesis": encode(GENESIS).decode(),
        "cases": [
            {
                "why": why,
                "height": tip.height + 1,
                "set": encode(tip.authority_set).decode(),
                "signed_message": build_signed_message(transaction.payload).decode(),
                "transaction_id": transaction.id.hex(),
                "envelope": transaction.envelope.decode(),
                "verdict": verdict,
                **_next_set(transaction),
            }
            for why, verdict, tip, transaction in [*_changes(), *_evidence()]
        ],
    }


def _next_set(transaction: Transaction) -> Vectors:
    following = getattr(transaction.payload, "authority_set", None)
    return {"next_set_hash": hash_authority_set(following).hex()} if following else {}


def build_following(**changes: Any) -> AuthoritySet:
    """Return the set of epoch 1: authority 0 leaves, one joins, and one that only coordinates."""
    following = build_authority_set(NEW, epoch=1, coordinators=[COORDINATOR.account])
    return msgspec.structs.replace(following, **changes)


def _changes() -> list[Row]:
    def case(
        why: str,
        verdict: Verdict,
        *authorities: KeyPair,
        coordinators: tuple[KeyPair, ...] = (COORDINATOR,),
        following: AuthoritySet | None = None,
        tip: Tip = TIP,
        **changes: Any,
    ) -> Row:
        payload = build_change_payload(TIP, following or build_following(), **changes)
        return why, verdict, tip, sign_change(payload, authorities, coordinators)

    sound = sign_change(
        build_change_payload(TIP, build_following()), [*OLD, JOINING], [COORDINATOR]
    )
    spare = sign_payload(sound.payload, STRANGER, "auditor")
    by_stranger = sign_payload(sound.payload, STRANGER, "authority").sig
    forged = [
        msgspec.structs.replace(s, sig=by_stranger) if s.key_id == OLD[1].account else s
        for s in sound.signatures
    ]

    def sign_again(signatures: list[Signature]) -> Transaction:
        return build_transaction(sound.payload, signatures)

    following = build_following()
    return [
        case("three of four, and who enters", "valid", *OLD[:3], JOINING),
        case("all of four, and who enters", "valid", *OLD, JOINING),
        case("in the last block it may stand in", "valid", *OLD, JOINING, expires_height=7),
        case("one block too late", "refused", *OLD, JOINING, expires_height=6),
        case("two of four", "refused", *OLD[:2], JOINING),
        case("a new member that proved nothing", "refused", *OLD),
        case("a new coordinator that proved nothing", "refused", *OLD, JOINING, coordinators=()),
        case("a stranger among the signers", "refused", *OLD, JOINING, STRANGER),
        ("a spare signature", "refused", TIP, sign_again([*sound.signatures, spare])),
        ("one signature by another key", "refused", TIP, sign_again(forged)),
        case("the current epoch", "refused", *OLD, JOINING, following=build_following(epoch=0)),
        case("an epoch left out", "refused", *OLD, JOINING, following=build_following(epoch=2)),
        case("another network", "refused", *OLD, JOINING, genesis="ab" * 32),
        case(
            "a member twice",
            "refused",
            *OLD,
            JOINING,
            following=build_following(members=(*following.members, following.members[0])),
        ),
        case(
            "the set it was signed for is no longer the current one",
            "refused",
            *OLD,
            JOINING,
            tip=replace(TIP, authority_set=build_following()),
        ),
    ]  # fmt: skip


def _evidence() -> list[Row]:
    def case(
        why: str,
        verdict: Verdict,
        *votes: tuple[VoteKind, str],
        accused: KeyPair = OLD[2],
        height: int = 7,
        **changes: str,
    ) -> Row:
        transaction = build_evidence(
            GENESIS, accused, height=height, view=3, votes=votes, **changes
        )
        return why, verdict, TIP, transaction

    two: tuple[tuple[VoteKind, str], ...] = (("notarize", A), ("notarize", B))
    return [
        case("two notarize votes", "valid", *two),
        case("two notarize votes of a decided height", "valid", *two, height=1),
        case("two finalize votes", "valid", ("finalize", A), ("finalize", B)),
        case("finalize and nullify", "valid", ("finalize", A), ("nullify", "")),
        case("notarize and nullify, which is allowed", "refused", ("notarize", A), ("nullify", "")),
        case(
            "finalize and notarize, which is allowed", "refused", ("finalize", A), ("notarize", B)
        ),
        case("one vote twice", "refused", ("notarize", A), ("notarize", A)),
        case("in the wrong order", "refused", ("notarize", B), ("notarize", A)),
        case("a height that is not open", "refused", *two, height=8),
        case("somebody who is no authority", "refused", *two, accused=STRANGER),
        ("votes of another authority", "refused", TIP, _blame_another()),
        case("another network", "refused", *two, genesis="ab" * 32),
    ]


def _blame_another() -> Transaction:
    transaction = build_evidence(GENESIS, OLD[1], height=7)
    payload = msgspec.structs.replace(transaction.payload, accused=OLD[2].account)
    return build_transaction(payload, [])
