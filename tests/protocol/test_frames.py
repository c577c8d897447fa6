"""Encoded frames equal the frames of a WebSocket library (RFC 6455, section 5.2)."""

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
def test_frames_of_every_length_equal_those_of_websockets(size: int) -> None:
    payload = b"x" * size
    assert text_frame(payload) == Parsed(Opcode.TEXT, payload).serialize(mask=False)


def test_a_frame_equals_its_text_and_is_encoded_once() -> None:
    frame = Frame('{"text":"żółw 🐢"}')
    assert frame == '{"text":"żółw 🐢"}'
    assert frame.wire == text_frame(frame.encode())
    assert frame.wire is frame.wire


# -- compression (RFC 7692, section 7.2) -------------------------------------------------------------------------------


def message(size: int) -> bytes:
    """Return text of `size` bytes or slightly less, which resembles real messages: a few words in random order."""
    numbers = random.Random(size)
    words = ["żółw ", '"id":', "the ", "message ", "of ", "alice ", "room ", "🐢"]
    text = "".join(numbers.choice(words) for _ in range(size))
    return text.encode()[:size].decode(errors="ignore").encode()


@pytest.mark.parametrize("size", [MIN_COMPRESSED, 1000, 4096, 4097, 70_000, 300_000])
def test_a_compressed_message_is_shorter_and_decompresses_to_its_payload(size: int) -> None:
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
    ids=["empty", "short", "random"],
)
def test_messages_that_compression_would_hardly_shorten_are_not_compressed(payload: bytes) -> None:
    assert compressed_frame(payload) == text_frame(payload)


def test_compressed_messages_are_independent_of_each_other() -> None:
    """Each client can decompress a message, no matter which messages it received before."""
    payloads = [message(3000), b"short", message(3000), message(500)]
    frames = [compressed_frame(payload) for payload in payloads]
    assert frames[0] == frames[2]
    for order in ([0, 1, 2, 3], [3, 2, 0], [2]):
        texts = [text for _, text in read(b"".join(frames[n] for n in order))]
        assert texts == [payloads[n].decode() for n in order]


def test_a_compressed_frame_equals_its_text_and_is_encoded_once() -> None:
    text = message(2000).decode()
    frame = CompressedFrame(text)
    assert frame == text
    assert frame.wire == compressed_frame(text.encode())
    assert frame.wire is frame.wire
