"""Runs a storm: servers and clients under random faults. The exit code is 1 if a promise was broken."""

from __future__ import annotations

import argparse
import asyncio
import sys

from tests.support.clock import find_faketime
from tests.support.storms import conclude, show

from .plan import Plan
from .report import table, violations
from .stage import make_folder
from .storm import Storm


def main() -> int:
    """Run the storm that the command line describes, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.storm", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long faults are made")
    parser.add_argument("--seed", type=int, default=1, help="seed of the random choice of faults")
    parser.add_argument("--engine", choices=["redis", "database"], default="redis")
    parser.add_argument(
        "--database", choices=["sqlite", "postgres"], default="sqlite", help="database of durable streams"
    )
    parser.add_argument("--redis", default="", help='server program, for example "valkey 8.1" (the first found)')
    parser.add_argument("--clients", type=int, default=20, help="number of clients in Python")
    parser.add_argument("--npm-clients", type=int, default=4, help="number of npm clients in Node")
    parser.add_argument("--every", type=float, default=1.0, help="seconds between two faults")
    parser.add_argument("--pause", type=float, default=0.05, help="seconds between two broadcasts of a broadcaster")
    parser.add_argument("--only", nargs="*", default=[], help="kinds of faults to make (all)")
    parser.add_argument("--clocks", action="store_true", help="the clocks of two processes are wrong by 90 s")
    parser.add_argument("--keep", action="store_true", help="keep databases and logs even if no promise was broken")
    options = parser.parse_args()
    if options.clocks and find_faketime() is None:
        parser.error("--clocks needs libfaketime (Debian: libfaketime)")
    plan = Plan(
        seconds=options.seconds,
        seed=options.seed,
        engine=options.engine,
        database=options.database,
        redis=options.redis,
        clients=options.clients,
        npm_clients=options.npm_clients,
        every=options.every,
        pause=options.pause,
        only=tuple(options.only),
        clocks=options.clocks,
    )
    outcome = asyncio.run(Storm(plan, make_folder(), show).run())
    return conclude(outcome, table, violations, keep=options.keep)


if __name__ == "__main__":
    sys.exit(main())
