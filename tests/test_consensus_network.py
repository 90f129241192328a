"""Whole histories of the production engine under faults: no forks, and all heal."""

import random

import pytest

import ledger.block
import ledger.vote
from consensus import engine, height
from consensus.engine import Engine
from consensus.interface import TransactionsWaiting
from consensus.output import Output
from ledger.authorities import AuthoritySet
from ledger.block import Tip
from ledger.vote import VoteRecord
from tests.network import Faults, Network, memoize

ENGINE_OPEN, LIST_EFFECTS = Engine._open, Output.list_effects
HISTORIES = 240
FAULTY_MS = 12_000
HEAL_MS = 60_000
"""A few views: the longest any history below needed was under half of it."""


@pytest.fixture(autouse=True)
def _cheap_signatures(monkeypatch):
    verify = memoize(ledger.vote.verify_signature)
    monkeypatch.setattr(ledger.vote, "verify_signature", verify)
    monkeypatch.setattr(ledger.block, "verify_signature", verify)


def build_network(seed: int, **changes) -> Network:
    choose = random.Random(f"network {seed}").choice
    count = choose([1, 3, 4, 7])
    settings = {
        "count": count,
        "clones": choose([0, 0, 1]) if count >= 4 else 0,
        "followers": choose([0, 0, 1]),
        "target": 12,
        "faults": Faults(
            loss=choose([0, 0.1, 0.4]),
            duplication=0.2,
            crash=choose([0, 0.005, 0.02]),
            max_delay_ms=choose([20, 300, 1500]),
        ),
    }
    return Network(seed=seed, **settings | changes)


