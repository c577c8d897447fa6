"""What a storm is made of: its length, its seed, its streams, and who subscribes to what."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tests.support.client import identify

#: Seconds that everybody may take to catch up, when the faults are over.
PATIENCE = 60.0

DURABLE = ("kept:1", "kept:2")
#: With Redis, these live there and nowhere else.
VOLATILE = ("plain:1", "plain:2", "room:1")
STREAMS = DURABLE + VOLATILE
ROOM = "room:1"

#: (channel, params, stream): every client subscribes to all of these.
SUBSCRIPTIONS: tuple[tuple[str, Mapping[str, Any], str], ...] = (
    ("StreamChannel", {"streams": ["kept:1"]}, "kept:1"),
    ("AsyncStreamChannel", {"streams": ["kept:2"]}, "kept:2"),
    ("StreamChannel", {"streams": ["plain:1"]}, "plain:1"),
    # Two identifiers on one stream have a position each (PROTOCOL.md, 4).
    ("StreamChannel", {"streams": ["plain:1"], "again": True}, "plain:1"),
    ("AsyncStreamChannel", {"streams": ["plain:2"]}, "plain:2"),
    ("RoomChannel", {"room": ROOM}, ROOM),
)
ROOM_IDENTIFIER = identify("RoomChannel", room=ROOM)

#: Seconds; short, so that members of a killed server leave while the storm still looks.
PRESENCE_TTL = 4.0

POLICY = {"history_size": 50_000, "history_ttl": 86_400}


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do.

    Args:
        seconds: for which there are faults.
        seed: chooses faults, streams and clients.
        engine: "redis" or "database".
        database: for durable streams: "sqlite" or "postgres".
        redis: the name of the server program, "valkey 8.1"; empty: the first that is found.
        clients: of our own.
        npm_clients: the unmodified ones, in Node.
        every: seconds between two faults.
        pause: seconds between two broadcasts of one broadcaster, on average.
        only: kinds of faults; empty: all that the engine can stand.
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

    @property
    def volatile(self) -> tuple[str, ...]:
        """The streams that may lose their history."""
        return VOLATILE if self.engine == "redis" else ()

    @property
    def command(self) -> str:
        """What repeats this storm, as far as a seed can."""
        words = [f"python -m tests.storm --seconds {self.seconds:g} --seed {self.seed} --engine {self.engine}"]
        words.append(f"--database {self.database}")
        if self.redis:
            words.append(f'--redis "{self.redis}"')
        words.append(f"--clients {self.clients} --npm-clients {self.npm_clients} --pause {self.pause:g}")
        words.append(f"--every {self.every:g}")
        if self.only:
            words.append(f"--only {' '.join(self.only)}")
        return " ".join(words)

    @property
    def has_presence(self) -> bool:
        """Whether servers share presence: in the embedded engine each has its own."""
        return self.engine == "redis"

    def settings(self, redis_url: str | None) -> dict[str, Any]:
        """Return `RELIABLE_CABLE` for all processes."""
        streams = {"kept:*": {**POLICY, "durable": True}, "plain:*": POLICY, "room:*": POLICY}
        if redis_url is None:
            return {"ENGINE": "database", "STREAMS": {name: {**POLICY} for name in streams}}
        return {"REDIS_URL": redis_url, "STREAMS": streams, "PRESENCE_TTL": PRESENCE_TTL}


def member_id(number: int, clients: int) -> str | None:
    """Return as whom the client of a number is present: half of them are, and the last two of these as the same one."""
    half = clients // 2
    return f"member-{min(number, half - 1)}" if number <= half else None


def now() -> float:
    """The storm's clock, in seconds."""
    return time.monotonic()
