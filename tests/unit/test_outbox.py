"""An outbox never blocks the fan-out, and the frames that it keeps for a slow socket are bounded."""

from __future__ import annotations

import asyncio
from typing import Any

from reliable_cable.connection.account import Account
from reliable_cable.connection.outbox import Outbox, wire
from reliable_cable.protocol.frames import CompressedFrame, Frame, compressed_frame, text_frame


class Socket:
    """A socket whose `send` waits while `gate` is not set."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: Exception | None = None

    async def send(self, message: dict[str, Any]) -> None:
        if self.error is not None:
            raise self.error
        await self.gate.wait()
        self.sent.append(message.get("text", message["type"]))


class Overflow:
    """The callback of an outbox that overflows. It counts its calls."""

    calls = 0

    def __call__(self) -> None:
        self.calls += 1


def make_outbox(socket: Socket, limit: int = 100) -> tuple[Outbox, Overflow]:
    overflow = Overflow()
    return Outbox(socket.send, account=Account(limit), overflow=overflow), overflow


async def test_a_frame_is_sent_at_once_and_without_a_task() -> None:
    socket = Socket()
    outbox, _ = make_outbox(socket)
    tasks = asyncio.all_tasks()
    outbox.push("a")
    outbox.push("b")
    assert socket.sent == ["a", "b"]
    assert asyncio.all_tasks() == tasks


async def test_frames_for_a_full_socket_are_queued_and_sent_in_order() -> None:
    socket = Socket()
    outbox, overflow = make_outbox(socket)
    socket.gate.clear()
    for text in "abcde":
        outbox.push(text)
    assert socket.sent == []
    socket.gate.set()
    await outbox.drained()
    outbox.push("f")
    assert "".join(socket.sent) == "abcdef"
    assert overflow.calls == 0


async def test_the_size_of_queued_frames_is_bounded() -> None:
    socket = Socket()
    outbox, overflow = make_outbox(socket, limit=10)
    socket.gate.clear()
    for _ in range(20):
        outbox.push("xxxx")
    assert overflow.calls == 1
    assert outbox.closed
    socket.gate.set()
    await asyncio.sleep(0)
    assert socket.sent == []


async def test_queued_and_held_frames_share_one_bound() -> None:
    outbox, overflow = make_outbox(Socket(), limit=100)
    outbox.pause()
    assert outbox.can_hold(25)
    assert not outbox.can_hold(26), "held frames have a quarter"
    outbox.push("x" * 90)
    assert outbox.can_hold(10)
    assert not outbox.can_hold(11)
    outbox.held = 10
    outbox.push("")
    assert overflow.calls == 0


async def test_frames_are_queued_while_the_buffer_of_the_server_is_full() -> None:
    socket = Socket()
    outbox, _ = make_outbox(socket)
    outbox.pause()
    outbox.push("a")
    outbox.push("b")
    assert socket.sent == []
    outbox.resume()
    outbox.push("c")
    await outbox.drained()
    assert socket.sent == ["a", "b", "c"]


async def test_a_pause_stops_the_sending_of_queued_frames() -> None:
    socket = Socket()
    outbox, _ = make_outbox(socket)
    outbox.pause()
    for text in "ab":
        outbox.push(text)
    send = socket.send

    sent = asyncio.Event()

    async def send_one_then_pause(message: dict[str, Any]) -> None:
        await send(message)
        outbox.pause()
        sent.set()

    outbox.send = send_one_then_pause
    outbox.resume()
    await asyncio.wait_for(sent.wait(), 5)
    assert socket.sent == ["a"]
    outbox.send = send
    outbox.resume()
    await outbox.drained()
    assert socket.sent == ["a", "b"]


async def test_an_error_of_the_socket_closes_the_outbox() -> None:
    socket = Socket()
    outbox, _ = make_outbox(socket)
    socket.error = OSError("gone")
    outbox.push("a")
    assert outbox.closed
    await outbox.drained()


async def test_queued_frames_are_sent_before_the_close() -> None:
    socket = Socket()
    outbox, _ = make_outbox(socket)
    outbox.pause()
    outbox.push("a")
    closing = asyncio.ensure_future(outbox.close(1000, timeout=5))
    await asyncio.sleep(0)
    outbox.resume()
    assert await closing
    assert socket.sent == ["a", "websocket.close"]


async def test_close_gives_up_after_its_timeout() -> None:
    socket = Socket()
    outbox, _ = make_outbox(socket)
    outbox.pause()
    outbox.push("a")
    assert not await outbox.close(1000, timeout=0.01)
    assert outbox.closed


class Transport:
    """A transport that takes encoded frames, and pauses the outbox after `room` of them."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.room = 1000
        self.outbox: Outbox | None = None
        self.error: Exception | None = None

    def write(self, frame: bytes) -> None:
        if self.error is not None:
            raise self.error
        self.frames.append(frame)
        self.room -= 1
        if self.room == 0 and self.outbox is not None:
            self.outbox.pause()

    @property
    def texts(self) -> str:
        return "".join(frame[2:].decode() for frame in self.frames)


