"""Finds revoked subscriptions in connections and session records."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, Final, Protocol, TypeVar

from reliable_cable.conf import CONTROL_POLICY
from reliable_cable.exceptions import ProtocolError
from reliable_cable.identity import Identity, condition_key, matches, subscription_scopes
from reliable_cable.protocol.commands import parse_identifier
from reliable_cable.protocol.control import SubscriptionRevocation
from reliable_cable.stores.sessions.base import SessionRecord, SessionStore, is_revoked

V = TypeVar("V")

#: The maximum number of identities in one call to the session store.
BATCH_SIZE: Final = 500


class RevocableSubscription(Protocol):
    """The part of a subscription that revocations use."""

    @property
    def authorized(self) -> float:
        """The time, by the session store's clock, at which the channel began to authorize the subscription."""

    def scopes(self) -> Sequence[Identity]:
        """Return the conditions by which a revocation can select the subscription: its channel and its streams."""


def concerns(revocation: SubscriptionRevocation, scopes: Iterable[Identity], authorized: float) -> bool:
    """Return whether a revocation concerns a subscription.

    Args:
        revocation: a revocation that selects the connection of the subscription.
        scopes: the channel and the streams of the subscription (see `identity.subscription_scopes`).
        authorized: the time at which the channel began to authorize the subscription.
    """
    return any(matches(revocation.scope, scope) for scope in scopes) and is_revoked(authorized, [revocation.at])


class LatestByCondition(OrderedDict[str, V]):
    """A mapping with the latest value for each condition. The keys are hashes of the conditions (see `condition_key`).

    If there are more than `CONTROL_POLICY.history_size` values, the oldest value is removed.
    """

    def put(self, condition: Identity, value: V) -> None:
        """Add a value. It replaces an earlier value with the same condition."""
        key = condition_key(condition)
        self[key] = value
        self.move_to_end(key)
        if len(self) > CONTROL_POLICY.history_size:
            self.popitem(last=False)


class RecentRevocations:
    """The latest revocations of subscriptions. New subscriptions are checked against them before they are confirmed."""

    def __init__(self) -> None:
        self._by_condition: LatestByCondition[SubscriptionRevocation] = LatestByCondition()
        self._latest_at = 0.0

    def add(self, revocation: SubscriptionRevocation) -> None:
        """Add a revocation. It replaces an earlier revocation of the same subscriptions."""
        self._by_condition.put({**revocation.condition, **revocation.scope}, revocation)
        self._latest_at = max(self._latest_at, revocation.at)

    def find(
        self, identity: Identity, scopes: Callable[[], Sequence[Identity]], authorized: Callable[[], float]
    ) -> SubscriptionRevocation | None:
        """Return a revocation that concerns a subscription; None if no revocation concerns it.

        Args:
            identity: the identity of the subscription's connection.
            scopes: a function that returns the channel and streams of the subscription. It is called only if necessary.
            authorized: a function that returns the time at which the channel began to authorize the subscription. It
                is called only if necessary.
        """
        if not self._by_condition or not is_revoked(since := authorized(), [self._latest_at]):
            return None
        for revocation in self._by_condition.values():
            if matches(revocation.condition, identity) and concerns(revocation, scopes(), since):
                return revocation
        return None


async def last_revoked(
    store: SessionStore, subscriptions: Iterable[tuple[Identity, Sequence[Identity]]]
) -> list[float]:
    """Return the time of the latest revocation of each subscription; 0 for a subscription that was not revoked.

    Args:
        store: the session store.
        subscriptions: for each subscription, the identity of its connection, and its scopes (see
            `identity.subscription_scopes`).

    Raises:
        StoreError: the store could not be read.
    """
    groups = [[{**identity, **scope} for scope in scopes] for identity, scopes in subscriptions]
    identities = [identity for group in groups for identity in group]
    times: list[float] = []
    for start in range(0, len(identities), BATCH_SIZE):
        times += await store.arevoked(identities[start : start + BATCH_SIZE])
    remaining = iter(times)
    return [max(islice(remaining, len(group)), default=0.0) for group in groups]


async def without_revoked(store: SessionStore, records: Sequence[SessionRecord | None]) -> list[SessionRecord | None]:
    """Return session records without the subscriptions that were revoked.

    Raises:
        StoreError: the store could not be read.
    """
    items = [
        (record.identity, item)
        for record in records
        if record is not None
        for item in record.data.get("subscriptions", ())
    ]
    times = iter(await last_revoked(store, [(identity, _recorded_scopes(item)) for identity, item in items]))
    return [record and _without_revoked(record, times) for record in records]


def _without_revoked(record: SessionRecord, times: Iterable[float]) -> SessionRecord:
    items = record.data.get("subscriptions", ())
    # In a record of the previous release, subscriptions have no time of authorization. They count as authorized before
    # all revocations.
    kept = [
        item
        for item, at in zip(items, times, strict=False)
        if not at or not is_revoked(item.get("authorized", 0.0), [at])
    ]
    return record if len(kept) == len(items) else replace(record, data={**record.data, "subscriptions": kept})


def _recorded_scopes(item: Mapping[str, Any]) -> list[Identity]:
    try:
        return subscription_scopes(parse_identifier(item["identifier"])[0], [each["name"] for each in item["streams"]])
    except (ProtocolError, KeyError, TypeError):
        return []  # a server of another release may have written the item; its restore will fail
