"""Random bytes are handed out once each, whatever the sizes asked for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node import randomness
from node.randomness import POOL_BYTES, RandomPool


@given(st.lists(st.integers(0, 300), max_size=60))
def test_no_byte_is_handed_out_twice(sizes):
    pools = []

    def fetch(size):
        # Every byte of every pool is another one, as far as two bytes can tell.
        start = len(pools) * POOL_BYTES
        pools.append(b"".join(i.to_bytes(4, "big") for i in range(start, start + size // 4)))
        return pools[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(randomness.os, "urandom", fetch)
        pool = RandomPool()
        taken = [pool.take(4 * size) for size in sizes]
    assert [len(piece) for piece in taken] == [4 * size for size in sizes]
    words = [piece[i : i + 4] for piece in taken for i in range(0, len(piece), 4)]
    assert len(set(words)) == len(words)


def test_more_than_a_pool_holds_is_a_fault_of_the_caller():
    with pytest.raises(AssertionError):
        RandomPool().take(POOL_BYTES + 1)
