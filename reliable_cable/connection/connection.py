"""`Connection`, which stores the state and the session ids of a connection, handles its frames, and closes its socket.

See Architecture: The life of a connection. `lifecycle.py` opens and ends connections, and `commands.py` handles their
commands.
"""

import asyncio
import secrets
import time
from collections.abc import Callable, Collection, Mapping
from contextvars import Context, copy_context
from dataclasses import KW_ONLY, InitVar, dataclass, field
from enum import Enum
from typing import Any, Final, TypeVar

from reliable_cable.client_log import ClientLog
from reliable_cable.exceptions import ProtocolError
from reliable_cable.hub.hub import Hub
from reliable_cable.identity import Identity
from reliable_cable.logins import AnyLogin
from reliable_cable.logs import logger
from reliable_cable.namespaces import namespace_of
from reliable_cable.protocol import commands as protocol_commands
from reliable_cable.protocol import messages
from reliable_cable.protocol.constants import CLOSE_NORMAL, DisconnectReason, MessageType, Subprotocol
from reliable_cable.servers.base import Transport
from reliable_cable.servers.events import EventTransport
from reliable_cable.stores.sessions.base import SessionRecord

from .account import JOIN_RATE, Account
from .closing import CLOSINGS, Notified, SessionFate
from .command_queue import CommandQueue
from .event_outbox import EventOutbox
from .handlers import invoke_isolated, run_in_context
from .outbox import Outbox
from .stream_ids import StreamIds
from .subscribed import Subscribed

T = TypeVar("T")

#: The number of faults that are counted for a frame that violates the protocol (see `account.MAX_FAULTS`).
FRAME_FAULT: Final = 10
#: The number of faults that are counted for an error of a handler, even an error that only refuses the client.
HANDLER_FAULT: Final = 1
#: The maximum number of bytes that one character takes in UTF-8.
_BYTES_PER_CHARACTER: Final = 4
#: How long, in seconds, a connection that is being closed may take to send its queued frames. Before that, `drain`
#: waits for the queued commands, for at most the same time.
CLOSE_TIMEOUT: Final = 2.0


class ConnectionState(Enum):
    """The states of a connection, in the order in which they follow each other."""

    #: The client has not yet been sent the welcome or, after a restore, the transmissions of the handlers.
    OPENING = "opening"
    #: Commands are read and handled.
    OPEN = "open"
    #: Frames of the client are ignored. Queued frames are still sent.
    CLOSING = "closing"
    #: The socket is closed.
    CLOSED = "closed"