def run_history(network: Network) -> int:
    """Run a faulty time, then a calm one. Return how long the calm one needed, in ms."""
    chance = random.Random(f"partitions {network.seed}")
    indexes = range(len(network.nodes))
    network.start()
    while network.now_ms < FAULTY_MS:
        network.run(network.now_ms + chance.randint(500, 4000))
        network.cut = set(chance.sample(indexes, chance.choice([0, 0, 1, len(indexes) // 2])))
    network.cut, network.faults = set(), Faults()
    network.target = max(network.heights()) + 2
    for node in network.nodes:
        network.step(node, TransactionsWaiting())
    # A key that votes twice is the fault of its two holders: they may stay behind.
    honest = [n for n in network.nodes if n.key is None or not is_cloned(network, n.index)]
    healed_ms = network.now_ms
    network.run(
        healed_ms + HEAL_MS,
        lambda: all(len(node.disk.chain) >= network.target for node in honest),
    )
    network.check_no_fork()
    assert all(len(n.disk.chain) >= network.target for n in honest), network.describe()
    return network.now_ms - healed_ms


def is_cloned(network: Network, index: int) -> bool:
    return index < network.clones or network.count <= index < network.count + network.clones


def test_no_history_forks_and_every_network_heals():
    heal_ms, heights, crashes = [], 0, 0
    for seed in range(HISTORIES):
        network = build_network(seed)
        heal_ms.append(run_history(network))
        heights += max(network.heights())
        crashes += sum(line.endswith("crashes") for line in network.trace)
    heal_ms.sort()
    print(  # noqa: T201
        f"{HISTORIES} histories, {heights} heights, {crashes} crashes, 0 forks, 0 stuck, "
        f"heal p50 {heal_ms[HISTORIES // 2]} ms, p99 {heal_ms[HISTORIES * 99 // 100]} ms"
    )
    assert heights > 2 * HISTORIES
    assert crashes > HISTORIES


def test_the_same_seed_gives_the_same_history():
    first, second = build_network(7, count=4), build_network(7, count=4)
    run_history(first)
    run_history(second)
    assert first.trace == second.trace
    assert len(first.trace) > 4


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 10])
def test_a_calm_network_decides_every_height_in_its_first_view(count):
    network = Network(seed=1, count=count, followers=1, target=5)
    network.start()
    network.run(20_000, lambda: min(network.heights()) == 5)
    network.check_no_fork()
    assert network.heights() == [5] * (count + 1)
    assert {c.view for node in network.nodes for _, c in node.disk.chain} == {0}
    assert all(vote.view == 0 for r in network.nodes[0].disk.records.values() for vote in r.votes)


def test_a_dead_proposer_costs_one_view():
    network = Network(seed=1, count=4, target=1)
    network.start(0, 2, 3)  # member 1 proposes at height 1, view 0
    network.run(5_000, lambda: sum(network.heights()) == 3)
    network.check_no_fork()
    assert [network.nodes[i].disk.chain[0][1].view for i in (0, 2, 3)] == [1, 1, 1]
    assert 1_000 < network.now_ms < 1_500


def test_more_dead_members_than_allowed_halt_the_chain_and_one_return_resumes_it():
    network = Network(seed=1, count=4, target=1)
    network.start(0, 2)
    network.run(60_000)
    assert network.heights() == [0, 0, 0, 0]
    network.restart(network.nodes[3])
    network.run(network.now_ms + 30_000, lambda: network.heights() == [1, 0, 1, 1])
    assert network.heights() == [1, 0, 1, 1]


def test_a_node_that_was_away_catches_up_by_heartbeats_alone():
    network = Network(seed=1, count=4, target=3)
    network.start(0, 1, 2)
    network.run(30_000, lambda: network.heights() == [3, 3, 3, 0])
    network.restart(network.nodes[3])
    network.run(network.now_ms + 10_000, lambda: network.heights() == [3, 3, 3, 3])
    network.check_no_fork()
    assert network.heights() == [3, 3, 3, 3]


def test_transactions_of_one_node_alone_are_decided_when_its_turn_comes():
    network = Network(seed=1, count=4, target=1, wanting=frozenset({0}))  # proposes in view 3
    network.start()
    network.run(30_000, lambda: min(network.heights()) == 1)
    assert [node.disk.chain[0][1].view for node in network.nodes] == [3, 3, 3, 3]


def test_an_idle_network_only_beats():
    network = Network(seed=1, count=4, target=0)
    network.start()
    network.run(60_000)
    assert all(not node.disk.records for node in network.nodes)


def test_one_cloned_key_of_four_does_not_fork_the_chain_and_shows_itself():
    seen = 0
    for seed in range(30):
        network = build_network(seed, count=4, clones=1)
        run_history(network)
        seen += bool(network.contradictions)
        assert {c.first.member for c in network.contradictions} <= {0}
    assert seen > 0


# Each rule is needed: without it, some history forks, or an assertion of the simulator fails.


def fork_or_fault(seeds: range, **changes) -> str:
    for seed in seeds:
        try:
            run_history(build_network(seed, **changes))
        except AssertionError as error:
            return str(error)
    return ""


def test_a_quorum_too_small_by_one_forks(monkeypatch):
    smaller = property(lambda s: 2 * len(s.members) // 3)
    monkeypatch.setattr(AuthoritySet, "quorum", smaller)
    found = fork_or_fault(range(200), count=4, clones=1)
    assert "fork" in found


def test_without_the_justification_rule_it_forks(monkeypatch):
    rules = height.RULES | {"notarize": (height.votes_once,)}
    monkeypatch.setattr(height, "RULES", rules)
    monkeypatch.setattr(height.OpenHeight, "choose", lambda self: "")
    assert fork_or_fault(range(100), count=4)


def test_without_its_record_a_restarted_member_contradicts_itself(monkeypatch):
    monkeypatch.setattr(Engine, "_open", lambda self, tip, record: open_height(self, tip))
    assert "broken" in fork_or_fault(range(100), count=4, clones=0)


def open_height(broken: Engine, tip: Tip) -> None:
    ENGINE_OPEN(broken, tip, VoteRecord(height=tip.height + 1))


def test_speech_before_durability_is_noticed(monkeypatch):
    monkeypatch.setattr(
        Output, "list_effects", lambda self, height: LIST_EFFECTS(self, height)[::-1]
    )
    assert "before it was durable" in fork_or_fault(range(10), count=4)


def test_without_rebroadcast_it_gets_stuck(monkeypatch):
    monkeypatch.setattr(engine, "REBROADCAST_MS", 10**9)
    assert "heights" in fork_or_fault(range(100))


def test_without_heartbeats_it_gets_stuck(monkeypatch):
    monkeypatch.setattr(engine, "HEARTBEAT_MS", 10**9)
    assert "heights" in fork_or_fault(range(100))
