"""The calls that stores send to Redis, and the errors of calls."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import redis
from redis.exceptions import BusyLoadingError, ClusterDownError, MovedError, ReadOnlyError, RedisError, ResponseError

from reliable_cable.exceptions import StoreError, reason

#: The errors of a broken async connection. uvloop raises RuntimeError if the connection has been closed.
CONNECTION_ERRORS: Final = (RedisError, OSError, RuntimeError)

#: The errors of a server that currently accepts no commands or no writes. It may be a replica, a server that is loading
#: its data, or a primary that has lost its replicas. The command was not executed. If the command was a script, the
#: error has another class, and its text contains one of `UNAVAILABLE_CODES`.
UNAVAILABLE_ERRORS: Final = (BusyLoadingError, ReadOnlyError, ClusterDownError)
UNAVAILABLE_CODES: Final = re.compile(r"(?:^|[ -])(?:READONLY|MASTERDOWN|LOADING|CLUSTERDOWN|NOREPLICAS|DATAMOVED) ")


class _Placeholder:
    """An argument of a script whose value is unknown until the script is sent."""


#: A placeholder for the lineage of the connection's data (see lineage.py). It can only be the first argument.
LINEAGE: Final = _Placeholder()
#: A placeholder for a random token. It can only be the second argument, after `LINEAGE`. Each attempt gets a new token,
#: because a former attempt whose reply was lost may have used its token for data that a failover has replaced.
NEW_TOKEN: Final = _Placeholder()

Argument = str | int | float | bytes | _Placeholder


@dataclass(frozen=True, slots=True)
class Call:
    """A Redis command or a Lua script to run, with its keys and arguments.

    Args:
        name: the name of a command in capitals, or the name of a script in `lua/`.
        keys: the keys that the call uses. If the first argument of a script is `LINEAGE`, the key of the lineage record
            is added at the end. In a cluster, all keys must be in the same slot.
        args: the arguments after the keys.
        beside: a key in the partition in which the call runs, if `keys` is empty; `""` for any partition.
    """

    name: str
    keys: Sequence[str] = ()
    args: Sequence[Argument] = ()
    beside: str = ""


class RedisUnavailable(StoreError):
    """Raised if Redis could not be reached, did not respond, or currently accepts no commands.

    Args:
        message: the error message.
        sent: whether at least one of the calls may have been executed.
    """

    def __init__(self, message: str, *, sent: bool) -> None:
        super().__init__(message)
        self.sent = sent


class RedisRefused(StoreError):
    """Raised if Redis responded with an error. The call did nothing."""

    sent = False


def unavailable(error: BaseException, sent: bool) -> RedisUnavailable:
    """Return the error for a connection that could not be opened, or that broke."""
    problem = "did not respond" if sent else "cannot be reached"
    if isinstance(error, redis.AuthenticationError):
        problem = "refused the user or the password in REDIS_URL"
    elif isinstance(error, MovedError):
        problem = "is a node of a cluster, so REDIS_CLUSTER must be True"
    return RedisUnavailable(f"Redis {problem}: {reason(error)}.", sent=sent)


def is_unavailable(reply: Any) -> bool:
    """Return whether a reply is an error of a server that currently does not accept the command."""
    if isinstance(reply, UNAVAILABLE_ERRORS):
        return True
    return isinstance(reply, ResponseError) and UNAVAILABLE_CODES.search(str(reply)) is not None


def checked(replies: list[Any]) -> list[Any]:
    """Return replies, if none of them is an error.

    Raises:
        RedisUnavailable: the server currently does not accept at least one of the calls.
        RedisRefused: the reply to a call was another error.
    """
    errors = [reply for reply in replies if is_unavailable(reply)]
    if errors:
        message = f"Redis currently does not accept the command: {reason(errors[0])}."
        raise RedisUnavailable(message, sent=len(errors) < len(replies)) from errors[0]
    for reply in replies:
        if isinstance(reply, ResponseError):
            raise RedisRefused(f"Redis refused a command: {reason(reply)}.") from reply
    return replies
