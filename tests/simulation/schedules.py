"""Schedules for what chance finds too rarely. Each holds for the protocol as it is.

The proposer of view v at height 1 is member (1 + v) mod 4: members 1, 2, 3, 0, 1, and so on.
"""

from __future__ import annotations

from consensus.engine import HEARTBEAT_MS
from ledger.block import Block
from ledger.vote import (
    Vote,
    build_finality_certificate,
    cast_vote,
)
from tests.simulation.machine import build_frame
from tests.simulation.material import (
    KEYS,
)
from tests.simulation.stage import (
    PROMPT_MS,
    SOON_MS,
    Stage,
    has_votes,
    is_of_finality,
    state,
)

# Safety


def divide_in_halves(stage: Stage) -> None:
    """Two and two, each half with what it needs for a block."""
    stage.network.sides = [0, 0, 1, 1]
    stage.network.start()
    stage.submit()
    stage.run(20_000)


def let_one_commit(stage: Stage, liar: int) -> Block:
    """Let the block of view 0 become final at node 0 alone, which then falls silent."""
    honest = [i for i in range(4) if i != liar]
    stage.network.start(*honest)
    stage.pass_only(lambda source, sink, message: sink == 0 or not is_of_finality(message))
    stage.submit()
    stage.run(900, lambda: stage.nodes[0].tip.height == 1)
    assert stage.nodes[0].tip.height == 1
    stage.pass_only(
        lambda source, sink, message: (
            source != 0 and not message.block and not is_of_finality(message)
        )
    )
    stage.agree(liar)
    (block,) = (b for b in stage.nodes[1].engine._height.blocks.values())
    return block


def propose_over_a_final_block(stage: Stage) -> None:
    """Member 2 offers a new block in view 1, though view 0 may be, and is, finalized."""
    let_one_commit(stage, liar=2)
    rival = stage.build(2, at=stage.nodes[1])
    stage.tell(2, [1, 3], stage.vote(2, "notarize", 1, rival), block=rival)
    stage.run(SOON_MS)


def relabel_a_nullification(stage: Stage) -> None:
    """View 1 is nullified; member 3 shows those votes as votes of view 0, which is finalized."""
    heard: list[Vote] = []
    let_one_commit(stage, liar=3)
    stage.network.overhear.append(lambda machine, message, data: heard.extend(message.votes))
    stage.run(4_000, lambda: all(stage.nodes[i].engine._height.view == 2 for i in (1, 2)))
    votes = {v.member: v for v in heard if (v.kind, v.view) == ("nullify", 1)}
    votes[3] = stage.vote(3, "nullify", 1)
    forged = state("nullify", 0, None, list(votes.values()))
    rival = stage.build(3, at=stage.nodes[1])
    proposal = stage.vote(3, "notarize", 2, rival)
    stage.tell(3, [1, 2], proposal, certificates=[forged], block=rival)
    stage.run(SOON_MS)


def show_notarize_votes_as_finality(stage: Stage) -> None:
    """Node 0 is shown three notarize votes as a finality certificate; the others move on."""
    heard: list[Vote] = []
    stage.network.overhear.append(lambda machine, message, data: heard.extend(message.votes))
    stage.network.start(0, 1, 2)
    # The proposal reaches everybody, nobody else's vote for it reaches anybody.
    stage.pass_only(lambda source, sink, message: message.block is not None and source == 1)
    stage.submit()
    stage.run(900)
    votes = {v.member: v for v in heard if (v.kind, v.view) == ("notarize", 0)}
    (block,) = stage.nodes[0].engine._height.blocks.values()
    forged = state("finalize", 0, block, list(votes.values()))
    stage.tell(3, [0], certificates=[forged])
    stage.agree(3)
    stage.run(50)
    stage.pass_only(
        lambda source, sink, message: (
            0 not in {source, sink}
            and not any(v.view == 0 and v.kind == "notarize" for v in message.votes)
        )
    )
    stage.run(SOON_MS)


def certify_with_a_stale_set(stage: Stage) -> None:
    """All four members are replaced; the keys of the first set then certify a block of theirs."""
    stage.network.start()
    stage.change([4, 5, 6, 7])
    stage.reach(1)
    stage.submit()
    stage.reach(2)
    victim = stage.nodes[0]
    rival = stage.build(4, at=victim)
    votes = [
        cast_vote(
            KEYS[i],
            member=i,
            tip=victim.tip,
            kind="finalize",
            view=0,
            block_hash=rival.hash.hex(),
        )
        for i in range(4)
    ]
    certificate = build_finality_certificate(state("finalize", 0, rival, votes))
    victim.receive_blocks(1, [build_frame(rival, certificate)])


# Liveness


def return_to_an_idle_network(stage: Stage) -> None:
    """Node 3 was away; nothing happens any more, and it must learn what did."""
    stage.network.start(0, 1, 2)
    for height in range(1, 4):
        stage.submit(0, 1, 2)
        stage.reach(height, 0, 1, 2)
    stage.run(SOON_MS)
    stage.network.start(3)
    stage.reach(3, within_ms=SOON_MS)


def fall_far_behind(stage: Stage) -> None:
    """Node 3 was away for twenty heights, and catches up at the first word of any other.

    That word is a heartbeat, which comes sooner than its own first one.
    """
    stage.network.start(0, 1, 2)
    for height in range(1, 21):
        stage.submit(0, 1, 2)
        stage.reach(height, 0, 1, 2)
    stage.run(HEARTBEAT_MS - stage.network.now_ms % HEARTBEAT_MS - 100)
    stage.network.start(3)
    stage.reach(20, within_ms=HEARTBEAT_MS // 2)


def lack_a_proposer(stage: Stage) -> None:
    """Member 1, whose turn it is, is dead."""
    stage.network.start(0, 2, 3)
    stage.submit(0, 2, 3)
    stage.reach(1, 0, 2, 3, within_ms=SOON_MS)


def live_with_a_dead_member(stage: Stage) -> None:
    """Member 3 is dead. Once that is known, its turns cost nothing."""
    stage.network.start(0, 1, 2)
    stage.run(15_000)
    for height in range(1, 9):
        stage.submit(0, 1, 2)
        stage.reach(height, 0, 1, 2, within_ms=PROMPT_MS)


def jump_over_views(stage: Stage) -> None:
    """Node 3 heard nothing of views 0 to 2, but holds the notarization of view 2."""
    stage.network.start(3)
    block = stage.build(3, at=stage.nodes[3])
    notarization = state(
        "notarize", 2, block, [stage.vote(i, "notarize", 2, block) for i in range(3)]
    )
    stage.tell(
        0, [3], stage.vote(0, "notarize", 3, block), certificates=[notarization], block=block
    )
    stage.run(SOON_MS)
    cast = {(v.kind, v.view) for v in stage.nodes[3].engine._height.list_own_votes()}
    if ("notarize", 3) not in cast:
        stage.network.fail("stuck", f"node 3 does not vote in view 3: {sorted(cast)}")


def propose_an_old_block_again(stage: Stage) -> None:
    """A block is notarized, then all are cut off for longer than any clock may be wrong.

    Node 3 never saw it, and is needed after that, since node 0 dies.
    """
    network = stage.network
    network.start()
    stage.pass_only(lambda source, sink, message: sink != 3 and not has_votes(message, "finalize"))
    stage.submit()
    stage.run(900)
    network.sides = [0, 1, 2, 3]
    stage.run(20_000)
    stage.pass_only(None)
    network.sides = [1, 0, 0, 0]
    stage.reach(1, 1, 2, 3)
