"""Frames that are made once are what a WebSocket server would have made (RFC 6455, 5.2)."""

from __future__ import annotations

import random
import zlib

import pytest
from websockets.frames import Frame as Parsed
from websockets.frames import Opcode

from reliable_cable.protocol.frames import (
    MIN_COMPRESSED,
    WINDOW_BITS,
    CompressedFrame,
    Frame,
    compressed_frame,
    text_frame,
)
from tests.support.deflate import read


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, 300_000])
def test_every_length_is_written_as_the_standard_says(size: int) -> None:
    payload = b"x" * size
    assert text_frame(payload) == Parsed(Opcode.TEXT, payload).serialize(mask=False)


def test_a_frame_is_its_text_and_its_bytes_are_made_once() -> None:
    frame = Frame('{"text":"żółw 🐢"}')
    assert frame == '{"text":"żółw 🐢"}'
    assert frame.wire == text_frame(frame.encode())
    assert frame.wire is frame.wire


# -- compressed (RFC 7692, 7.2) ----------------------------------------------------------------------------------------


def message(size: int) -> bytes:
    """Return a text as messages have them: of a few words, again and again, in no order."""
    numbers = random.Random(size)
    words = ["żółw ", '"id":', "the ", "message ", "of ", "alice ", "room ", "🐢"]
    text = "".join(numbers.choice(words) for _ in range(size))
    return text.encode()[:size].decode(errors="ignore").encode()


@pytest.mark.parametrize("size", [MIN_COMPRESSED, 1000, 4096, 4097, 70_000, 300_000])
def test_a_compressed_message_is_shorter_and_the_same(size: int) -> None:
    payload = message(size)
    frame = compressed_frame(payload)
    assert frame[0] == 0xC1, "FIN, RSV1 and the opcode of a text"
    assert len(frame) < 0.8 * size
    assert read(frame) == [(True, payload.decode())]
    body = frame[{126: 4, 127: 10}.get(frame[1], 2) :]
    assert not body.endswith(b"\x00\x00\xff\xff")
    assert zlib.decompressobj(-WINDOW_BITS).decompress(body + b"\x00\x00\xff\xff") == payload


@pytest.mark.parametrize(
    "payload",
    [b"", b"x" * (MIN_COMPRESSED - 1), random.Random(1).randbytes(5000)],
    ids=["empty", "short", "of no pattern"],
)
def test_what_would_gain_little_is_not_compressed(payload: bytes) -> None:
    assert compressed_frame(payload) == text_frame(payload)


def test_no_message_needs_another_one() -> None:
    """So each is right for whoever was sent others before, and for who was sent none."""
    payloads = [message(3000), b"short", message(3000), message(500)]
    frames = [compressed_frame(payload) for payload in payloads]
    assert frames[0] == frames[2]
    for order in ([0, 1, 2, 3], [3, 2, 0], [2]):
        texts = [text for _, text in read(b"".join(frames[n] for n in order))]
        assert texts == [payloads[n].decode() for n in order]


def test_a_compressed_frame_is_its_text_and_is_made_once() -> None:
    text = message(2000).decode()
    frame = CompressedFrame(text)
    assert frame == text
    assert frame.wire == compressed_frame(text.encode())
    assert frame.wire is frame.wire
