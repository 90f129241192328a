"""Frames of the block stream: whole blocks or our error, whatever the bytes and their pieces."""

import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.block import Limits
from ledger.errors import InvalidBlockError, InvalidMessageError, LedgerError
from node.p2p.frames import (
    LENGTH_BYTES,
    FrameSplitter,
    frame_timeout_s,
    max_frame_bytes,
    parse_frame,
)
from tests.builders import build_chain
from tests.sync_peer import build_frames

CHAIN = build_chain(4, blocks=(1, 3, 2))
FRAMES = build_frames(CHAIN)
STREAM = b"".join(FRAMES)
LIMITS = CHAIN.genesis.limits


def split(*pieces: bytes, max_bytes: int = max_frame_bytes(LIMITS)) -> list[bytes]:
    splitter = FrameSplitter(max_bytes)
    frames = [frame for piece in pieces for frame in splitter.feed(piece)]
    splitter.close()
    return frames


def test_a_frame_comes_back_as_the_block_it_was_made_of():
    for data, block, certificate in zip(FRAMES, CHAIN.blocks, CHAIN.certificates, strict=True):
        frame = parse_frame(data[LENGTH_BYTES:], LIMITS)
        assert (frame.parse_block(), frame.certificate) == (block, certificate)


@given(cuts=st.lists(st.integers(0, len(STREAM)), max_size=20))
def test_the_pieces_of_a_stream_do_not_matter(cuts):
    edges = sorted({0, len(STREAM), *cuts})
    pieces = [STREAM[a:b] for a, b in itertools.pairwise(edges)]
    assert split(*pieces) == [frame[LENGTH_BYTES:] for frame in FRAMES]


def test_every_truncation_is_told_apart_from_an_end_between_frames():
    ends = {0, *(sum(map(len, FRAMES[: i + 1])) for i in range(len(FRAMES)))}
    for size in range(len(STREAM)):
        if size in ends:
            split(STREAM[:size])
        else:
            with pytest.raises(InvalidMessageError):
                split(STREAM[:size])


@pytest.mark.parametrize("size", [0, max_frame_bytes(LIMITS) + 1, 2**32 - 1])
def test_a_length_that_no_frame_has_is_refused_before_anything_is_kept(size):
    splitter = FrameSplitter(max_frame_bytes(LIMITS))
    with pytest.raises(InvalidMessageError, match="frame length"):
        splitter.feed(size.to_bytes(LENGTH_BYTES, "big"))


def test_the_frame_that_has_begun_tells_its_length():
    splitter = FrameSplitter(max_frame_bytes(LIMITS))
    assert splitter.feed(STREAM[:3]) == []
    assert splitter.wanted_bytes == 0
    assert splitter.feed(STREAM[3:5]) == []
    assert splitter.wanted_bytes == len(FRAMES[0]) - LENGTH_BYTES
    assert frame_timeout_s(splitter.wanted_bytes) > frame_timeout_s(0)


@pytest.mark.parametrize("body", [b"", b"\n", b"{}", b"{}\n{}", FRAMES[0][4:].split(b"\n")[0]])
def test_a_frame_needs_header_certificate_and_a_transaction(body):
    with pytest.raises(InvalidMessageError, match="expected header, certificate and envelopes"):
        parse_frame(body, LIMITS)


def test_a_frame_of_more_parts_than_a_block_may_have_is_refused_without_splitting_it_all():
    limits = Limits(max_block_transactions=2)
    body = FRAMES[1][LENGTH_BYTES:]
    with pytest.raises(InvalidBlockError, match="at most 2"):
        parse_frame(body, limits)
    with pytest.raises(InvalidBlockError, match="at most 2"):
        parse_frame(body + b"\n" * 1_000_000, limits)


@given(place=st.integers(0, len(FRAMES[0]) - LENGTH_BYTES - 1), bit=st.integers(0, 7))
def test_a_flipped_bit_gives_another_block_or_our_error(place, bit):
    body = bytearray(FRAMES[0][LENGTH_BYTES:])
    body[place] ^= 1 << bit
    try:
        frame = parse_frame(bytes(body), LIMITS)
        block = frame.parse_block()
    except LedgerError:
        return
    assert (block, frame.certificate) != (CHAIN.blocks[0], CHAIN.certificates[0])


def test_a_frame_is_bounded_by_the_limits_of_its_network():
    small = msgspec.structs.replace(LIMITS, max_block_bytes=65536, max_block_transactions=1)
    assert max_frame_bytes(small) < max_frame_bytes(LIMITS)
    assert all(len(frame) - LENGTH_BYTES <= max_frame_bytes(LIMITS) for frame in FRAMES)
