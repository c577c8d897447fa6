"""The base class of session stores. They keep the records from which sessions are restored."""

from abc import abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from reliable_cable.identity import Identity
from reliable_cable.stores.base import Store, async_twin

#: A revocation also applies to connections that are authenticated up to this many seconds after it. This is because the
#: time of an authentication is not exact (see clock.py), and Django deletes the Django session only after the logout
#: signal.
CLOCK_MARGIN: Final = 1.0

#: The maximum number of characters of a session id.
MAX_SID_LENGTH: Final = 64


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """The state of a connection, from which its session is restored.

    Args:
        identity: the identity of the connection. Only a connection with an equal identity can restore the session.
        authenticated: the time when the connection was authenticated, by the store's clock, in seconds since 1970.
        data: the state, with JSON values only.
        size: the approximate size of the record, in bytes. The size is not stored.
    """

    identity: Identity
    authenticated: float
    data: Mapping[str, Any] = field(default_factory=dict)
    size: int = field(default=0, compare=False)


def is_session_id(sid: str) -> bool:
    """Return whether a string can be a session id.

    Clients may send any string as an id, and some strings would cause errors in a store.
    """
    return 0 < len(sid) <= MAX_SID_LENGTH and sid.isascii() and sid.isprintable()


def is_revoked(authenticated: float, times: Iterable[float]) -> bool:
    """Return whether a session is revoked.

    Args:
        authenticated: the time when the session's connection was authenticated.
        times: the times of the revocations that match the session's identity.
    """
    return any(authenticated <= at + CLOCK_MARGIN for at in times)


class SessionStore(Store):
    """Stores session records by session id, and the times of revocations.

    A record expires `settings.sessions_ttl` seconds after it was saved or touched. A revocation is remembered until all
    records that it may revoke have expired.
    """

    #: Whether the store may lose records before they expire.
    may_lose_data: bool = False

    @abstractmethod
    def save(self, records: Mapping[str, SessionRecord]) -> None:
        """Store records by session id, in few round trips. They replace existing records.

        A client can cause a record of 256 KiB to be saved again and again. So a store on a server that other software
        also uses should write only the parts of a large record that have changed.
        """

    @abstractmethod
    def load(self, sid: str, identity: Identity) -> SessionRecord | None:
        """Return the record of a session, in one round trip.

        Returns:
            The record; None if it does not exist, has another identity, or was revoked.
        """

    def load_many(self, wanted: Sequence[tuple[str, Identity]]) -> list[SessionRecord | None]:
        """Return the records of several sessions, as `load` does. Override this to use only one round trip."""
        return [self.load(sid, identity) for sid, identity in wanted]

    @abstractmethod
    def touch(self, sids: Collection[str]) -> set[str]:
        """Renew the TTL of records, in one round trip. Return the session ids for which there is no record."""

    @abstractmethod
    def delete(self, sids: Collection[str]) -> None:
        """Delete records, in one round trip. Unknown session ids are ignored."""

    @abstractmethod
    def revoke(self, condition: Identity) -> float:
        """Revoke the sessions that match a condition. This includes sessions whose records are saved after this call.

        A session is revoked if its connection was authenticated before this call, or up to `CLOCK_MARGIN` seconds after
        it.

        Args:
            condition: the identifiers that a session's identity must have. There must be at least one.

        Returns:
            The time of the revocation, by the store's clock.
        """

    @abstractmethod
    def revoked(self, identities: Sequence[Identity]) -> list[float]:
        """Return for each identity the time of the last revocation that matches it; 0 if none matches."""

    @abstractmethod
    def prune(self, *, limit: int = 1000) -> int:
        """Delete up to about `limit` expired records, and return their number. Servers call this regularly."""

    asave = async_twin(save, writes=True)
    aload_many = async_twin(load_many)
    atouch = async_twin(touch, writes=True)
    adelete = async_twin(delete, writes=True)
    arevoke = async_twin(revoke, writes=True)
    arevoked = async_twin(revoked)
    aprune = async_twin(prune, writes=True)
