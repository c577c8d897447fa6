"""The plan of a storm of runs: its size, its seed, its settings, and a plan for each run."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import Any, Literal

#: How long, in seconds, a reader may take to read an answer to its end after the last attempt of the run has ended.
PATIENCE = 90.0
#: A pattern for the streams of a quarter of the runs. Their history is shorter than the number of their events.
SHORT_RUNS = "run:[0-3]*"
SHORT_HISTORY = 20
#: The history of the durable streams.
DURABLE = {"durable": True, "history_size": 100_000, "history_ttl": 86400}
#: One in this many runs has a durable stream that two producers write.
SHARED = 4
#: How many attempts a run may have.
MAX_ATTEMPTS = 3

#: The ways in which a run ends if its writer is not killed.
Ending = Literal["completed", "stopped", "failed"]
#: The ways in which a run is stopped.
STOPS = ("task", "channel", "http")


@dataclass(frozen=True, slots=True)
class RunPlan:
    """The plan for one run: its content, the end of its first attempt, and whether it is retried.

    Args:
        number: the number of the run.
        seed: the seed of the content.
        ending: the way in which the first attempt ends. Later attempts are completed.
        at: the fraction of the tokens after which the attempt is stopped or fails.
        stop: the way in which the run is stopped, one of `STOPS`.
        retries: whether the run is retried if its writer was killed, or if it was stopped or has failed.
    """

    number: int
    seed: int
    ending: Ending
    at: float
    stop: str
    retries: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """The parameters of a storm.

    Args:
        runs: the number of runs.
        tokens: the number of items in each answer. An item is a piece of text, or a part such as a tool call.
        seed: the seed of all random choices.
        engine: "redis" or "database".
        database: "sqlite" or "postgres".
        at_once: the maximum number of runs at the same time.
        writers: the number of writer processes. Half of them write with `awriting`.
        channel_readers: the number of WebSocket readers of each run, in addition to one reader of each other kind.
        npm: whether there are readers in Node.
        pause: the pause between two tokens, in seconds.
        every: the time between two faults, in seconds.
        faults: the maximum number of faults.
        lease: the lease of writers, in seconds. It is short, so that runs of killed writers fail soon.
    """

    runs: int = 200
    tokens: int = 500
    seed: int = 1
    engine: Literal["redis", "database"] = "redis"
    database: Literal["sqlite", "postgres"] = "sqlite"
    at_once: int = 12
    writers: int = 4
    channel_readers: int = 2
    npm: bool = True
    pause: float = 0.005
    every: float = 1.0
    faults: int = 1_000_000
    lease: int = 6

    @property
    def command(self) -> str:
        """The command that repeats this storm, with the same random choices."""
        return (
            f"python -m tests.storm_runs --runs {self.runs} --tokens {self.tokens} --seed {self.seed} "
            f"--engine {self.engine} --database {self.database} --at-once {self.at_once} --writers {self.writers} "
            f"--channel-readers {self.channel_readers} --pause {self.pause:g} --every {self.every:g}"
            f"{'' if self.npm else ' --no-npm'}"
        )

    @property
    def duration(self) -> float:
        """The minimum duration of a complete attempt, in seconds."""
        return self.tokens * self.pause

    @property
    def messages(self) -> int:
        """How many messages each producer writes to the durable stream of a run."""
        return self.tokens // 5

    def has_stream(self, number: int) -> bool:
        """Return whether two producers write a durable stream while the run with this number is written."""
        return self.npm and number % SHARED == 0

    def settings(self, redis_url: str | None) -> dict[str, Any]:
        """Return the setting `RELIABLE_CABLE` of all processes."""
        return {
            **({"ENGINE": "database"} if redis_url is None else {"REDIS_URL": redis_url}),
            "STREAMS": {SHORT_RUNS: {"history_size": SHORT_HISTORY}, "durable:*": DURABLE},
            "RUN_LEASE": self.lease,
            "RUN_CHATS": "tests.integration.project.runs.Chats",
            "RUN_DURABLE_STREAMS": "tests.integration.project.durable.Streams",
            "RUN_PERMISSIONS": "tests.integration.project.runs.Everyone",
        }

    def choose(self, number: int, rng: random.Random) -> RunPlan:
        """Return a random plan for a run."""
        ending: Ending = rng.choices(["completed", "stopped", "failed"], [6, 2, 1])[0]  # type: ignore[assignment]
        return RunPlan(number, rng.getrandbits(32), ending, rng.random(), rng.choice(STOPS), rng.random() < 0.6)


def now() -> float:
    """Return the time of the storm's clock, in seconds."""
    return time.monotonic()
