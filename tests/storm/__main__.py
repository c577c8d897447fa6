"""`python -m tests.storm`: a storm for as long as one likes; the exit code says whether every promise was kept."""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys

from tests.support.clock import find_faketime

from .plan import Plan
from .report import table, violations
from .stage import make_folder
from .storm import Storm


def main() -> int:
    """Run a storm as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tests.storm", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="for which there are faults")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--engine", choices=["redis", "database"], default="redis")
    parser.add_argument("--database", choices=["sqlite", "postgres"], default="sqlite", help="for durable streams")
    parser.add_argument("--redis", default="", help='which server program, "valkey 8.1"; by default the first found')
    parser.add_argument("--clients", type=int, default=20, help="of our own")
    parser.add_argument("--npm-clients", type=int, default=4)
    parser.add_argument("--every", type=float, default=1.0, help="seconds between two faults")
    parser.add_argument("--pause", type=float, default=0.05, help="seconds between two broadcasts of a broadcaster")
    parser.add_argument("--only", nargs="*", default=[], help="kinds of faults")
    parser.add_argument("--clocks", action="store_true", help="the clocks of two processes are wrong by 90 s")
    parser.add_argument("--keep", action="store_true", help="keep databases and logs, also if all is well")
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
    folder = make_folder()
    outcome = asyncio.run(Storm(plan, folder, lambda text: print(text, flush=True)).run())  # noqa: T201 - a command
    print(table(outcome))  # noqa: T201
    if not outcome.good:
        print(violations(outcome))  # noqa: T201
        print(f"logs: {folder}")  # noqa: T201
        return 1
    if not options.keep:
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
