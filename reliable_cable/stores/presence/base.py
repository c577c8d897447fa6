"""The base class of presence stores, which store the members of streams."""

from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from reliable_cable.stores.base import Listener, Store, async_twin

#: The assumed maximum time, in seconds, from the loss of a client until its connection is closed. Its session can then
#: be restored for `sessions_ttl` seconds. Leaves are remembered for the sum of both times, so that a client whose
#: session is restored can be sent all leaves that it missed.
UNHEARD_TIME: Final = 60.0

#: If no process has called `expire` for PRESENCE_TTL times this number, the store assumes an outage. The number must be
#: more than 1/3, because a process may call `refresh` and `expire` only once in each third of PRESENCE_TTL. It must be
#: less than 2/3, because sessions have at least 2/3 of their TTL left when an outage begins, and must not expire before
#: the store assumes the outage.
OUTAGE_SHARE: Final = 0.5

#: After a search for expired sessions, further searches may be omitted for at most this time, in seconds.
SEARCH_INTERVAL: Final = 0.5


@dataclass(frozen=True, slots=True)
class PresenceEvent:
    """The event for a member that has joined or left a stream (see Protocol: Presence)."""

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
        records: the infos of the members by id, in the order of their joins; None if only the total was requested.
        incarnation: the incarnation of the stream's presence data. If it has changed, the store has lost data. It may
            be `""` if the store has no data of the stream.
    """

    total: int
    records: Mapping[str, Any] | None = field(default_factory=dict)
    incarnation: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Member:
    """A session in which a member is present in a stream.

    Args:
        stream: the name of the stream.
        session: the key of the session.
        id: the id of the member.
        info: the info of the session.
        joined: whether the session has joined before. If so, the store should already have it.
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
    """The result of `PresenceStore.refresh`.

    Args:
        unknown: the (stream, session) pairs that the store does not have, because they have expired or were lost.
        incarnations: the incarnations of the streams, by name (see `PresenceInfo`).
    """

    unknown: Sequence[tuple[str, str]]
    incarnations: Mapping[str, str]


class PresenceListener(Listener):
    """Receives the presence events of streams. `PresenceStore.listen` returns a listener."""

    async def fence(self, stream: str) -> None:
        """Wait until the events of a stream that happened before this call have been delivered.

        A restored client is sent events that correct its list of members. Without the wait, they would more often be
        followed by an event that repeats one of them. A listener whose events arrive within a few milliseconds need not
        override this method.
        """


class PresenceStore(Store):
    """Base class of the stores for the members of streams.

    A member is an id (a string) with an info (any JSON value). A member has a session for each subscription in which it
    has joined. A session has an opaque key, and is ended by `leave`. `expire` also ends sessions whose last `refresh`
    was more than `settings.presence_ttl` seconds ago, or for which `shorten` was called more than
    `settings.presence_grace` seconds ago.

    Exactly one join event is announced when the first session of a member joins, and exactly one leave event when the
    last session ends. If a session joins again with another member id, it first leaves with the former id.

    Each session has an info of its own, which changes if the session joins again. The info of a member is the info of
    its earliest session. Changes to an info are not announced.

    Events are announced to the listeners of all processes that share the store. The call that causes an event also
    returns the event, so that exactly one process can act on it. If the response of the call is lost, no process can.
    """

    @property
    def outage(self) -> float:
        """The time, in seconds, after which the store assumes an outage if no process has called `expire`.

        A time without members is not an outage. So the time begins with the first join if there were no members before.
        """
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
            TypeError: `info` contains an object that JSON cannot represent.
            ValueError: `info` contains a number that JSON cannot represent, or contains itself.
            StoreError: the store failed. The session may or may not have been added.
        """
        return self.join_all([Member(stream, session, id, info)])

    @abstractmethod
    def join_all(self, members: Sequence[Member]) -> list[PresenceEvent]:
        """Add sessions to streams, or refresh them, in the given order. Return the resulting events.

        If the store has lost its data, sessions whose `joined` is True are added again. The joins of their members are
        announced again, so that all listeners know these members. But these events are not returned, because no member
        has really joined. The exception is a member that the store remembers as having left: its join is returned.
        """

    @abstractmethod
    def leave(self, stream: str, session: str) -> list[PresenceEvent]:
        """Remove a session from a stream. Return the resulting events. An unknown session is ignored."""

    def shorten(self, stream: str, session: str) -> None:
        """Let a session expire after `settings.presence_grace` seconds, unless it expires earlier.

        An unknown session is ignored. A later `refresh` or `join` of the session renews the TTL as usual. A subclass
        need not override this method. If it does not, this method has no effect.
        """

    @abstractmethod
    def refresh(self, held: Mapping[str, Collection[str]]) -> Refreshed:
        """Renew the TTL of sessions.

        Args:
            held: the keys of the sessions, by the name of the stream. A stream for which only the incarnation is needed
                has no keys. If the store has no data of a stream, the call begins a new incarnation.
        """

    @abstractmethod
    def expire(self) -> list[PresenceEvent]:
        """Remove the expired sessions of all streams. Return the resulting leave events.

        If a process has searched for expired sessions less than `SEARCH_INTERVAL` seconds ago, the call may do nothing.

        Each process calls this method after each `refresh`. If no process has called it for `outage` seconds, the
        processes could not refresh their sessions either. To give them time for this, no sessions are removed in the
        next `presence_ttl` seconds.
        """

    @abstractmethod
    def info(self, stream: str, *, records: bool = True, overdue: bool = True) -> PresenceInfo:
        """Return the members of a stream.

        Args:
            stream: the name of the stream.
            records: whether to return the infos of the members. If False, only the total is returned.
            overdue: whether to include members whose sessions have all expired. The next call of `expire` announces
                their leaves.
        """

    @abstractmethod
    def left_within(self, stream: str, seconds: float) -> list[str]:
        """Return the ids of members that have left a stream and have not joined again, in the order of their leaves.

        Args:
            stream: the name of the stream.
            seconds: the maximum age of the leaves, in seconds. The store remembers leaves for `memory` seconds.
        """

    @abstractmethod
    def listen(self, deliver: Callable[[PresenceEvent | PresenceMissed], None]) -> PresenceListener:
        """Return a listener that calls `deliver` with events on the running event loop.

        `deliver` is never called from inside a method of the listener or of the store.
        """

    def prune(self, *, limit: int = 1000) -> int:
        """Delete up to about `limit` old rows, and return their number. `manage.py cable_prune` calls this.

        A store need not override this method if its data expire by themselves or in `expire`.
        """
        return 0

    ajoin_all = async_twin(join_all)
    aleave = async_twin(leave)
    ashorten = async_twin(shorten)
    arefresh = async_twin(refresh)
    aexpire = async_twin(expire)
    ainfo = async_twin(info)
    aleft_within = async_twin(left_within)
