"""One node: its shell, and what it hears from others and tells them about final blocks.

Blocks of others are judged and stored by what does it in production (`node/sync`).
"""

from __future__ import annotations

from consensus.interface import (
    MessageReceived,
)
from ledger.block import Block, Certificate
from ledger.encoding import encode
from ledger.errors import LedgerError, StoreError
from ledger.store.chain import load_block
from node.sync.verify import verify_frames
from tests.simulation.disk import PowerCutError
from tests.simulation.material import parse_frame_once, parse_message_once
from tests.simulation.shell import POLL_MS, Shell

BATCH_BLOCKS = 4
"""Blocks in one answer."""


class Machine(Shell):
    """A node and its place in the network."""

    def receive(self, sender: int, account: str, data: bytes) -> None:
        """Take a consensus message. In production its transport names the sender."""
        if self.engine is None:
            return
        if account:
            self._presence.hear(account, now_ms=self.network.now_ms)
        try:
            message = parse_message_once(data, max_bytes=self._bound)
        except LedgerError as error:
            self.network.note_refused(self, error)
        else:
            self.step(MessageReceived(message=message), sender)

    def read_chain(self) -> list[tuple[Block, Certificate]]:
        """Return every block of the ledger with its certificate."""
        found = [load_block(self.disk.ledger, h + 1) for h in range(self.tip.height)]
        return [item for item in found if item is not None]

    def receive_fetch(self, sender: int, from_height: int) -> None:
        if self.engine is not None:
            self._offer(sender, from_height)

    def receive_blocks(self, sender: int, frames: list[bytes]) -> None:
        """Verify blocks that are said to be final, as a sync does, and append them one by one."""
        if self.engine is None:
            return
        life, height = self.life, self.tip.height
        try:
            for frame in frames:
                self._adopt(frame)
        except StoreError as error:
            self.network.fail("the ledger refuses a final block", f"node {self.index}: {error}")
        except LedgerError as error:
            self.network.note_refused(self, error)
        except PowerCutError as cut:
            self.power_off(str(cut))
            self.network.plan_restart(self)
        if life == self.life and len(frames) == BATCH_BLOCKS and self.tip.height > height:
            self.ask(sender)

    def _adopt(self, frame: bytes) -> None:
        if parse_frame_once(frame, self.tip.limits).header.height != self.tip.height + 1:
            return
        verdict = verify_frames([frame], self.tip)
        if verdict.error is not None:
            raise verdict.error
        (verified,) = verdict.blocks
        self.disk.ledger.cut = self._draw_cut()
        self.disk.append_verified(verified)
        self._move_on(verified.block, verified.certificate)

    def receive_height(self, sender: int, height: int) -> None:
        """Hear from somebody to whom we spoke how far its chain goes."""
        if self.engine is not None and height > self.tip.height:
            self.ask(sender)

    def poll(self) -> None:
        """A node that is no member hears nothing by itself, so it asks."""
        if self.tip.authority_set.index_of(self.account) is None:
            others = [m.index for m in self.network.machines if m is not self]
            self.ask(self.network.random.choice(others))
        self.later(POLL_MS, self.poll)

    def ask(self, other: int) -> None:
        self.network.send(self.index, other, "receive_fetch", self.tip.height + 1)

    def _offer(self, other: int, height: int) -> None:
        last = min(self.tip.height, height + BATCH_BLOCKS - 1)
        frames = [self._serve(wanted) for wanted in range(height, last + 1)]
        if frames:
            self.network.send(self.index, other, "receive_blocks", frames)

    def _serve(self, height: int) -> bytes:
        """Return the frame of a final block. It never changes, so one reading will do."""
        if height not in self._served:
            found = load_block(self.disk.ledger, height)
            assert found is not None
            self._served[height] = build_frame(*found)
        return self._served[height]


def build_frame(block: Block, certificate: Certificate) -> bytes:
    """Return a block as the block stream carries it, without its length."""
    envelopes = [transaction.envelope for transaction in block.transactions]
    return b"\n".join([encode(block.header), encode(certificate), *envelopes])
