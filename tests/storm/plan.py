"""The plan of a storm: its length, seed, streams, subscriptions and settings."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tests.support.client import identify

from .truth import Loss

#: How long, in seconds, all clients may take to catch up when the faults are over.
PATIENCE = 60.0

DURABLE = ("kept:1", "kept:2")
#: With the engine Redis, these streams are stored only in Redis.
VOLATILE = ("plain:1", "plain:2", "room:1")
STREAMS = DURABLE + VOLATILE
ROOM = "room:1"
#: Streams whose history is smaller than the bursts to them: one that is stored only in Redis, and a durable one.
BURST_STREAMS = ("burst:1", "burst:2")
BURST_HISTORY = 100
BURST = 150
ALL_STREAMS = STREAMS + BURST_STREAMS

#: The subscriptions of each client: the channel, its params and its stream.
SUBSCRIPTIONS: tuple[tuple[str, Mapping[str, Any], str], ...] = (
    ("StreamChannel", {"streams": ["kept:1"]}, "kept:1"),
    ("AsyncStreamChannel", {"streams": ["kept:2"]}, "kept:2"),
    ("StreamChannel", {"streams": ["plain:1"]}, "plain:1"),
    # Two identifiers on one stream have their own positions (see Protocol: Stream ids).
    ("StreamChannel", {"streams": ["plain:1"], "again": True}, "plain:1"),
    ("AsyncStreamChannel", {"streams": ["plain:2"]}, "plain:2"),
    ("StreamChannel", {"streams": ["burst:1"]}, "burst:1"),
    ("AsyncStreamChannel", {"streams": ["burst:2"]}, "burst:2"),
    ("RoomChannel", {"room": ROOM}, ROOM),
)
ROOM_IDENTIFIER = identify("RoomChannel", room=ROOM)

#: How long, in seconds, members of a killed server stay. This is short, so that they leave during the storm.
PRESENCE_TTL = 4.0

HISTORY_SIZE = 50_000
HISTORY_TTL = 86_400
#: By how many seconds a wrong clock differs from the right time. SHORT_TTL: the history TTL while clocks are wrong, for
#: stores that have a clock of their own.
WRONG = 90.0
SHORT_TTL = 60

#: Faults after which Redis may lack data or be another server.
#: DATABASE_LOSSES: faults after which the database may lack data.
REDIS_LOSSES = (
    "Redis restarted",
    "Redis older",
    "Redis empty",
    "FLUSHALL",
    "Redis moved",
    "Redis moved, connections cut",
    "Redis moved, tail lost",
)
DATABASE_LOSSES = ("PostgreSQL moved", "PostgreSQL moved, tail lost", "SQLite restored")
REDIS_MOVES = tuple(kind for kind in REDIS_LOSSES if "moved" in kind)
POSTGRES_MOVES = tuple(kind for kind in DATABASE_LOSSES if "moved" in kind)
#: How long, in seconds, servers may take to notice that an SQLite file was replaced by an older copy.
NOTICE = 5.0


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault that was made.

    Args:
        kind: the kind of the fault.
        begun: the time at which it began, by the storm's clock.
        ended: the time at which it was over. Its consequences may last longer.
    """

    kind: str
    begun: float
    ended: float


