"""Every rule is needed: without it something breaks, and with it nothing does."""

import pytest

from tests.simulation.mutants import MUTANTS, Mutant, is_random


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_protocol_without_one_of_its_rules_is_caught(mutant: Mutant):
    assert mutant.catch()


DIRECTED = [mutant for mutant in MUTANTS if not is_random(mutant)]


@pytest.mark.parametrize("mutant", DIRECTED, ids=lambda mutant: mutant.name)
def test_a_schedule_holds_while_no_rule_is_missing(mutant: Mutant):
    mutant.schedule()


def test_mutants_have_names_of_their_own():
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
