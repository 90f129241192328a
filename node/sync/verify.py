"""Judging frames: pure work on bytes, which any thread may do, in any order.

A frame is judged under the authority set that was in force when it was handed in. Whether that is
still the set when its turn comes is for the pipeline to ask, which then has it judged again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ledger.authorities import hash_authority_set
from ledger.block import Tip, VerifiedBlock, verify_certificate
from ledger.errors import LedgerError
from ledger.rules import verify_body
from node.p2p.frames import parse_frame


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What frames turned out to be, up to the first that is wrong."""

    set_hash: bytes
    """The authority set that they were judged under."""
    blocks: Sequence[VerifiedBlock]
    error: LedgerError | None
    """Why the frame after the last of `blocks` is wrong; None if there is none such."""


def verify_frames(frames: Sequence[bytes], tip: Tip) -> Verdict:
    """Parse frames and verify their certificates and bodies under the set of `tip`."""
    set_hash = hash_authority_set(tip.authority_set)
    blocks: list[VerifiedBlock] = []
    for frame in frames:
        try:
            blocks.append(_verify_frame(frame, tip, set_hash))
        except LedgerError as error:
            return Verdict(set_hash=set_hash, blocks=blocks, error=error)
    return Verdict(set_hash=set_hash, blocks=blocks, error=None)


def _verify_frame(data: bytes, tip: Tip, set_hash: bytes) -> VerifiedBlock:
    frame = parse_frame(data, tip.limits)
    # The certificate comes first: without a quorum behind it a body is not worth a look.
    verify_certificate(frame.certificate, header=frame.header, authority_set=tip.authority_set)
    block = frame.parse_block()
    verify_body(block, replace(tip, height=block.header.height - 1))
    return VerifiedBlock(block=block, certificate=frame.certificate, set_hash=set_hash)