@dataclass(frozen=True, slots=True)
class Plan:
    """The parameters of a storm.

    Args:
        seconds: how long, in seconds, faults are made.
        seed: the seed of the random choice of faults, streams and clients.
        engine: "redis" or "database".
        database: the database for durable streams, "sqlite" or "postgres".
        redis: the name of the server program, such as "valkey 8.1"; empty for the first that is found.
        clients: the number of clients in Python.
        npm_clients: the number of unmodified clients, in Node.
        every: the time between two faults, in seconds.
        pause: the average time between two broadcasts of one broadcaster, in seconds.
        only: the kinds of faults to make; empty for all kinds that the engine can have.
        clocks: whether the clocks of some processes are wrong (`wrong_clocks`).
    """

    seconds: float = 60.0
    seed: int = 1
    engine: Literal["redis", "database"] = "redis"
    database: Literal["sqlite", "postgres"] = "sqlite"
    redis: str = ""
    clients: int = 20
    npm_clients: int = 4
    every: float = 1.0
    pause: float = 0.05
    only: tuple[str, ...] = ()
    clocks: bool = False

    def wants(self, *kinds: str) -> bool:
        """Return whether the plan includes faults of at least one of these kinds."""
        return not self.only or not set(kinds).isdisjoint(self.only)

    def in_redis(self, stream: str) -> bool:
        """Return whether a stream is in Redis only."""
        return self.engine == "redis" and stream not in (*DURABLE, "burst:2")

    @property
    def database_fails(self) -> bool:
        """Whether the database is unreachable at times, so that the project's own transactions may fail."""
        return self.database == "postgres" and self.wants(*POSTGRES_MOVES)

    def losses(self, stream: str, faults: Iterable[Fault]) -> list[Loss]:
        """Return the losses of messages of a stream that the faults may have caused."""
        kinds = REDIS_LOSSES if self.in_redis(stream) else DATABASE_LOSSES
        return [
            Loss(fault.begun, fault.ended + NOTICE if fault.kind == "SQLite restored" else fault.begun)
            for fault in faults
            if fault.kind in kinds
            # FLUSHALL deletes the lineage record. The first process to connect then writes the run_id of Redis as the
            # lineage. A process that received this lineage earlier, and another one since, replaces it by a new one. So
            # the fault counts as two losses.
            for _ in range(2 if fault.kind == "FLUSHALL" else 1)
        ]

    @property
    def wrong_clocks(self) -> Mapping[str, float]:
        """The clock errors of processes, in seconds, by the name of the process. Negative: the clock is behind."""
        return {"daphne": WRONG, "worker": -WRONG} if self.clocks else {}

    @property
    def command(self) -> str:
        """The command that repeats this storm, with the same choice of faults."""
        arguments = [f"python -m tests.storm --seconds {self.seconds:g} --seed {self.seed} --engine {self.engine}"]
        arguments.append(f"--database {self.database}")
        if self.redis:
            arguments.append(f'--redis "{self.redis}"')
        arguments.append(f"--clients {self.clients} --npm-clients {self.npm_clients} --pause {self.pause:g}")
        arguments.append(f"--every {self.every:g}")
        if self.clocks:
            arguments.append("--clocks")
        if self.only:
            arguments.append(f"--only {' '.join(map(repr, self.only))}")
        return " ".join(arguments)

    def settings(self, redis_url: str | None) -> dict[str, Any]:
        """Return the setting `RELIABLE_CABLE` of all processes."""
        names = ("kept:*", "plain:*", "room:*", *BURST_STREAMS)
        streams = {name: self._policy(name) for name in names}
        if redis_url is None:
            return {"ENGINE": "database", "STREAMS": streams, "PRESENCE_TTL": PRESENCE_TTL}
        return {"REDIS_URL": redis_url, "STREAMS": streams, "PRESENCE_TTL": PRESENCE_TTL}

    def _policy(self, name: str) -> dict[str, Any]:
        durable = name in ("kept:*", "burst:2")
        in_redis = self.engine == "redis" and not durable
        # For an SQLite file, each process uses its own clock.
        has_clock = in_redis or self.database == "postgres"
        return {
            "history_size": BURST_HISTORY if name in BURST_STREAMS else HISTORY_SIZE,
            "history_ttl": SHORT_TTL if self.clocks and has_clock else HISTORY_TTL,
            **({"durable": True} if durable and self.engine == "redis" else {}),
        }


def member_id(number: int, clients: int) -> str | None:
    """Return the member id of a client; None: it is not a member. Half of the clients are members; two share an id."""
    half = clients // 2
    return f"member-{min(number, half - 1)}" if number <= half else None


def now() -> float:
    """Return the time of the storm's clock, in seconds."""
    return time.monotonic()