@dataclass(slots=True, eq=False, repr=False)
class Connection:
    """The server side of one WebSocket connection.

    Args:
        hub: the hub of this event loop.
        consumer: the consumer, which channels see as `self.connection`.
        subprotocol: the subprotocol that was negotiated.
        identity: the values that identify the owner of the connection, as strings.
        authenticated_at: the time of the client's authentication, by the monotonic clock of `Engine.session_clock`.
        ping_interval: the time between two pings, in seconds.
        transport: the object that writes to the socket and can abort it.
        login: the login that authenticated the client, or None if there was none.
        expires_at: the time at which the client's token expires, in seconds since 1970. None means never.
    """

    hub: Hub
    consumer: Any
    _: KW_ONLY
    subprotocol: InitVar[Subprotocol]
    identity: Identity
    authenticated_at: float
    ping_interval: float
    transport: Transport
    login: AnyLogin | None = None
    expires_at: float | None = None
    #: A copy of the `contextvars` context in which the connection was created. Each handler runs in a new copy of it.
    context: Context = field(default_factory=copy_context)
    state: ConnectionState = ConnectionState.OPENING
    #: The time at which the socket was closed, by the monotonic clock of `Engine.session_clock`; None while it is open.
    closed_at: float | None = None
    #: Whether the server has closed the connection for a reason after which no client may restore the session.
    refused: bool = False
    #: The ids by which the session is known: its own id, then the ids of the sessions that it continues, latest first.
    sids: tuple[str, ...] = field(default_factory=lambda: (secrets.token_urlsafe(18),))
    #: Whether the client speaks the extended protocol.
    extended: bool = field(init=False)
    #: Whether the session can be restored.
    resumable: bool = field(init=False)
    stream_ids: StreamIds = field(init=False)
    #: Counts the bytes, the joins and the faults of the client.
    account: Account = field(init=False)
    outbox: Outbox = field(init=False)
    #: The queue that handles the client's commands. The attribute is deleted when the connection has ended.
    commands: CommandQueue = field(init=False)
    subscriptions: Mapping[str, Subscribed] = field(default_factory=dict)
    #: The number of the tick at which the connection is pinged next (see `heartbeat.TICK`). Only the heartbeat uses
    #: this attribute.
    ping_due: int = 0
    #: Called with each error that a handler raises, even an error that refuses the client. Only the test kit sets this.
    on_error: Callable[[BaseException], object] = lambda error: None
    #: Whether the server has stopped reading frames of the client for now (see `reading.Reading`).
    reading_paused: bool = False
    _last_pong: float | None = None
    #: How many pings were sent.
    _pings: int = 0
    #: How many pongs were received. The nth pong counts as the answer to the nth ping.
    _pongs: int = 0
    #: The number of the first ping after the latest notice of a loss. The answer to it shows that the notice was read.
    _notice_ping: int = 0
    _log: ClientLog | None = None

    def __post_init__(self, subprotocol: Subprotocol) -> None:
        self.extended = subprotocol.extended
        self.resumable = self.extended and self.transport.has_sessions and self.hub.sessions.enabled
        self.stream_ids = StreamIds(extended=self.extended)
        self.account = Account(self.hub.settings.max_pending_size, self.hub.settings.max_subscriptions)
        options: dict[str, Any] = {
            "account": self.account,
            "overflow": self._too_slow,
            "write": self.transport.write,
            "form": self.transport.form,
            "unsent": self.transport.unsent,
        }
        if isinstance(self.transport, EventTransport):
            options |= {"transport": self.transport, "subscriptions": lambda: self.subscriptions.values()}
            self.outbox = EventOutbox(self.transport.send, **options)
        else:
            self.outbox = Outbox(self.transport.send, **options)

    @property
    def authenticated(self) -> float:
        """The time at which the client was authenticated, by the session store's clock."""
        return self.hub.engine.session_clock.at(self.authenticated_at)

    @property
    def namespace(self) -> str:
        """The namespace of the connection, or `""` if it has none."""
        return namespace_of(self.consumer)

    @property
    def sid(self) -> str:
        """The session id that the client is sent in the welcome."""
        return self.sids[0]

    @property
    def closed(self) -> bool:
        """Whether the socket is closed."""
        return self.state is ConnectionState.CLOSED

    @property
    def ending(self) -> bool:
        """Whether the connection is closed or being closed."""
        return self.state in (ConnectionState.CLOSING, ConnectionState.CLOSED)

    # -- the session --------------------------------------------------------------------------------------------------

    def record(self) -> SessionRecord:
        """Return the current session record."""
        clock = self.hub.engine.session_clock
        return SessionRecord(
            self.identity,
            self.authenticated,
            {
                "sids": list(self.sids[1:]),
                "alive": not self.closed,
                "left_at": clock.now() if self.closed_at is None else clock.at(self.closed_at),
                # If a subscription is left out here, the client subscribes again, and requests its history.
                "subscriptions": [each.record() for each in self.subscriptions.values() if each.restorable],
            },
            self.account.lasting,
        )

    def changed(self) -> None:
        """Schedule a write of the session record, because something in it has changed."""
        if self.resumable:
            self.hub.sessions.changed(self)

    async def save(self) -> bool:
        """Save the session record before the client sees the effect of a change.

        Returns:
            Whether the client may see the effect. False means that the change could not be saved. The client is then
            disconnected and forgets its session, because a restore on another server would undo the change.
        """
        if not self.resumable:
            return True
        if await self.hub.sessions.save(self):
            return True
        logger.warning("A session could not be saved. Its client is disconnected, and subscribes again.")
        self.close(DisconnectReason.REMOTE, reconnect=True)
        return False

    def forget_session(self) -> None:
        """Delete the session, so that no client can restore it."""
        if self.resumable:
            self.resumable = False
            self.hub.sessions.void(self)

    # -- handlers -----------------------------------------------------------------------------------------------------

    async def run_isolated(self, call: Callable[[], T]) -> T:
        """Run sync code like a sync handler: in a thread, in a copy of the context, inside `around_command`."""
        result: T = await run_in_context(self.context, invoke_isolated(self.consumer, call))
        return result

    # -- reading ------------------------------------------------------------------------------------------------------

    def receive(self, text: str | None) -> None:
        """Handle a text frame, or a binary frame if `text` is None. A command is queued, and handled later."""
        if self.state is not ConnectionState.OPEN:
            return
        try:
            if text is None:
                raise ProtocolError("binary frames are not part of this subprotocol")
            limit = self.hub.settings.max_message_size
            if len(text) * _BYTES_PER_CHARACTER > limit < len(text.encode()):
                raise ProtocolError(f"the frame is longer than MAX_MESSAGE_SIZE ({limit})")
            command = protocol_commands.parse(text, self.hub.settings.max_identifier_size)
        except protocol_commands.UnansweredSubscribeError as error:
            self.reject(error.identifier)
            self.bad_frame(error)
            return
        except ProtocolError as error:
            self.bad_frame(error)
            return
        if isinstance(command, protocol_commands.Pong):
            self._ponged()
        elif isinstance(command, protocol_commands.Ping):
            self.outbox.push(messages.pong())
        else:
            if isinstance(command, protocol_commands.Subscribe):
                command = self.transport.complete(command)
            self.commands.add(command, len(text))

    def pause_reading(self) -> None:
        """Stop reading frames for now. Meanwhile, the client need not answer pings, because no answers are read."""
        self.reading_paused = True
        self.transport.pause_reading()

    def resume_reading(self) -> None:
        """Read frames again. From now on, the client has the whole `PONG_TIMEOUT` to answer a ping."""
        self.reading_paused = False
        if self._last_pong is not None:
            self._last_pong = time.monotonic()
        self.transport.resume_reading()

    @property
    def log(self) -> ClientLog:
        """The logger for messages that the client can cause repeatedly. It limits their number."""
        if self._log is None:
            self._log = ClientLog()
        return self._log

    def end_log(self) -> None:
        """Log how many messages `log` has left out. Call this when the connection has ended."""
        if self._log is not None:
            self._log.report(ended=True)

    def bad_frame(self, error: ProtocolError) -> None:
        """Log a frame that violates the protocol, and count it as `FRAME_FAULT` faults."""
        self.log.warning("A frame was refused: %s.", error)
        self.count_fault(FRAME_FAULT)

    def count_fault(self, weight: int) -> None:
        """Count faults that the client has caused. Disconnect the client if there are too many."""
        if not self.account.may_fail(weight, time.monotonic()) and not self.ending:
            logger.warning("A client is disconnected: it sent too many broken frames, or too many handlers failed.")
            self.close(DisconnectReason.INVALID_REQUEST)

    def may_join(self) -> bool:
        """Count a join that the client requests. Return False if the client requests joins too often."""
        if self.account.may_join(time.monotonic()):
            return True
        self.log.warning("A join was refused: the client joins more often than %g times a second.", JOIN_RATE)
        return False

    def reject(self, identifier: str) -> None:
        """Tell the client that a subscription was rejected."""
        self.outbox.push(messages.acknowledgement(MessageType.REJECT_SUBSCRIPTION, identifier))

    def ping(self, frame: str) -> bool:
        """Send a ping, or close the connection if the client no longer answers pings.

        Returns:
            False if the connection needs no more pings.
        """
        timeout = self.hub.settings.pong_timeout
        # A client that has never sent a pong is not expected to send one.
        if timeout is not None and self._last_pong is not None and not self.reading_paused:
            if time.monotonic() - self._last_pong > timeout:
                self.close(DisconnectReason.NO_PONG)
                return False
        if self.ending:
            return False
        self.commands.end_if_idle()
        if self._log is not None:
            self._log.report()
        self._pings += 1
        self.outbox.push(frame)
        return True

    def _ponged(self) -> None:
        self._last_pong = time.monotonic()
        self._pongs += 1
        if self._pongs == self._notice_ping:
            for subscription in self.subscriptions.values():
                subscription.notice_read()
            self.changed()

    def notice_sent(self) -> None:
        """Record that a notice of a loss was sent. The answer to the next ping shows that the client has read it."""
        self._notice_ping = self._pings + 1

    # -- closing ------------------------------------------------------------------------------------------------------

    def revoke(self, identifiers: Collection[str], reason: str, at: float) -> None:
        """End subscriptions, and send the client the reason.

        An extended client ignores a `reject_subscription` that answers no command. So it has to reconnect, and then
        subscribes again. A base client is sent a `reject_subscription`. But if it seems to have subscribed after the
        revocation, it has to reconnect instead, because the clocks of the servers may differ.

        Args:
            identifiers: the identifiers of the subscriptions.
            reason: the text that tells the client why its subscriptions ended.
            at: the time of the revocation, by the session store's clock.
        """
        if self.closed:
            return  # a restore finds the revocation in the session store
        uncertain = any(self.subscriptions[identifier].authorized > at for identifier in identifiers)
        self.commands.revoke(identifiers, reason)
        if self.extended or uncertain:
            self.hub.tasks.spawn(self.drain(0))
        else:
            for identifier in identifiers:
                self.reject(identifier)

    def close(self, reason: DisconnectReason, *, reconnect: bool | None = None) -> None:
        """Close the connection. A further call can only give up the session or abort the socket.

        Args:
            reason: the reason for closing the connection. It decides how this is done (see `closing.CLOSINGS`).
            reconnect: whether the client is told to reconnect. None means that the reason decides.
        """
        closing = CLOSINGS[reason]
        if closing.session is SessionFate.FORGOTTEN:
            self.refused = True
            self.forget_session()
        elif self.resumable and closing.session is SessionFate.HANDED_OVER:
            # After a takeover, only the new connection writes records of this session.
            self.resumable = False
            self.hub.sessions.discard(self)
        was_ending = self.ending
        if not self.closed:
            self.state = ConnectionState.CLOSING
        if closing.abort:
            self.outbox.abandon()
            self.transport.abort()
        elif not was_ending:
            self.commands.clear()
            has_no_session = not self.extended or not self.transport.has_sessions
            if closing.notified is Notified.ALL or (closing.notified is Notified.BASE and has_no_session):
                asked = closing.reconnect if reconnect is None else reconnect
                self.outbox.push(messages.disconnect(reason, reconnect=asked))
            self.hub.tasks.spawn(self._finish(reading=closing.reading))

    async def drain(self, delay: float, reason: DisconnectReason = DisconnectReason.SERVER_RESTART) -> None:
        """Wait for `delay` seconds, then for the queued commands, and then close the connection."""
        await asyncio.sleep(delay)
        if not self.ending:
            await self.commands.finished(CLOSE_TIMEOUT)
        if not self.ending:  # another connection may have taken over the session meanwhile
            self.close(reason)

    def _too_slow(self) -> None:
        logger.warning("A client that reads too slowly was disconnected (too_slow).")
        self.close(DisconnectReason.TOO_SLOW)

    async def _finish(self, *, reading: bool) -> None:
        if not await self.outbox.close(CLOSE_NORMAL, timeout=CLOSE_TIMEOUT):
            self.transport.abort()
        elif not reading:
            self.transport.stop_reading()
            asyncio.get_running_loop().call_later(CLOSE_TIMEOUT, self.transport.abort)
