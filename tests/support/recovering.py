"""A client that recovers like the npm client in the extended protocol. The storm (tests/storm) uses it, too.

It stores one position for each stream id, shared by all identifiers, and requests history with these positions. It
trusts `restored_ids`. It closes a channel if the connection is lost while its `subscribe` is unanswered. This module
then creates the channel again, as an application must do (see Protocol: Subscriptions).

It knows the members of a channel as the npm client does: it requests them once after each new subscription, keeps them
over a restore, and updates them with join and leave events.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections import defaultdict
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from websockets.exceptions import WebSocketException

from tests.support.client import PATIENCE, Client, Frame

#: The longest pause, in seconds, between two attempts to connect.
RETRY = 0.1
#: How long, in seconds, to wait for an answer before a subscribe is sent again.
REPEAT = 5.0


class RecoveringClient:
    """A client that reconnects and recovers, and records all messages that it receives.

    Args:
        url: the WebSocket URL of the server.
        cookie: the header `Cookie` of the handshakes.
        since: the time of the page's rendering, which the client sends as `since`; None: now.
        restoring: whether the client asks the server to restore its session.
    """

    def __init__(self, url: str, *, cookie: str = "", since: int | None = None, restoring: bool = True) -> None:
        self._url = url
        self._cookie = cookie
        self._restoring = restoring
        self.sid = ""
        self.since = int(time.time()) if since is None else since
        #: The position of the last received message by stream id, shared by all identifiers.
        self.positions: dict[str, Frame] = {}
        self.stream_ids: defaultdict[str, set[str]] = defaultdict(set)
        #: The state by identifier: "connecting", "pending" (subscribe was sent), "connected" or "closed".
        self.channels: dict[str, str] = {}
        #: The received payloads by identifier, in the order of arrival.
        self.received: defaultdict[str, list[Any]] = defaultdict(list)
        #: The `info` events by identifier: `history_received` and `history_not_found`.
        self.infos: defaultdict[str, list[str]] = defaultdict(list)
        #: The member with which the client joined presence, by identifier.
        self.joined: dict[str, Frame] = {}
        #: The known members by identifier, after `watch`; None: the client has requested them, or will request them.
        self.members: dict[str, dict[str, Any] | None] = {}
        self.connects = self.restores = self.recreated = 0
        #: Violations of the protocol by the server, for example unexpected confirmations.
        self.complaints: list[Frame] = []
        self._late_joins: set[str] = set()
        self._client: Client | None = None
        self._wanted = True
        self._changed = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._wanted = False
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        if self._client is not None:
            await self._client.close()

    # -- the application's side ---------------------------------------------------------------------------------------

    async def subscribe(self, identifier: str) -> None:
        """Subscribe, at once or after the next connect, and wait for the confirmation."""
        self.channels[identifier] = "connecting"
        if self._client is not None and self.connected:
            await self._send_subscribe(self._client, identifier)
        await self.wait_for(lambda: self.channels[identifier] == "connected")

    async def perform(self, identifier: str, action: str, **data: Any) -> None:
        """Call an action of a connected channel."""
        assert self._client is not None, "there is no connection"
        await self._client.perform(identifier, action, **data)

    async def watch(self, identifier: str) -> None:
        """Request the members of a subscribed channel, and keep them up to date."""
        self.members[identifier] = None
        await self._say("presence", identifier)

    async def join(self, identifier: str, id: str, info: Any = None) -> None:  # noqa: A002 - the wire's name
        """Join the presence of a subscribed channel, and join again after each reconnect, until `leave` is called."""
        self.joined[identifier] = {"id": id, "info": info}
        if self.channels.get(identifier) == "pending":
            # The pending subscribe was sent before this join, so it does not contain the member.
            self._late_joins.add(identifier)
        await self._say("join", identifier, presence=self.joined[identifier])

    async def leave(self, identifier: str) -> None:
        """Leave the presence of a channel."""
        del self.joined[identifier]
        await self._say("leave", identifier)

    async def cut(self) -> bool:
        """Reset the connection if the server has sent its welcome. Return whether it was reset."""
        client = self._client
        if client is None or not self.connected:
            return False
        await client.cut()
        return True

    @property
    def connected(self) -> bool:
        """Whether the server has sent its welcome on this connection."""
        return self._client is not None and bool(self._client.welcome)

    async def wait_for(self, condition: Callable[[], bool], timeout: float = 3 * PATIENCE) -> None:  # noqa: ASYNC109
        """Wait until a condition about this client is true."""
        async with asyncio.timeout(timeout), self._changed:
            await self._changed.wait_for(condition)

    async def wait_for_messages(self, identifier: str, count: int) -> None:
        """Wait until a number of messages has arrived for an identifier."""
        await self.wait_for(lambda: len(self.received[identifier]) >= count)

    # -- the protocol -------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while self._wanted:
            client = Client(self._url, sid=self.sid if self._restoring else "", cookie=self._cookie)
            try:
                await client.open()
                self._client = client
                await self._serve(client)
            except (OSError, WebSocketException, AssertionError, TimeoutError):
                pass  # the connection was refused or lost
            finally:
                self._client = None
                await client.close()
            await self._dropped()
            await asyncio.sleep(random.uniform(0, RETRY))

    async def _serve(self, client: Client) -> None:
        while True:
            # In the npm client, each ping updates `since`. `Client` does not return pings, so here, each message after
            # the first ping updates it.
            frame = await client.next(timeout=120)
            if client.pings:
                self.since = int(time.time())
            await self._receive(client, frame)
            async with self._changed:
                self._changed.notify_all()

    async def _receive(self, client: Client, frame: Frame) -> None:
        kind, identifier = frame.get("type"), frame.get("identifier", "")
        if kind == "welcome":
            await self._welcomed(client, frame)
        elif kind == "disconnect":
            self.sid = ""
            client.socket.transport.abort()
        elif kind == "confirm_subscription":
            if self.channels.get(identifier) != "pending":
                self.complaints.append(frame)
                return await client.send("unsubscribe", identifier)
            self.channels[identifier] = "connected"
            if identifier in self.members:
                await self.watch(identifier)
            if identifier in self._late_joins and identifier in self.joined:
                await self._say("join", identifier, presence=self.joined[identifier])
            self._late_joins.discard(identifier)
        elif kind == "presence":
            self._receive_presence(identifier, frame["message"])
        elif kind == "reject_subscription":
            self.complaints.append(frame)
            self.channels[identifier] = "closed"
        elif kind in ("confirm_history", "reject_history"):
            self.infos[identifier].append("history_received" if kind == "confirm_history" else "history_not_found")
        elif frame.get("message"):
            if "stream_id" in frame:
                self.stream_ids[identifier].add(frame["stream_id"])
                self.positions[frame["stream_id"]] = {"epoch": frame["epoch"], "offset": frame["offset"]}
            self.received[identifier].append(frame["message"])

    def _receive_presence(self, identifier: str, message: Frame) -> None:
        if identifier not in self.members:
            return
        members = self.members[identifier]
        if message["type"] == "info" and members is None:
            self.members[identifier] = {record["id"]: record["info"] for record in message["records"]}
        elif message["type"] == "join" and members is not None:
            members[message["id"]] = message["info"]
        elif message["type"] == "leave" and members is not None:
            members.pop(message["id"], None)

    async def _welcomed(self, client: Client, frame: Frame) -> None:
        client.welcome = frame
        self.sid = frame["sid"]
        self.connects += 1
        restored = frame.get("restored_ids", []) if frame.get("restored") else []
        self.restores += bool(frame.get("restored"))
        for identifier in restored:
            await client.send("history", identifier, history=self._history(identifier))
            if identifier in self.joined:
                await client.send("join", identifier, presence=self.joined[identifier])
        for identifier in list(self.channels):
            if identifier in restored:
                self.channels[identifier] = "connected"
            else:
                if identifier in self.members:
                    self.members[identifier] = None
                await self._send_subscribe(client, identifier)

    def _history(self, identifier: str) -> Frame:
        known = {name: self.positions[name] for name in self.stream_ids[identifier] if name in self.positions}
        return {"since": self.since, "streams": known}

    def _request(self, identifier: str) -> Frame:
        joined = self.joined.get(identifier)
        return {"history": self._history(identifier), **({"presence": joined} if joined else {})}

    async def _say(self, command: str, identifier: str, **body: Any) -> None:
        """Send a command if its channel is connected. Other methods repeat important commands after a reconnect."""
        if self._client is not None and self.channels.get(identifier) == "connected":
            with contextlib.suppress(WebSocketException):
                await self._client.send(command, identifier, **body)

    async def _send_subscribe(self, client: Client, identifier: str) -> None:
        self.channels[identifier] = "pending"
        self._late_joins.discard(identifier)
        await client.send("subscribe", identifier, **self._request(identifier))
        asyncio.get_running_loop().call_later(REPEAT, self._repeat, client, identifier)

    def _repeat(self, client: Client, identifier: str) -> None:
        if self._client is client and self.channels.get(identifier) == "pending":
            frame = json.dumps({"command": "subscribe", "identifier": identifier, **self._request(identifier)})
            self._repeating = asyncio.ensure_future(self._send_again(client, frame))

    async def _send_again(self, client: Client, frame: str) -> None:
        with contextlib.suppress(WebSocketException):
            await client.send_raw(frame)

    async def _dropped(self) -> None:
        for identifier, state in self.channels.items():
            if state == "pending":
                # The npm client closes the channel here without an error, and the application creates it again.
                self.recreated += 1
            self.channels[identifier] = "connecting"
        async with self._changed:
            self._changed.notify_all()
