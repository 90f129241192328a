"""What every slot of the cache holds, who gets which slot, and which prefixes are shared.

One step of a batch takes neighbouring slots, so the slots in use are kept a run without holes: a
new answer gets a slot inside the run or next to it, and `fill_holes`, which is called where rows
cost time, moves the answer at an end of the run into a hole that nobody filled. The run may lie
anywhere. A slot that is not in use keeps its tokens, and who begins with the same tokens has them
copied instead of computed. Of the slots that may be taken, the one goes first that has not been
used for longest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count


@dataclass(slots=True)
class _Slot:
    tokens: list[int] = field(default_factory=list)
    """Whose keys and values the cache holds, from position 0 on."""
    owner: str = ""
    busy: bool = False
    used_at: int = 0
    """Rises with each use of any slot; 0 if it never was."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lot:
    """A slot for somebody, and what he need not compute."""

    slot: int
    source: int
    """A slot that holds the shared tokens; `slot` itself if they are there already."""
    shared: int
    """Tokens to copy from `source`."""
    gained: int
    """Those of them that he would have had to compute."""


class Slots:
    """The books of one cache; the cache itself is the runtime's."""

    def __init__(self, number: int, *, least_shared: int) -> None:
        """All are free and empty.

        Args:
            number: of slots.
            least_shared: tokens of a prefix that are worth a copy.
        """
        self._least_shared = least_shared
        self._slots = [_Slot() for _ in range(number)]
        self._ticks = count(1)

    def is_free(self) -> bool:
        """Whether there is a slot to take."""
        return not all(slot.busy for slot in self._slots)

    def tokens(self, slot: int) -> list[int]:
        """The tokens in a slot; who holds it adds what it computes."""
        return self._slots[slot].tokens

    def take(self, prompt: Sequence[int], owner: str) -> Lot:
        """Take a free slot for a prompt, all of which but its last token may be shared.

        The caller copies what is shared before anything else touches the cache.
        """
        source, shared = self._longest_prefix(prompt[:-1], owner)
        candidates = self._candidates()
        chosen = min(candidates, key=lambda slot: self._slots[slot].used_at)
        if source in candidates and 2 * shared >= len(self._slots[source].tokens):
            chosen = source  # little is lost that others could have shared
        self._slots[chosen] = _Slot(
            tokens=list(prompt[:shared]), owner=owner, busy=True, used_at=next(self._ticks)
        )
        return Lot(slot=chosen, source=source if shared else chosen, shared=shared, gained=shared)

    def share_more(self, slot: int, prompt: Sequence[int]) -> Lot | None:
        """More of a prompt than its slot holds, if another slot got it meanwhile.

        Who has several jobs with one beginning often sends them at once: when their slots are taken
        nobody has computed it yet. The caller copies what is shared, as after `take`.
        """
        held = self._slots[slot]
        source, shared = self._longest_prefix(prompt[:-1], held.owner)
        gained = shared - len(held.tokens)
        if gained < self._least_shared:
            return None
        held.tokens[:] = prompt[:shared]
        return Lot(slot=slot, source=source, shared=shared, gained=gained)

    def free(self, slot: int) -> None:
        """Give a slot back; its tokens stay until somebody else takes it."""
        self._slots[slot].busy = False
        self._slots[slot].used_at = next(self._ticks)

    def forget(self, slot: int) -> None:
        """Give a slot back whose cache is not to be trusted."""
        self._slots[slot] = _Slot()

    def fill_holes(self, stepped: Sequence[int]) -> list[tuple[int, int]]:
        """Move slots at an end into free slots between those that are stepped together.

        Returns:
            Pairs (from, to), in the order in which the caller has to copy the cache.
        """
        moves: list[tuple[int, int]] = []
        rows = sorted(stepped)
        while rows:
            holes = [i for i in range(rows[0], rows[-1]) if not self._slots[i].busy]
            if not holes:
                break
            end = min((rows[0], rows[-1]), key=lambda slot: len(self._slots[slot].tokens))
            self._move(end, holes[0])
            moves.append((end, holes[0]))
            rows = sorted({*rows, holes[0]} - {end})
        return moves

    def _move(self, source: int, target: int) -> None:
        moved = self._slots[source]
        self._slots[target] = moved
        # What was moved is still there for others to share.
        self._slots[source] = _Slot(list(moved.tokens), moved.owner, used_at=next(self._ticks))

    def _candidates(self) -> list[int]:
        busy = [i for i, slot in enumerate(self._slots) if slot.busy]
        free = [i for i, slot in enumerate(self._slots) if not slot.busy]
        if not busy:
            return free
        inside = [i for i in free if busy[0] < i < busy[-1]]
        return inside or [i for i in free if i in (busy[0] - 1, busy[-1] + 1)]

    def _longest_prefix(self, prompt: Sequence[int], owner: str) -> tuple[int, int]:
        lengths = [
            common_prefix(slot.tokens, prompt) if slot.owner == owner else 0 for slot in self._slots
        ]
        best = max(range(len(lengths)), key=lengths.__getitem__)
        return (best, lengths[best]) if lengths[best] >= self._least_shared else (best, 0)


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """With how many equal tokens both begin."""
    for position, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return position
    return min(len(first), len(second))