def make_frame_outbox(limit: int = 100) -> tuple[Outbox, Transport, Socket, Overflow]:
    socket, transport, overflow = Socket(), Transport(), Overflow()
    outbox = transport.outbox = Outbox(socket.send, account=Account(limit), overflow=overflow, write=transport.write)
    return outbox, transport, socket, overflow


class TestFrames:
    async def test_a_server_that_takes_encoded_frames_is_given_them(self) -> None:
        outbox, transport, socket, _ = make_frame_outbox()
        frame = Frame("shared")
        outbox.push(frame)
        outbox.push("single")
        assert transport.frames == [frame.wire, text_frame(b"single")]
        assert transport.frames[0] is frame.wire
        assert socket.sent == []

    async def test_several_frames_are_one_write_unless_the_outbox_is_paused(self) -> None:
        outbox, transport, _, overflow = make_frame_outbox()
        outbox.push_all(["a", "b"])
        outbox.push_all([])
        outbox.push_all(["c"])
        outbox.pause()
        outbox.push_all(["d", "e"])
        outbox.resume()
        assert transport.frames == [wire("a") + wire("b"), wire("c"), wire("d"), wire("e")]
        assert overflow.calls == 0

    async def test_an_error_of_the_transport_when_several_frames_are_written_closes_the_outbox(self) -> None:
        outbox, transport, _, _ = make_frame_outbox()
        transport.error = OSError("gone")
        outbox.push_all(["a", "b"])
        assert (outbox.closed, outbox.ready) == (True, None)

    async def test_frames_for_a_full_buffer_are_queued_and_sent_in_order(self) -> None:
        outbox, transport, _, overflow = make_frame_outbox()
        transport.room = 2
        for text in "abcdef":
            outbox.push(text)
        assert transport.texts == "ab"
        assert outbox.ready is None
        transport.room = 2
        outbox.resume()
        assert transport.texts == "abcd"
        outbox.push("g")
        transport.room = 1000
        outbox.resume()
        await outbox.drained()
        outbox.push("h")
        assert transport.texts == "abcdefgh"
        assert outbox.ready is not None
        assert overflow.calls == 0

    async def test_the_size_of_queued_frames_is_bounded(self) -> None:
        outbox, transport, _, overflow = make_frame_outbox(limit=10)
        transport.room = 1
        for _ in range(20):
            outbox.push("xxxx")
        assert (overflow.calls, outbox.closed, len(transport.frames)) == (1, True, 1)
        outbox.resume()
        assert len(transport.frames) == 1

    async def test_an_error_of_the_transport_closes_the_outbox(self) -> None:
        outbox, transport, _, _ = make_frame_outbox()
        transport.error = OSError("gone")
        outbox.push("a")
        assert (outbox.closed, outbox.ready) == (True, None)

    async def test_an_error_of_the_transport_when_queued_frames_are_written_closes_the_outbox(self) -> None:
        outbox, transport, _, _ = make_frame_outbox()
        outbox.pause()
        outbox.push("a")
        transport.error = OSError("gone")
        outbox.resume()
        assert outbox.closed
        await outbox.drained()

    async def test_the_close_is_sent_by_the_server_after_all_frames(self) -> None:
        outbox, transport, socket, _ = make_frame_outbox()
        transport.room = 1
        outbox.push("a")
        outbox.push("b")
        closing = asyncio.ensure_future(outbox.close(1000, timeout=5))
        await asyncio.sleep(0)
        outbox.resume()
        assert await closing
        outbox.push("c")
        assert (transport.texts, socket.sent) == ("ab", ["websocket.close"])


#: The text of a frame that is long enough to be compressed.
LONG = '{"text":"' + "again and again " * 50 + '"}'


class TestCompression:
    def outbox(self, form: type[Frame]) -> tuple[Outbox, Transport]:
        socket, transport = Socket(), Transport()
        return Outbox(
            socket.send, account=Account(10**6), overflow=Overflow(), write=transport.write, form=form
        ), transport

    async def test_a_client_without_compression_is_sent_plain_frames(self) -> None:
        outbox, transport = self.outbox(Frame)
        texts = [LONG, Frame(LONG), CompressedFrame(LONG)]
        for text in texts:
            outbox.push(text)
        outbox.push_all(texts)
        outbox.pause()
        outbox.push(CompressedFrame(LONG))
        outbox.resume()
        plain = text_frame(LONG.encode())
        assert transport.frames == [plain, plain, plain, plain * 3, plain]

    async def test_clients_with_compression_share_a_frame_that_was_compressed_once(self) -> None:
        outbox, transport = self.outbox(CompressedFrame)
        shared = CompressedFrame(LONG)
        outbox.push(shared)
        outbox.push_all([shared, LONG])
        outbox.pause()
        outbox.push(LONG)
        outbox.resume()
        compressed = compressed_frame(LONG.encode())
        assert compressed[0] & 0x40
        assert transport.frames == [compressed, compressed * 2, compressed]
        assert transport.frames[0] is shared.wire

    async def test_clients_with_compression_share_plain_frames(self) -> None:
        """For example, a ping is encoded only once for all clients."""
        outbox, transport = self.outbox(CompressedFrame)
        ping = Frame(LONG)
        outbox.push(ping)
        assert transport.frames[0] is ping.wire
