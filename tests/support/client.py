"""A client of the protocol that sends the commands of a test and records all messages that it receives."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.extensions import ClientExtensionFactory
from websockets.typing import Subprotocol

EXTENDED = "actioncable-v1-ext-json"
BASE = "actioncable-v1-json"

#: How long, in seconds, to wait for an answer on a busy machine.
PATIENCE = 30.0

Frame = dict[str, Any]
Match = Mapping[str, Any] | Callable[[Frame], bool]

_numbers = itertools.count(1)


def unique(prefix: str) -> str:
    """Return a name that no other call in this test process returns."""
    return f"{prefix}{next(_numbers)}"


def identify(channel: str, **params: Any) -> str:
    """Return the identifier of a subscription, as a client writes it."""
    return json.dumps({"channel": channel, **params})


def matches(frame: Frame, match: Match) -> bool:
    """Return whether a frame satisfies a function, or has all items of a mapping.

    Mappings inside the mapping are matched in the same way.
    """
    if callable(match):
        return match(frame)
    return all(
        key in frame
        and (
            matches(frame[key], wanted)
            if isinstance(wanted, Mapping) and isinstance(frame[key], dict)
            else frame[key] == wanted
        )
        for key, wanted in match.items()
    )


class Client:
    """One connection. Use it with `async with`. When the block begins, a client that reads has received the welcome.

    Args:
        url: the WebSocket URL of the server.
        protocols: the subprotocols that the client offers.
        sid: the id of the session to restore, for the query string.
        query: other parameters of the query string, for example `pi=1`.
        headers: additional headers of the handshake.
        cookie: the header `Cookie` of the handshake.
        origin: the header `Origin` of the handshake.
        reading: whether the client reads. If not, the server can send only as much as the buffers of TCP can hold.
        extensions: the WebSocket extensions that the client offers.
    """

    def __init__(
        self,
        url: str,
        *,
        protocols: Sequence[str] = (EXTENDED,),
        sid: str = "",
        query: str = "",
        headers: Mapping[str, str] | None = None,
        cookie: str = "",
        origin: str = "http://127.0.0.1",
        reading: bool = True,
        extensions: Sequence[ClientExtensionFactory] = (),
    ) -> None:
        parts = [part for part in (f"sid={sid}" if sid else "", query) if part]
        self.url = url + ("?" + "&".join(parts) if parts else "")
        self.headers = {"Origin": origin, **({"Cookie": cookie} if cookie else {}), **(headers or {})}
        self.protocols = protocols
        self.reading = reading
        self.extensions = extensions
        #: All received messages except pings, in the order of arrival.
        self.log: list[Frame] = []
        #: The time of each ping, by the monotonic clock, and its content.
        self.pings: list[tuple[float, Any]] = []
        #: The time, by the monotonic clock, at which the handshake began.
        self.began_at = 0.0
        self.welcome: Frame = {}
        self._unread: deque[Frame] = deque()
        self._changed = asyncio.Condition()
        self._ended = False
        self._socket: ClientConnection | None = None
        self._reader: asyncio.Task[None] | None = None

    # -- the connection -----------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        await self.open()
        if self.reading:
            self.welcome = await self.expect({"type": "welcome"})
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def open(self) -> None:
        """Perform the handshake. If the server refuses it, this raises the error of `websockets`."""
        small = None
        if not self.reading:
            small = socket.socket()
            small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            small.setblocking(False)
            host, port = self.url.split("/")[2].split(":")
            await asyncio.get_running_loop().sock_connect(small, (host, int(port)))
        self.began_at = time.monotonic()
        self._socket = await connect(
            self.url,
            sock=small,
            subprotocols=[Subprotocol(name) for name in self.protocols] or None,
            additional_headers=self.headers,
            user_agent_header=None,
            compression=None,
            extensions=self.extensions or None,
            max_size=None,
            max_queue=None if self.reading else 1,
            ping_interval=None,
            close_timeout=2,
            proxy=None,
        )
        if self.reading:
            self._reader = asyncio.create_task(self._read())

    async def close(self, code: int = 1000) -> None:
        """Close the connection with a closing handshake. A client that does not read aborts the connection.

        Browsers send the code 1001 when a page is closed.
        """
        if self._socket is not None:
            if not self.reading:
                self._socket.transport.abort()
            await self._socket.close(code)
        if self._reader is not None:
            await asyncio.wait([self._reader])

    async def cut(self) -> None:
        """Reset the TCP connection, without a closing handshake."""
        connection: socket.socket = self.socket.transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.transport.abort()
        if self._reader is not None:
            await asyncio.wait([self._reader])

    @property
    def socket(self) -> ClientConnection:
        """The open WebSocket."""
        assert self._socket is not None, "the client is not connected"
        return self._socket

    @property
    def alive(self) -> bool:
        """Whether the connection is open, as far as the client knows."""
        return self._socket is not None and not self._ended

    @property
    def sid(self) -> str:
        """The id of the session."""
        return str(self.welcome["sid"])

    async def closed(self, timeout: float = PATIENCE) -> int | None:  # noqa: ASYNC109 - a test's patience
        """Wait until the server has closed the connection. Return the close code, or None if the server sent none."""
        async with asyncio.timeout(timeout):
            if self._reader is not None:
                await asyncio.wait([self._reader])
            await self.socket.wait_closed()
        received = self.socket.protocol.close_rcvd
        return received.code if received is not None else None

    async def _read(self) -> None:
        try:
            async for text in self.socket:
                frame = json.loads(text)
                if isinstance(frame, dict) and frame.get("type") == "ping":
                    self.pings.append((time.monotonic(), frame.get("message")))
                else:
                    self.log.append(frame)
                    self._unread.append(frame)
                async with self._changed:
                    self._changed.notify_all()
        except ConnectionClosed:
            pass
        finally:
            self._ended = True
            async with self._changed:
                self._changed.notify_all()

    # -- sending ------------------------------------------------------------------------------------------------------

    async def send_raw(self, data: str | bytes) -> None:
        """Send a string or bytes unchanged."""
        await self.socket.send(data)

    async def send(self, command: str, identifier: str | None = None, **body: Any) -> None:
        """Send a command. `body` contains the keys of the command other than `command` and `identifier`."""
        frame: Frame = {"command": command}
        if identifier is not None:
            frame["identifier"] = identifier
        await self.send_raw(json.dumps(frame | body))

    async def perform(self, identifier: str, action: str, **data: Any) -> None:
        """Call an action."""
        await self.send("message", identifier, data=json.dumps({"action": action, **data}))

    async def subscribe(self, identifier: str, **body: Any) -> str:
        """Subscribe, check that the next message is the confirmation, and return the identifier."""
        await self.send("subscribe", identifier, **body)
        await self.expect({"type": "confirm_subscription", "identifier": identifier})
        return identifier

    # -- receiving ----------------------------------------------------------------------------------------------------

    async def next(self, timeout: float = PATIENCE) -> Frame:  # noqa: ASYNC109 - a test's patience
        """Return the next message that is not a ping."""
        async with asyncio.timeout(timeout), self._changed:
            await self._changed.wait_for(lambda: self._unread or self._ended)
        if not self._unread:
            raise AssertionError(f"the connection was closed ({self.socket.close_code})")
        return self._unread.popleft()

    async def expect(self, match: Match, timeout: float = PATIENCE) -> Frame:  # noqa: ASYNC109 - a test's patience
        """Return the next message, and check that it matches."""
        try:
            frame = await self.next(timeout)
        except TimeoutError:
            raise AssertionError(f"expected {match}, but received nothing") from None
        assert matches(frame, match), f"expected {match}, not {frame}, before {list(self._unread)[:5]}"
        return frame

    async def until(self, match: Match, timeout: float = PATIENCE) -> list[Frame]:  # noqa: ASYNC109 - as above
        """Return all messages up to the first one that matches, including it."""
        frames: list[Frame] = []
        try:
            async with asyncio.timeout(timeout):
                while not frames or not matches(frames[-1], match):
                    frames.append(await self.next(timeout))
        except TimeoutError:
            raise AssertionError(f"expected {match}, but received {frames}") from None
        return frames

    async def messages(self, identifier: str, count: int, timeout: float = PATIENCE) -> list[Any]:  # noqa: ASYNC109
        """Return the payloads of the next messages, and check that they are all for this identifier."""
        return [
            (await self.expect(lambda frame: frame.get("identifier") == identifier and "message" in frame, timeout))[
                "message"
            ]
            for _ in range(count)
        ]

    async def ping(self, count: int, timeout: float = PATIENCE) -> list[float]:  # noqa: ASYNC109 - as above
        """Wait until `count` pings have arrived, or until the connection has ended.

        Return the times of all pings, in seconds since the handshake began.
        """
        async with asyncio.timeout(timeout), self._changed:
            await self._changed.wait_for(lambda: len(self.pings) >= count or self._ended)
        return [at - self.began_at for at, _ in self.pings]

    async def barrier(self) -> list[Frame]:
        """Wait until all earlier commands have been handled. Return the unread messages that have arrived by then.

        This requests the presence of an unknown subscription, which the server always answers in order.
        """
        name = unique("barrier ")
        await self.send("presence", name)
        return (await self.until({"type": "presence", "identifier": name}))[:-1]

    async def nothing(self) -> None:
        """Wait until all earlier commands have been handled, and check that there are no unread messages."""
        frames = await self.barrier()
        assert frames == []
