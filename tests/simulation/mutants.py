"""The protocol with one rule taken away. Each such mutant must be caught.

A mutant that random histories catch within a few seeds is left to them. The others have a schedule
of their own (`schedules.py`), which holds without the mutation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
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
from consensus.interface import FetchBlocks, OfferBlock, Persist
from consensus.output import Output
from ledger.authorities import AuthoritySet
from ledger.block import Block, Tip
from ledger.errors import InvalidCertificateError, LedgerError
from ledger.payloads import AuthoritySetPayload
from ledger.store.votes import VoteStore
from ledger.vote import VoteRecord
from tests.simulation.disk import Disk
from tests.simulation.history import draw_plan, run_history
from tests.simulation.machine import Machine
from tests.simulation.material import build_network_genesis
from tests.simulation.network import BrokenError
from tests.simulation.schedules import (
    certify_with_a_stale_set,
    divide_in_halves,
    fall_far_behind,
    jump_over_views,
    lack_a_proposer,
    live_with_a_dead_member,
    propose_an_old_block_again,
    propose_over_a_final_block,
    relabel_a_nullification,
    return_to_an_idle_network,
    scheduled,
    show_notarize_votes_as_finality,
)
from tests.simulation.spoiled import replace_header

Patch = pytest.MonkeyPatch
FOREVER_MS = 10**9


@dataclass(frozen=True)
class Mutant:
    """One rule less."""

    name: str
    mutate: Callable[[Patch], None]
    schedule: Callable[[], None]
    """Raises BrokenError if something that must hold does not."""

    def catch(self) -> str:
        """Return what broke, or "" if nothing did."""
        with pytest.MonkeyPatch.context() as patch:
            self.mutate(patch)
            try:
                self.schedule()
            except BrokenError as error:
                return str(error)
        return ""


def search(seeds: int, **changes: object) -> Callable[[], None]:
    """Return a schedule of that many random histories of one kind."""

    def search_histories() -> None:
        for seed in range(seeds):
            result = run_history(draw_plan(seed, **changes))
            if result.failure:
                raise BrokenError(result.rule, f"seed {seed}, {result.failure}")

    return search_histories


def is_random(mutant: Mutant) -> bool:
    """Tell whether a mutant is left to random histories."""
    return mutant.schedule.__name__ == "search_histories"


LIARS = search(60, count=4, liars=1, clones=0, changes=0)
CLONES = search(60, count=4, liars=0, clones=1, changes=0)
CRASHES = search(60, count=4, liars=0, clones=0, changes=0)
CHANGES = search(60, count=4, liars=0, clones=0, changes=3, spares=3)


def tell_only(*lies: str, changes: int = 0) -> Callable[[], None]:
    """Return a schedule of random histories with a liar that does nothing else."""
    return search(60, count=4, liars=1, clones=0, changes=changes, lies=frozenset(lies))


CHANGE_ALONE = tell_only("change_set_alone")


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
    patch.setattr("tests.simulation.machine.build_block", build_early)


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

    patch.setattr("tests.simulation.machine.load_tip", load_old)


MUTANTS = [
    # Votes
    Mutant("quorum-1", lower_quorum, scheduled(divide_in_halves)),
    Mutant("R1", drop_rule("votes_once"), CRASHES),
    Mutant("R2", drop_rule("never_both"), CRASHES),
    Mutant("R3-body", drop_rule("holds_notarization"), CRASHES),
    Mutant("R3-notarization", finalize_without_notarization, CRASHES),
    Mutant("R4", drop_rule("is_justified"), LIARS),
    Mutant("R4-valid-body", skip_validation, LIARS),
    Mutant(
        "no-nullify-justification",
        ignore_gaps,
        scheduled(propose_over_a_final_block, byzantine=[2]),
    ),
    Mutant("re-proposal-value-free", propose_anything, CLONES),
    # Memory
    Mutant("votes-db-lost", lose_votes, CRASHES),
    Mutant("votes-db-ignored", forget_votes, CRASHES),
    Mutant("durable-before-speech", speak_first, CRASHES),
    Mutant("bodies-kept", keep_only(blocks=()), CRASHES),
    Mutant("certificates-kept", keep_only(certificates=()), CRASHES),
    # Progress
    Mutant("rebroadcast", never("REBROADCAST_MS"), CRASHES),
    Mutant("tip-heartbeat", never("HEARTBEAT_MS"), scheduled(return_to_an_idle_network)),
    Mutant("view-timeout", never_time_views, scheduled(lack_a_proposer)),
    Mutant("no-time-for-the-silent", wait_for_the_silent, scheduled(live_with_a_dead_member)),
    Mutant(
        "a-later-certificate-moves-on", stay_in_view, scheduled(jump_over_views, to_the_end=False)
    ),
    Mutant("sync-from-higher-heights", drop_effect(FetchBlocks), scheduled(fall_far_behind)),
    Mutant("sync-at-all", drop_effect(FetchBlocks, OfferBlock), CRASHES),
    Mutant("answer-to-lower-heights", drop_effect(OfferBlock), CHANGES),
    Mutant("old-blocks-have-old-times", always_fresh, scheduled(propose_an_old_block_again)),
    # Certificates
    Mutant("votes-verified", skip_check(ledger.vote, "verify_signature"), LIARS),
    Mutant("certificates-verified", skip_check(consensus.height, "verify_quorum"), LIARS),
    Mutant("finality-verified", skip_check(node.sync.verify, "verify_certificate"), LIARS),
    Mutant("enough-voters", accept_voters(demand_distinct), LIARS),
    Mutant("distinct-voters", accept_voters(demand_many), LIARS),
    Mutant("votes-name-their-chain", sign_without("genesis_hash", bytes(32)), LIARS),
    Mutant("votes-name-their-height", sign_without("height", 1), LIARS),
    Mutant(
        "votes-name-their-kind",
        sign_without("kind", "notarize"),
        scheduled(show_notarize_votes_as_finality, byzantine=[3]),
    ),
    Mutant(
        "votes-name-their-view",
        sign_without("view", 0),
        scheduled(relabel_a_nullification, byzantine=[3]),
    ),
    Mutant(
        "votes-name-their-block",
        sign_without("block_hash", None),
        tell_only("forge_final_block", "forge_certificates"),
    ),
    # Authority sets
    Mutant("next-set-hash", trust_header("next_set_hash"), tell_only("name_unchanged_set")),
    Mutant("set-hash", trust_header("set_hash"), tell_only("spoil_header")),
    Mutant("change-signed", skip_check(ledger.changes, "_validate_signers"), CHANGE_ALONE),
    Mutant("change-of-this-epoch", ignore_epoch, tell_only("replay_change", changes=3)),
    Mutant("change-one-height-late", change_late, CHANGES),
    Mutant("change-one-height-early", change_early, CHANGES),
    Mutant("stale-set-refused", accept_first_set, scheduled(certify_with_a_stale_set, spares=4)),
    # Blocks
    Mutant(
        "clock-of-fresh-blocks",
        skip_check(ledger.rules, "validate_time"),
        tell_only("propose_at_wrong_time"),
    ),
    Mutant("tree-root", trust_header("tree_root"), tell_only("spoil_header")),
    Mutant("parent", trust_header("prev_hash"), tell_only("spoil_header")),
    Mutant("signatures", skip_check(ledger.rules, "verify_body"), tell_only("spoil_signature")),
    Mutant("once-on-the-chain", contain_nothing, tell_only("repeat_final_transaction")),
]
"""By the name of the rule that is gone."""
