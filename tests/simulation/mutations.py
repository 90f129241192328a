"""Rules taken away: each function here patches one rule out of the production code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest

import consensus.height
import ledger.authorities
import ledger.block
import ledger.changes
import ledger.rules
import ledger.store.chain
import ledger.vote
import node.sync.verify
from consensus import engine as engine_module
from consensus.engine import Engine
from consensus.height import OpenHeight
from consensus.interface import Persist
from consensus.output import Output
from ledger.authorities import AuthoritySet
from ledger.block import Block, Tip
from ledger.errors import InvalidCertificateError, LedgerError
from ledger.payloads import AuthoritySetPayload
from ledger.store.votes import VoteStore
from ledger.vote import VoteRecord
from tests.simulation.disk import Disk
from tests.simulation.machine import Machine
from tests.simulation.material import build_network_genesis
from tests.simulation.spoiled import replace_header

Patch = pytest.MonkeyPatch
FOREVER_MS = 10**9


# Voting


def lower_quorum(patch: Patch) -> None:
    patch.setattr(AuthoritySet, "quorum", property(lambda s: 2 * len(s.members) // 3))


def drop_rule(*names: str) -> Callable[[Patch], None]:
    def mutate(patch: Patch) -> None:
        for kind, rules in consensus.height.RULES.items():
            kept = tuple(rule for rule in rules if rule.__name__ not in names)
            patch.setitem(consensus.height.RULES, kind, kept)

    return mutate


def finalize_without_notarization(patch: Patch) -> None:
    drop_rule("holds_notarization")(patch)

    def finalize(self: Engine) -> bool:
        proposal = self._height.proposal
        return proposal is not None and self._cast("finalize", self._height.view, proposal)

    patch.setattr(Engine, "_finalize", finalize)


def propose_anything(patch: Patch) -> None:
    """A proposer chooses a new block although a view notarized one, and voters let it."""

    def is_justified(height: OpenHeight, kind: str, view: int, block_hash: str) -> bool:
        del kind
        certified = (
            height.is_certified(v, "nullify") or height.is_certified(v, "notarize")
            for v in range(view)
        )
        return block_hash in height.blocks and all(certified)

    replace_rule(patch, is_justified)
    patch.setattr(OpenHeight, "choose", lambda self: "")


def ignore_gaps(patch: Patch) -> None:
    """A fresh block needs no nullification of the views before it."""

    def is_justified(height: OpenHeight, kind: str, view: int, block_hash: str) -> bool:
        del kind, view
        return block_hash in height.blocks

    replace_rule(patch, is_justified)


def replace_rule(patch: Patch, rule: Callable[..., bool]) -> None:
    for kind, rules in consensus.height.RULES.items():
        changed = tuple(rule if old.__name__ == rule.__name__ else old for old in rules)
        patch.setitem(consensus.height.RULES, kind, changed)


def skip_validation(patch: Patch) -> None:
    def admit(self: Engine, block: Any) -> None:
        self._height.blocks[block.hash.hex()] = block
        self._out.blocks.append(block)

    patch.setattr(Engine, "_admit", admit)


def always_fresh(patch: Patch) -> None:
    """The time of a block is held against the clock whenever it is proposed."""
    validate = Machine.validate
    patch.setattr(
        Machine,
        "validate",
        lambda self, block, tip, *, is_fresh: validate(self, block, tip, is_fresh=True),
    )


def contain_nothing(patch: Patch) -> None:
    """A transaction may be final twice."""
    patch.setattr(ledger.store.chain, "contains", lambda *names: False)


def audit_anything(patch: Patch) -> None:
    """An audit needs no receipt."""
    patch.setattr(ledger.store.chain, "is_due", lambda *names: True)


# Remembering


def lose_votes(patch: Patch) -> None:
    """`votes.db` is gone after a restart."""
    boot = Disk.boot

    def boot_empty(self: Disk) -> VoteStore | None:
        self.lose_votes()
        return boot(self)

    patch.setattr(Disk, "boot", boot_empty)


def forget_votes(patch: Patch) -> None:
    """The engine does not look at what `votes.db` holds; the database still refuses."""
    open_height = Engine._open
    patch.setattr(
        Engine,
        "_open",
        lambda self, tip, record: open_height(self, tip, VoteRecord(height=record.height)),
    )


def speak_first(patch: Patch) -> None:
    list_effects = Output.list_effects

    def list_reversed(self: Output, height: OpenHeight) -> list[Any]:
        effects = list_effects(self, height)
        persists = [effect for effect in effects if isinstance(effect, Persist)]
        return [effect for effect in effects if effect not in persists] + persists

    patch.setattr(Output, "list_effects", list_reversed)


def keep_only(**empty: tuple[()]) -> Callable[[Patch], None]:
    """Let `votes.db` drop a part of what it is given."""

    def mutate(patch: Patch) -> None:
        record = VoteStore.record
        patch.setattr(VoteStore, "record", lambda self, new: record(self, replace(new, **empty)))

    return mutate


# Timers and messages


def never(name: str) -> Callable[[Patch], None]:
    return lambda patch: patch.setattr(engine_module, name, FOREVER_MS)


def never_time_views(patch: Patch) -> None:
    patch.setattr(engine_module, "compute_view_ms", lambda view: FOREVER_MS)


def wait_for_the_silent(patch: Patch) -> None:
    patch.setattr(Engine, "_note_silent", lambda self, members: None)


def stay_in_view(patch: Patch) -> None:
    """A certificate of a view, or of a later one, does not move a member past it."""
    add = OpenHeight.add_certificate

    def add_and_stay(self: OpenHeight, certificate: Any) -> None:
        view = self.view
        add(self, certificate)
        if certificate.view != view:
            self.view = view

    patch.setattr(OpenHeight, "add_certificate", add_and_stay)


def drop_effect(*kinds: type) -> Callable[[Patch], None]:
    def mutate(patch: Patch) -> None:
        step = Engine.step
        patch.setattr(
            Engine,
            "step",
            lambda self, event: [e for e in step(self, event) if not isinstance(e, kinds)],
        )

    return mutate


# Certificates


def skip_check(module: Any, name: str) -> Callable[[Patch], None]:
    return lambda patch: patch.setattr(module, name, lambda *args, **kwargs: None)


def accept_voters(check: Callable[[list[int], AuthoritySet], None]) -> Callable[[Patch], None]:
    def mutate(patch: Patch) -> None:
        for module in (ledger.block, ledger.vote):
            patch.setattr(module, "validate_voters", check)

    return mutate


def demand_distinct(indexes: list[int], authority_set: AuthoritySet) -> None:
    """All but the number of votes."""
    if not indexes or list(indexes) != sorted(set(indexes)):
        raise InvalidCertificateError("distinct")
    if indexes[-1] >= len(authority_set.members):
        raise InvalidCertificateError("known")


def demand_many(indexes: list[int], authority_set: AuthoritySet) -> None:
    """All but that the votes are of distinct members."""
    if len(indexes) < authority_set.quorum:
        raise InvalidCertificateError("quorum")
    if max(indexes) >= len(authority_set.members):
        raise InvalidCertificateError("known")


def sign_without(field: str, value: object) -> Callable[[Patch], None]:
    """Leave something out of the bytes of a vote."""

    def mutate(patch: Patch) -> None:
        build = ledger.block.build_vote_message

        def build_less(**fields: Any) -> bytes:
            return build(**fields | {field: value})

        for module in (ledger.block, ledger.vote):
            patch.setattr(module, "build_vote_message", build_less)

    return mutate


# Authority sets


def trust_header(name: str) -> Callable[[Patch], None]:
    """Believe one field of a header, whatever the body says."""

    def mutate(patch: Patch) -> None:
        validate, build = ledger.rules.validate_extension, ledger.rules.build_block

        def validate_rest(block: Block, tip: Tip, read: Any) -> None:
            header = block.header
            right = build(
                tip, block.transactions, time_ms=header.time_ms, proposer=header.proposer, read=read
            ).header
            validate(replace_header(block, **{name: getattr(right, name)}), tip, read)

        patch.setattr(ledger.rules, "validate_extension", validate_rest)

    return mutate


def ignore_epoch(patch: Patch) -> None:
    """A change may come at any time, as if it were made for the present set."""
    validate = ledger.changes.validate_change

    def validate_rest(payload: AuthoritySetPayload, tip: Tip) -> None:
        epoch = payload.authority_set.epoch - 1
        old = msgspec.structs.replace(tip.authority_set, epoch=epoch)
        validate(payload, replace(tip, authority_set=old))

    patch.setattr(ledger.changes, "validate_change", validate_rest)


def change_early(patch: Patch) -> None:
    """The block that makes a set names it as the one that certifies it."""
    build = ledger.rules.build_block

    def build_early(tip: Tip, transactions: Any, **fields: Any) -> Block:
        block = build(tip, transactions, **fields)
        return replace_header(block, set_hash=block.header.next_set_hash)

    patch.setattr(ledger.rules, "build_block", build_early)
    patch.setattr("tests.simulation.shell.build_block", build_early)


def accept_first_set(patch: Patch) -> None:
    """Whom genesis named may certify for ever, whichever set a header names."""
    verify, hash_set = ledger.block.verify_certificate, ledger.block.hash_authority_set
    first = build_network_genesis(4).authority_set

    def verify_either(certificate: Any, *, header: Any, authority_set: AuthoritySet) -> None:
        try:
            verify(certificate, header=header, authority_set=authority_set)
        except LedgerError:
            with pytest.MonkeyPatch.context() as inner:
                inner.setattr(
                    ledger.block, "hash_authority_set", lambda held: hash_set(authority_set)
                )
                verify(certificate, header=header, authority_set=first)

    patch.setattr(node.sync.verify, "verify_certificate", verify_either)


def change_late(patch: Patch) -> None:
    """A new set certifies from two heights above the change."""
    load = ledger.store.chain.load_tip

    def load_old(connection: Any) -> Any:
        tip = load(connection)
        row = connection.execute(
            "SELECT header FROM blocks ORDER BY height DESC LIMIT 1"
        ).fetchone()
        if row is None:
            return tip
        header = ledger.block.parse_header(row[0].encode())
        old = ledger.store.chain.load_authority_set(connection, bytes.fromhex(header.set_hash))
        return replace(tip, authority_set=old)

    patch.setattr("tests.simulation.shell.load_tip", load_old)
