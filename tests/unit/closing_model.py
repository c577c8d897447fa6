"""A model of the effects on a client when its connection is closed, for each reason."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, ClassVar

from reliable_cable import Channel
from reliable_cable.connection.commands import Commands
from reliable_cable.protocol.constants import DisconnectReason
from tests.support.memory_socket import MemorySocket

EVERYTHING = 10**9
ANN = {"user": "ann"}


@dataclass(frozen=True, slots=True)
class Meaning:
    """The effects on a client when its connection is closed for one reason.

    Attributes:
        session: what happens to the session: it is "kept", "forgotten", or "handed over" to another connection.
        told: the clients that are sent a `disconnect` frame: "all", "base" or "none".
        reconnect: whether that frame makes the client reconnect, unless `close` is called with another `reconnect`.
        aborted: whether the socket is dropped at once.
    """

    session: str
    told: str
    reconnect: bool = False
    aborted: bool = False


#: The table in the docs (see Protocol: Disconnects), copied here, so that the tests compare the code with it.
MEANINGS = {
    "server_restart": Meaning("kept", "base", reconnect=True),
    "no_pong": Meaning("kept", "base", reconnect=True),
    "too_slow": Meaning("kept", "none", aborted=True),
    "superseded": Meaning("handed over", "none", aborted=True),
    "remote": Meaning("forgotten", "all"),
    "unauthorized": Meaning("forgotten", "all"),
    "token_expired": Meaning("forgotten", "all"),
    "idle_timeout": Meaning("forgotten", "all"),
    "invalid_request": Meaning("forgotten", "all", reconnect=True),
    "rate_limited": Meaning("forgotten", "all", reconnect=True),
}


class Room(Channel, abstract=True):
    """A channel whose `subscribed` and `resubscribed` wait for `gate` if `slow` is in the params."""

    gate: ClassVar[asyncio.Event]
    begun: ClassVar[list[str]]

    async def subscribed(self) -> None:
        self.begun.append(self.identifier)
        self.stream_from("a")
        if self.params.get("slow"):
            await self.gate.wait()

    async def resubscribed(self) -> None:
        if self.params.get("slow"):
            await self.gate.wait()


class Client:
    """A client. It reads from its latest connection only."""

    def __init__(self) -> None:
        #: The latest session id that the server has sent to it.
        self.sid = ""
        #: Its connections, in the order in which they were opened.
        self.peers: list[Peer] = []

    @property
    def can_restore(self) -> bool:
        """Whether it can try to restore its session: it has a session id, and no other connection is being opened."""
        return bool(self.sid) and all(peer.opening is None or peer.opening.done() for peer in self.peers)

    @property
    def restorable(self) -> bool | None:
        """Whether its session can be restored. None: the model cannot tell."""
        owners = [peer for peer in self.peers if peer.connection.sid == self.sid]
        successors = [peer for peer in self.peers if self.sid in peer.connection.sids[1:]]
        if any(self.sid in peer.forgotten for peer in self.peers):
            # If several connections restored one session, the last one has it. The model cannot tell which one it is.
            return None if len(successors) > 1 else False
        return None if not successors and owners[0].fate != "kept" else True


class Peer:
    """A connection of a client, and what the model expects of it.

    Args:
        client: the client.
        commands: the object that handles the commands of the connection.
        socket: its socket.
    """

    def __init__(self, client: Client, commands: Commands, socket: MemorySocket) -> None:
        self.client = client
        self.commands = commands
        self.connection = commands.connection
        self.socket = socket
        self.opening: asyncio.Task[None] | None = None
        self.end: asyncio.Task[None] | None = None
        #: The calls of `close`: the meaning of each reason, the reason, and the `reconnect` that the caller passed.
        self.closes: list[tuple[Meaning, DisconnectReason, bool | None]] = []
        self.closed_at = 0.0
        #: The state of its session that the model expects: "kept", "forgotten" or "handed over".
        self.fate = "kept"
        #: The ids of the sessions that this connection forgot. A session whose restore was still pending is not among
        #: them.
        self.forgotten: tuple[str, ...] = ()
        self.aborted = False
        self.left = False
        #: Whether the client reads each frame at once.
        self.reads = True
        self.log: list[Any] = []

    @property
    def due(self) -> dict[str, Any] | None:
        """The `disconnect` frame that the client is to be sent; None: no frame."""
        if not self.closes:
            return None
        meaning, reason, reconnect = self.closes[0]
        if meaning.told == "none" or (meaning.told == "base" and self.connection.extended):
            return None
        asked = meaning.reconnect if reconnect is None else reconnect
        return {"type": "disconnect", "reason": reason.value, "reconnect": asked}

    def record_close(self, reason: DisconnectReason, reconnect: bool | None, now: float) -> None:
        """Record a call of `close` in the model."""
        meaning = MEANINGS[reason.value]
        self.closed_at = self.closed_at or now
        self.closes.append((meaning, reason, reconnect))
        self.aborted = self.aborted or meaning.aborted
        # This connection cannot forget a session that another connection has taken over, and a forgotten session cannot
        # be taken over.
        if self.fate == "kept":
            self.fate = meaning.session
            if self.fate == "forgotten":
                self.forgotten = self.connection.sids
