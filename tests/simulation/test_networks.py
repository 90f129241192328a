"""Small networks with a script: what a few nodes do, step by step."""

import pytest

from consensus.engine import compute_view_ms
from ledger.payloads import EvidencePayload
from tests.simulation.material import KEYS, cheap_repetition
from tests.simulation.stage import SOON_MS, Stage


@pytest.fixture(autouse=True)
def _cheap():
    with cheap_repetition():
        yield


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 10])
def test_a_calm_network_decides_every_height_in_its_first_view(count):
    stage = Stage(count=count, followers=1)
    stage.network.start()
    for height in range(1, 6):
        stage.submit()
        stage.reach(height)
    views = {certificate.view for node in stage.nodes for _, certificate in node.read_chain()}
    assert views == {0}
    stage.finish()


def test_a_dead_proposer_costs_one_view():
    stage = Stage()
    stage.network.start(0, 2, 3)  # member 1 proposes at height 1, view 0
    stage.submit(0, 2, 3)
    stage.reach(1, 0, 2, 3, within_ms=compute_view_ms(0) + 500)
    assert [stage.nodes[i].read_chain()[0][1].view for i in (0, 2, 3)] == [1, 1, 1]
    assert stage.network.now_ms > compute_view_ms(0)
    stage.finish()


def test_more_dead_members_than_allowed_halt_the_chain_and_one_return_resumes_it():
    stage = Stage()
    stage.network.start(0, 2)
    stage.submit()
    stage.run(60_000)
    assert stage.heights() == [0, 0, 0, 0]
    stage.network.start(3)
    stage.reach(1, 0, 2, 3, within_ms=30_000)
    stage.finish()


def test_a_follower_learns_of_final_blocks_by_asking():
    stage = Stage(followers=1)
    stage.network.start()
    stage.submit(0)
    stage.reach(1, 4)
    assert stage.nodes[4].disk.votes is None
    stage.finish()


def test_transactions_of_one_node_alone_are_decided_when_its_turn_comes():
    stage = Stage()
    stage.network.start()
    stage.submit(0)
    stage.reach(1, within_ms=30_000)
    assert [node.read_chain()[0][1].view for node in stage.nodes] == [3, 3, 3, 3]
    stage.finish()


def test_an_idle_network_only_beats():
    stage = Stage()
    heard = []
    stage.network.overhear.append(lambda machine, message, data: heard.append(message))
    stage.network.start()
    stage.run(60_000)
    assert len(heard) >= 4 * 29
    assert not any(message.votes or message.certificates or message.block for message in heard)


def test_a_member_that_was_replaced_while_away_learns_of_it_and_follows():
    stage = Stage(spares=1)
    stage.network.start(0, 1, 2, 4)
    stage.change([0, 1, 2, 4])
    stage.reach(1, 0, 1, 2, 4)
    stage.network.start(3)
    stage.reach(1, 3, within_ms=SOON_MS)
    assert stage.nodes[3].tip.authority_set.index_of(KEYS[3].account) is None
    assert stage.nodes[4].tip.authority_set.index_of(KEYS[4].account) == 3
    stage.finish()


def test_a_network_of_one_becomes_one_of_four_and_of_one_again():
    stage = Stage(count=1, spares=3)
    stage.network.start()
    for members in ([0, 1, 2, 3], [3], [2, 0]):
        height = stage.nodes[0].tip.height
        stage.change(members)
        stage.reach(height + 1)
        stage.submit()
        stage.reach(height + 2)
        quorum = 2 * len(members) // 3 + 1
        assert len(stage.nodes[0].read_chain()[-1][1].votes) >= quorum
    stage.finish()


def test_evidence_of_two_votes_becomes_final_once():
    stage = Stage(byzantine=[1])
    stage.network.start(0, 2, 3)
    rivals = [stage.build(1, at=stage.nodes[0]) for _ in range(2)]
    for rival in rivals * 2:
        stage.tell(1, [0, 2, 3], stage.vote(1, "notarize", 0, rival), block=rival)
    stage.reach(2, 0, 2, 3)
    stage.finish()
    found = [
        transaction.payload.accused
        for block, _ in stage.nodes[0].read_chain()
        for transaction in block.transactions
        if isinstance(transaction.payload, EvidencePayload)
    ]
    assert found == [KEYS[1].account]
