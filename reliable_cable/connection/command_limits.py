"""Delays the commands of a client that sends more commands than `RATE_LIMITS` allows.

See Protocol: Fast clients.
"""

from typing import Final, Self

from reliable_cable.concurrency.token_bucket import TokenBucket
from reliable_cable.conf import CableSettings, RateLimit
from reliable_cable.protocol import commands

#: How long, in seconds, a client may send commands so fast that each is delayed. After that, it is disconnected.
WAITING_TIME: Final = 10.0
#: While a `subscribe` is unanswered, commands are delayed for at most this time, in seconds, after its arrival. Clients
#: repeat a `subscribe` after 5 seconds, and give up after 10. So commands are then handled in spite of the limits.
SUBSCRIBE_WAITING_TIME: Final = 4.0

#: A delay that is shorter than this, in seconds, counts as a rounding error.
_TOLERANCE: Final = 0.001

#: The commands that a client sends for each of its subscriptions when it connects.
_CONNECTING: Final = (commands.Subscribe, commands.History, commands.Join)


class CommandLimits:
    """The rate limits of one connection: the keys "command" and "whisper" of `RATE_LIMITS`.

    After connecting, a client sends a few commands for each of its subscriptions. Up to a maximum number, these
    commands do not count, so that they are answered in time.

    Args:
        command: the limit for all commands. None means no limit.
        whisper: the limit for whispers. None means no limit.
        subscriptions: the maximum number of subscriptions.
    """

    __slots__ = ("_commands", "_free", "_waiting_since", "_whispers")

    def __init__(self, command: RateLimit | None, whisper: RateLimit | None, subscriptions: int) -> None:
        self._commands = _bucket(command)
        self._whispers = _bucket(whisper)
        #: How many further commands of the types in `_CONNECTING` do not count.
        self._free = len(_CONNECTING) * subscriptions
        #: The time since which each command has had to wait, or None if no command has to wait.
        self._waiting_since: float | None = None

    @classmethod
    def of(cls, settings: CableSettings) -> Self | None:
        """Return the limits according to the settings, or None if the settings limit neither commands nor whispers."""
        command, whisper = settings.rate_limit("command"), settings.rate_limit("whisper")
        if command is None and whisper is None:
            return None
        return cls(command, whisper, settings.max_subscriptions)

    def take(self, command: commands.Command, now: float) -> float:
        """Count a command. Return how long, in seconds, it has to wait.

        Args:
            command: the next command.
            now: the time in seconds, by a monotonic clock.
        """
        if self._free and isinstance(command, _CONNECTING):
            self._free -= 1
            return 0
        delay = 0.0 if self._commands is None else self._commands.take(1, now)
        if self._whispers is not None and isinstance(command, commands.Whisper):
            delay = max(delay, self._whispers.take(1, now))
        if not delay:
            self._waiting_since = None
            return 0
        if self._waiting_since is None:
            self._waiting_since = now
        return delay

    def rest(self, now: float) -> None:
        """Record that no command is queued. The time that counts towards `WAITING_TIME` then starts again at 0.

        It does not start again if a bucket still lacks tokens, because commands were handled before the limits allowed
        them.
        """
        buckets = (self._commands, self._whispers)
        if not any(bucket is not None and bucket.take(0, now) > _TOLERANCE for bucket in buckets):
            self._waiting_since = None

    def exceeded(self, now: float) -> bool:
        """Return whether commands have been delayed for so long that the client must be disconnected."""
        return self._waiting_since is not None and now - self._waiting_since > WAITING_TIME


def _bucket(limit: RateLimit | None) -> TokenBucket | None:
    return None if limit is None else TokenBucket(limit.rate, limit.count)
