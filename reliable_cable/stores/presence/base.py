"""The interface of presence stores, which store the members of streams."""

from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from reliable_cable.stores.base import Listener, Store, async_twin

#: How long, in seconds, a client may be unreachable before the server closes its connection. Leaves are remembered this
#: much longer than sessions, so that a restored client can be sent all leaves that it missed.
UNHEARD_TIME: Final = 60.0

#: The store assumes an outage if no process has called `expire` for this share of PRESENCE_TTL. Each process refreshes
#: its members and then calls `expire` every third of PRESENCE_TTL, so the share must be greater than 1/3. It must be
#: less than 2/3: at each refresh, a member has 2/3 of its TTL left.
OUTAGE_SHARE: Final = 0.5


@dataclass(frozen=True, slots=True)
class PresenceEvent:
    """The event that a member joined or left a stream (see Protocol: Presence)."""

    stream: str
    type: Literal["join", "leave"]
    id: str
    info: Any = None


@dataclass(frozen=True, slots=True)
class PresenceMissed:
    """The event that presence events of a stream may have been missed. The receiver must read the members again."""

    stream: str


@dataclass(frozen=True, slots=True)
class PresenceInfo:
    """The members of a stream.

    Args:
        total: the number of members.
        records: the members' infos by id, in the order of their joins. None if only the total was requested.
        incarnation: identifies the data of the stream. If it differs from an earlier one, the store lost data in
            between. `""` means that the store has no data of the stream.
    """

    total: int
    records: Mapping[str, Any] | None = field(default_factory=dict)
    incarnation: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Member:
    """One session of a member of a stream.

    Args:
        stream: the name of the stream.
        session: the key of the session.
        id: the id of the member.
        info: the info of the session.
        joined: whether the session joined before, so that the store should have it.
        replaces: the key of the former session of the same client, or `""`. If the former session has the same member
            id, the new session takes its place in the order of joins, and the former session ends.
    """

    stream: str
    session: str
    id: str
    info: Any = None
    joined: bool = False
    replaces: str = ""


@dataclass(frozen=True, slots=True)
class Refreshed:
    """The result of a refresh.

    Args:
        unknown: the (stream, session) pairs that the store does not have, because they expired or were lost.
        incarnations: the incarnations of the streams, by name (see `PresenceInfo`).
    """

    unknown: Sequence[tuple[str, str]]
    incarnations: Mapping[str, str]


class PresenceListener(Listener):
    """Receives the presence events of streams. `PresenceStore.listen` returns one."""


class PresenceStore(Store):
    """Stores the members of streams.

    A member is an id (a string) with an info (any JSON value). It has one or more sessions, one for each connection and
    subscription, each with an opaque key. A session ends with `leave`. It also ends when `expire` is called and
    `settings.presence_ttl` seconds have passed since its last `refresh`, or `settings.presence_grace` since `shorten`.

    Exactly one join event is announced when the first session of a member joins, and exactly one leave event when the
    last session ends. If a session joins with another id, it leaves the first id.

    Each session has its own info, which it changes by joining again. The info of a member is that of its earliest
    session, so sessions that join later do not change the member's info. Changes of a member's info are not announced.

    Events are announced to the listeners of all processes that share the store. The call that caused an event also
    returns the event, so that exactly one process can act on it. If the response to the call is lost, no process can.
    """

    @property
    def outage(self) -> float:
        """How long, in seconds, the store waits for a call of `expire` by any process before it assumes an outage."""
        return self.settings.presence_ttl * OUTAGE_SHARE

    @property
    def memory(self) -> float:
        """How long, in seconds, the store remembers leaves."""
        return self.settings.sessions_ttl + UNHEARD_TIME

    def join(self, stream: str, session: str, id: str, info: Any = None) -> list[PresenceEvent]:  # noqa: A002
        """Add a session to a stream, or refresh it; return the events that this caused.

        Args:
            stream: the name of the stream.
            session: the key of the session.
            id: the id of the member.
            info: the info of the session.

        Raises:
            TypeError: `info` is not a JSON value.
            ValueError: `info` is not a JSON value.
            StoreError: the store failed. Whether the session was added is unknown.
        """
        return self.join_all([Member(stream, session, id, info)])

    @abstractmethod
    def join_all(self, members: Sequence[Member]) -> list[PresenceEvent]:
        """Add sessions to streams, or refresh them, in this order; return the events that this caused.

        If the store has lost its data, the joins of members with `joined` are announced, so that all rosters become
        complete again. These events are not returned, because no member has really joined. If the leave of such a
        member was announced before, the member does join again, and the event is returned.
        """

    @abstractmethod
    def leave(self, stream: str, session: str) -> list[PresenceEvent]:
        """Remove a session from a stream; return the events that this caused. An unknown session is ignored."""

    def shorten(self, stream: str, session: str) -> None:
        """Let a session expire after `settings.presence_grace` seconds, if it would expire later.

        An unknown session is ignored. A later `refresh` or `join` of the session renews the TTL as usual. In a store
        that does not override this method, the session expires after the TTL.
        """

    @abstractmethod
    def refresh(self, held: Mapping[str, Collection[str]]) -> Refreshed:
        """Renew the TTL of sessions.

        Args:
            held: the keys of the sessions, by stream. A stream may have no sessions, if only its incarnation is
                needed. If the store has no data of a stream, this call begins an incarnation.
        """

    @abstractmethod
    def expire(self) -> list[PresenceEvent]:
        """Remove the expired sessions of all streams; return the leave events that this caused.

        Each process calls this method after each `refresh`. If no process has called it for `outage` seconds, sessions
        could not be refreshed either. Then no session is removed for the next `presence_ttl` seconds.
        """

    @abstractmethod
    def info(self, stream: str, *, records: bool = True, overdue: bool = True) -> PresenceInfo:
        """Return the members of a stream.

        Args:
            stream: the name of the stream.
            records: whether to return the members' infos. If not, only the total is returned.
            overdue: whether to include members whose sessions have all expired. The next `expire` announces their
                leaves.
        """

    @abstractmethod
    def left_within(self, stream: str, seconds: float) -> list[str]:
        """Return the ids that left a stream in the last `seconds` seconds and did not join again.

        Args:
            stream: the name of the stream.
            seconds: how far back to look. The store remembers leaves for `memory` seconds.
        """

    @abstractmethod
    def listen(self, deliver: Callable[[PresenceEvent | PresenceMissed], None]) -> PresenceListener:
        """Return a listener that calls `deliver` with events on the running event loop.

        `deliver` is never called from inside a method of the listener or of the store.
        """

    ajoin_all = async_twin(join_all)
    aleave = async_twin(leave)
    ashorten = async_twin(shorten)
    arefresh = async_twin(refresh)
    aexpire = async_twin(expire)
    ainfo = async_twin(info)
    aleft_within = async_twin(left_within)
