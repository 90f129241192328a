"""One history: drawn from one seed, run through a faulty time and a calm one, and judged.

Judging trusts nothing that the nodes say: every ledger is verified from genesis as `fsck` does it,
and compared with all that was ever called final.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field, replace

from ledger.keys import KeyPair
from tests.builders import build_change_payload, sign_change
from tests.simulation.adversary import Adversary
from tests.simulation.judge import judge
from tests.simulation.machine import Machine
from tests.simulation.material import (
    KEY_OF,
    KEYS,
    build_network_genesis,
    build_set,
    build_simulated_audit,
    build_simulated_receipt,
    cheap_repetition,
)
from tests.simulation.network import MAX_SKEW_MS, BrokenError, Counts, Faults, Network

FAULTY_MS = 12_000
HEAL_MS = 60_000
"""How soon all honest nodes must see new final blocks. The longest of 6,000 histories took 25 s:
liars may have the turn in several views, and those of a long-cut network last long."""
FAULTY_RECEIPTS = 14
CALM_RECEIPTS = 4
AUDITED = 4
"""One of so many receipts is audited."""
MAX_AUDIT_DELAY_MS = 2_000
"""After its receipt: seldom long enough for it to be final on every node."""
CALM_HEIGHTS = 2
"""Heights that every honest node must see after the faults end."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a history is to be like."""

    seed: int
    count: int
    """Authorities at genesis."""
    spares: int = 0
    """Nodes with a key that is no member's."""
    followers: int = 0
    """Nodes without a key."""
    clones: int = 0
    """Members whose key a second node uses too."""
    liars: int = 0
    changes: int = 0
    """Changes of the authority set that somebody asks for while the faults last."""
    lies: frozenset[str] = frozenset()
    """The only lies that liars tell, by name; all if empty."""
    has_partitions: bool = True
    faults: Faults = field(default_factory=Faults)


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came of it."""

    seed: int
    failure: str
    """Empty if all went well."""
    rule: str
    """What did not hold."""
    counts: Counts
    heights: int
    heal_ms: int
    trace_hash: str
    trace: list[str]
    seconds: float


def compute_tolerance(count: int) -> int:
    """Return how many Byzantine members a set stands, safe and live."""
    quorum = 2 * count // 3 + 1
    return min(2 * quorum - count - 1, count - quorum)


def draw_plan(seed: int, **changes: object) -> Plan:
    """Draw the history of a seed."""
    choose = random.Random(f"plan {seed}").choice
    count = choose([1, 3, 4, 4, 4, 7])
    byzantine = choose(["", "clones", "liars", "liars"]) if compute_tolerance(count) else ""
    some = choose(range(1, compute_tolerance(count) + 1)) if byzantine else 0
    plan = Plan(
        seed=seed,
        count=count,
        spares=choose([0, 0, 1, 3]),
        changes=choose([0, 1, 3]),
        followers=choose([0, 0, 1]),
        clones=some if byzantine == "clones" else 0,
        liars=some if byzantine == "liars" else 0,
        has_partitions=choose([True, True, False]),
        faults=Faults(
            loss=choose([0, 0.05, 0.2, 0.4]),
            duplication=choose([0, 0.2]),
            crash=choose([0, 0.005, 0.02]),
            max_delay_ms=choose([20, 300, 1500]),
        ),
    )
    return replace(plan, **changes)


class History:
    """A network that lives through a plan."""

    def __init__(self, plan: Plan, *, keeps_trace: bool = False) -> None:
        self.plan = plan
        self.random = random.Random(f"history {plan.seed}")
        members = self.random.sample(range(plan.count), plan.count)
        cloned, liars = members[: plan.clones], members[plan.clones :][: plan.liars]
        last = plan.count + plan.spares
        clones = range(last + plan.followers, last + plan.followers + plan.clones)
        self.network = Network(
            genesis=build_network_genesis(plan.count),
            keys=[*KEYS[:last], *[None] * plan.followers, *[KEYS[i] for i in cloned]],
            seed=plan.seed,
            faults=replace(plan.faults),
            byzantine=frozenset([*cloned, *liars, *clones]),
            max_skew_ms=MAX_SKEW_MS,
            keeps_trace=keeps_trace,
        )
        self.clones = list(clones)
        self.liars = liars
        self.adversary = Adversary(self.network, liars, plan.lies) if liars else None
        self.honest = [m for m in self.network.machines if m.index not in self.network.byzantine]
        self.heal_ms = 0
        self._receipts = 0

    def run(self) -> None:
        """Live through all of it.

        Raises:
            BrokenError: something that must hold does not.
        """
        self.suffer()
        self.heal()
        judge(self.network)

    def suffer(self) -> None:
        network = self.network
        network.start(*[m.index for m in network.machines if m.index not in self.liars])
        if self.adversary is not None:
            self.adversary.start()
        for _ in range(FAULTY_RECEIPTS):
            network.later(self.random.randint(0, FAULTY_MS), self.submit_somewhere)
        for _ in range(self.plan.changes):
            network.later(self.random.randint(0, FAULTY_MS), self.change_authorities)
        while network.now_ms < FAULTY_MS:
            network.run(min(network.now_ms + self.random.randint(500, 4000), FAULTY_MS))
            if self.plan.has_partitions:
                self.divide()

    def divide(self) -> None:
        """Cut the network in two, isolate some nodes, or join them all again."""
        network, count = self.network, len(self.network.machines)
        kind = self.random.choice(["none", "halves", "one", "isolated"])
        cut = self.random.sample(range(count), {"one": 1, "none": 0}.get(kind, count // 2))
        if kind == "halves" and self.plan.clones:
            # The two holders of each key on two sides, and with each some of the others.
            others = [m.index for m in self.honest]
            cut = [*self.random.sample(others, len(others) // 2), *self.clones]
        network.sides = [0] * count
        for number, index in enumerate(cut):
            network.sides[index] = 1 + number * (kind == "isolated")
        network.counts.partitions += bool(cut)
        network.log(f"partition {network.sides}")

    def submit_somewhere(self) -> None:
        nodes = self.network.machines
        self.submit(self.random.sample(nodes, self.random.randint(1, len(nodes))))

    def submit(self, nodes: list[Machine]) -> None:
        number, indexes = self._receipts, [node.index for node in nodes]
        self._receipts += 1
        self.network.submit(build_simulated_receipt(self.network.genesis, number), indexes)
        if number % AUDITED == 0:
            audit = build_simulated_audit(self.network.genesis, number)
            delay_ms = self.random.randint(0, MAX_AUDIT_DELAY_MS)
            self.network.later(delay_ms, self.network.submit, audit, indexes)

    def change_authorities(self) -> None:
        """Let a quorum of the newest set sign another one: members enter, leave or change places.

        No set ever holds more Byzantine members than it stands.
        """
        newest = max(self.honest, key=lambda machine: machine.tip.height)
        current = [KEY_OF[m.account] for m in newest.tip.authority_set.members]
        following = self._draw_members()
        payload = build_change_payload(
            newest.tip, build_set(following, epoch=newest.tip.authority_set.epoch + 1)
        )
        deciding = self.random.sample(current, newest.tip.authority_set.quorum)
        entering = [key for key in following if key not in current]
        change = sign_change(payload, [*deciding, *entering])
        self.network.granted[change.id] = change
        self.network.log(f"a change is asked for: {[KEYS.index(key) for key in following]}")
        self.network.submit(change, [machine.index for machine in self.honest])

    def _draw_members(self) -> list[KeyPair]:
        keys = sorted({key for key in self.network.keys if key is not None}, key=KEYS.index)
        byzantine = {self.network.keys[i] for i in self.network.byzantine}
        honest = [key for key in keys if key not in byzantine]
        members = self.random.sample(keys, self.random.randint(1, len(keys)))
        while members and len(byzantine.intersection(members)) > compute_tolerance(len(members)):
            members.remove(next(key for key in members if key in byzantine))
        return members or honest[:1]

    def heal(self) -> None:
        """End all faults but the liars. Every honest node must see new heights, and soon."""
        network = self.network
        network.sides = [0] * len(network.machines)
        network.faults = Faults()
        network.log("the faults end")
        target = max(m.tip.height for m in network.machines) + CALM_HEIGHTS
        for _ in range(CALM_RECEIPTS):
            self.submit(self.honest)
        started_ms = network.now_ms
        network.run(started_ms + HEAL_MS, lambda: all(m.tip.height >= target for m in self.honest))
        self.heal_ms = network.now_ms - started_ms
        if any(m.tip.height < target for m in self.honest):
            heights = [m.tip.height for m in network.machines]
            network.fail("stuck", f"expected height {target} everywhere, got {heights}")

    def close(self) -> None:
        for machine in self.network.machines:
            machine.disk.close()


def run_history(plan: Plan, *, keeps_trace: bool = False) -> Result:
    """Run one history to its end or to the first thing that does not hold."""
    started = time.process_time()
    history = History(plan, keeps_trace=keeps_trace)
    failure = rule = ""
    try:
        with cheap_repetition():
            history.run()
    except BrokenError as error:
        failure, rule = str(error), error.rule
    finally:
        history.close()
    network = history.network
    return Result(
        seed=plan.seed,
        failure=failure,
        rule=rule,
        counts=network.counts,
        heights=max(network.finals, default=0),
        heal_ms=history.heal_ms,
        trace_hash=network.trace_hash,
        trace=network.trace,
        seconds=time.process_time() - started,
    )
