"""The base class of presence stores, which store the members of streams."""

from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from reliable_cable.stores.base import Listener, Store, async_twin

#: How long, in seconds, a client may be unreachable before the server closes its connection. Leaves are remembered for
#: this time in addition to the TTL of sessions. So a restored client can be sent all leaves that it has missed.
UNHEARD_TIME: Final = 60.0

#: The share of PRESENCE_TTL after which the store assumes an outage if no process has called `expire`. Each process
#: refreshes its members and then calls `expire` in every third of PRESENCE_TTL. So the share must be greater than 1/3.
#: It must be less than 2/3, because a member has 2/3 of its TTL left at each refresh.
OUTAGE_SHARE: Final = 0.5


@dataclass(frozen=True, slots=True)
class PresenceEvent:
    """The event for a member who has joined or left a stream (see Protocol: Presence)."""

    stream: str
    type: Literal["join", "leave"]
    id: str
    info: Any = None


@dataclass(frozen=True, slots=True)
class PresenceMissed:
    """The event for a stream whose presence events may have been missed. The receiver must read the members again."""

    stream: str


@dataclass(frozen=True, slots=True)
class PresenceInfo:
    """The members of a stream.

    Args:
        total: the number of members.
        records: the infos of the members by id, in the order of the joins; None if only the total was requested.
        incarnation: the incarnation of the stream's presence data. If it has changed, the store has lost data. It is
            `""` if the store has no data of the stream.
    """

    total: int
    records: Mapping[str, Any] | None = field(default_factory=dict)
    incarnation: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Member:
    """A session of a member of a stream.

    Args:
        stream: the name of the stream.
        session: the key of the session.
        id: the id of the member.
        info: the info of the session.
        joined: whether the session has joined before, so that the store should already have it.
        replaces: the key of the client's former session; `""` if there is none. If that session has the same member id,
            the new session takes its place in the order of joins, and the former session ends.
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
        unknown: the (stream, session) pairs that the store does not have, because they have expired or were lost.
        incarnations: the incarnations of the streams, by name (see `PresenceInfo`).
    """

    unknown: Sequence[tuple[str, str]]
    incarnations: Mapping[str, str]


class PresenceListener(Listener):
    """Receives the presence events of streams. `PresenceStore.listen` returns a listener."""


class PresenceStore(Store):
    """Stores the members of streams.

    A member is an id (a string) with an info (any JSON value). It has a session for each subscription in which it has
    joined. A session has an opaque key. It ends with `leave`. A call of `expire` also ends it if its last `refresh` was
    more than `settings.presence_ttl` seconds ago, or `shorten` was more than `settings.presence_grace` seconds ago.

    Exactly one join event is announced when the first session of a member joins, and exactly one leave event when the
    last session ends. If a session joins with another id, it leaves the first id.

    Each session has an info of its own, which changes if the session joins again. The info of a member is that of its
    earliest session. Changes of an info are not announced.

    Events are announced to the listeners of all processes that share the store. The call that has caused an event also
    returns it, so that exactly one process can act on the event. If the response to the call is lost, no process can.
    """

    @property
    def outage(self) -> float:
        """The time, in seconds, without a call of `expire` by any process, after which the store assumes an outage."""
        return self.settings.presence_ttl * OUTAGE_SHARE

    @property
    def memory(self) -> float:
        """How long, in seconds, the store remembers leaves."""
        return self.settings.sessions_ttl + UNHEARD_TIME

    def join(self, stream: str, session: str, id: str, info: Any = None) -> list[PresenceEvent]:  # noqa: A002
        """Add a session to a stream, or refresh it. Return the resulting events.

        Args:
            stream: the name of the stream.
            session: the key of the session.
            id: the id of the member.
            info: the info of the session.

        Raises:
            TypeError: `info` is not a JSON value.
            ValueError: `info` is not a JSON value.
            StoreError: the store failed. The session may or may not have been added.
        """
        return self.join_all([Member(stream, session, id, info)])

    @abstractmethod
    def join_all(self, members: Sequence[Member]) -> list[PresenceEvent]:
        """Add sessions to streams, or refresh them, in this order. Return the resulting events.

        If the store has lost its data, members with `joined` are added again. Their joins are announced, so that all
        rosters are complete again. But the events are not returned, because no member has really joined. Only if the
        leave of such a member was announced before, the event is returned.
        """

    @abstractmethod
    def leave(self, stream: str, session: str) -> list[PresenceEvent]:
        """Remove a session from a stream. Return the resulting events. An unknown session is ignored."""

    def shorten(self, stream: str, session: str) -> None:
        """Let a session expire after `settings.presence_grace` seconds, unless it expires earlier.

        An unknown session is ignored. A later `refresh` or `join` of the session renews the TTL as usual. A store need
        not override this method. The session then expires after the TTL.
        """

    @abstractmethod
    def refresh(self, held: Mapping[str, Collection[str]]) -> Refreshed:
        """Renew the TTL of sessions.

        Args:
            held: the keys of the sessions, by stream. The keys of a stream may be empty, if only its incarnation is
                needed. If the store has no data of a stream, this call begins an incarnation.
        """

    @abstractmethod
    def expire(self) -> list[PresenceEvent]:
        """Remove the expired sessions of all streams. Return the resulting leave events.

        Each process calls this method after each `refresh`. If no process has called it for `outage` seconds, sessions
        could not be refreshed either. So no sessions are removed in the next `presence_ttl` seconds.
        """

    @abstractmethod
    def info(self, stream: str, *, records: bool = True, overdue: bool = True) -> PresenceInfo:
        """Return the members of a stream.

        Args:
            stream: the name of the stream.
            records: whether to return the infos of the members. Otherwise, only the total is returned.
            overdue: whether to include members whose sessions have all expired. The next call of `expire` announces
                their leaves.
        """

    @abstractmethod
    def left_within(self, stream: str, seconds: float) -> list[str]:
        """Return the ids that have left a stream and have not joined again.

        Args:
            stream: the name of the stream.
            seconds: the age, in seconds, up to which leaves are returned. The store remembers leaves for `memory`
                seconds.
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
