"""Frames that are made once are what a WebSocket server would have made (RFC 6455, 5.2)."""

from __future__ import annotations

import pytest
from websockets.frames import Frame as Parsed
from websockets.frames import Opcode

from reliable_cable.protocol.frames import Frame, text_frame


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, 300_000])
def test_every_length_is_written_as_the_standard_says(size: int) -> None:
    payload = b"x" * size
    assert text_frame(payload) == Parsed(Opcode.TEXT, payload).serialize(mask=False)


def test_a_frame_is_its_text_and_its_bytes_are_made_once() -> None:
    frame = Frame('{"text":"żółw 🐢"}')
    assert frame == '{"text":"żółw 🐢"}'
    assert frame.wire == text_frame(frame.encode())
    assert frame.wire is frame.wire
