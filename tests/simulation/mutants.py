"""The protocol with one rule taken away. Each such mutant must be caught.

A mutant that random histories catch within a few seeds is left to them. The others have a schedule
of their own (`schedules.py`), which holds without the mutation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

import consensus.height
import ledger.authorities
import ledger.block
import ledger.changes
import ledger.rules
import ledger.store.chain
import ledger.vote
import node.sync.verify
from consensus.interface import FetchBlocks, OfferBlock
from tests.simulation.history import draw_plan, run_history
from tests.simulation.mutations import (
    Patch,
    accept_first_set,
    accept_voters,
    always_fresh,
    audit_anything,
    change_early,
    change_late,
    contain_nothing,
    demand_distinct,
    demand_many,
    drop_effect,
    drop_rule,
    finalize_without_notarization,
    forget_votes,
    ignore_epoch,
    ignore_gaps,
    keep_only,
    lose_votes,
    lower_quorum,
    never,
    never_time_views,
    propose_anything,
    sign_without,
    skip_check,
    skip_validation,
    speak_first,
    stay_in_view,
    trust_header,
    wait_for_the_silent,
)
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
    show_notarize_votes_as_finality,
)
from tests.simulation.stage import scheduled


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
    Mutant("audits-of-receipts", audit_anything, tell_only("audit_what_is_not_there")),
]
"""By the name of the rule that is gone."""
