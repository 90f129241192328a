"""An authority that was away catches up with the others, and goes on with them."""

import contextlib

from ledger.store.fsck import verify_chain
from tests.authorities import Authorities
from tests.caller import Caller


def test_an_authority_that_was_away_fetches_what_it_missed_and_goes_on_with_them(tmp_path):
    network = Authorities(tmp_path, 4)
    key = network.create_key(0, "admin")
    with contextlib.ExitStack() as stack:
        for index in range(3):
            stack.enter_context(network.run(index))
        coordinator = stack.enter_context(Caller(network.urls[0], key))
        for height in range(1, 4):
            coordinator.finish_job()
            coordinator.wait_for_block(height)
        last = stack.enter_context(network.run(3))
        late = stack.enter_context(Caller(network.urls[3]))
        late.wait_for_block(3)
        assert last.chain.tip().height == 3
        coordinator.finish_job()
        late.wait_for_block(4)
        coordinator.wait_for_block(4)
    tips = [
        verify_chain(data.ledger, network.genesis, lambda *_: None) for data in network.directories
    ]
    assert all(tip.height >= 4 for tip in tips[:1] + tips[3:])
    assert len({tip.hash for tip in tips if tip.height == tips[3].height}) == 1
