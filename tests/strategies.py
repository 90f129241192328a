"""What hypothesis draws for several tests."""

from __future__ import annotations

from hypothesis import strategies as st


def draw_changed_byte(data: st.DataObject, sound: bytes) -> bytes:
    """Draw a document that differs from a sound one in one byte."""
    position = data.draw(st.integers(0, len(sound) - 1))
    value = data.draw(st.integers(0, 255).filter(lambda v: v != sound[position]))
    return sound[:position] + bytes([value]) + sound[position + 1 :]
