"""Runs a storm of runs: writers and servers are killed while readers come and go.

The exit code is 1 if a reader ended with anything but the text and the parts in the database.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import os
import shutil
import sys
import tempfile
from pathlib import Path

import django

from reliable_cable.client.build import build
from tests.node import node_modules
from tests.support.storms import conclude, show

from .plan import Plan


def main() -> int:
    """Run the storm that the command line describes, and return the exit code."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    django.setup()
    from .report import table, violations  # these import models
    from .storm import Storm

    parser = argparse.ArgumentParser(prog="python -m tests.storm_runs", description=__doc__)
    parser.add_argument("--runs", type=int, help="number of runs")
    parser.add_argument("--tokens", type=int, help="number of tokens of each run")
    parser.add_argument("--seed", type=int, help="seed of all random choices")
    parser.add_argument("--engine", choices=["redis", "database"])
    parser.add_argument("--database", choices=["sqlite", "postgres"])
    parser.add_argument("--at-once", type=int, help="number of runs at the same time")
    parser.add_argument("--writers", type=int, help="number of writer processes")
    parser.add_argument("--channel-readers", type=int, help="number of WebSocket readers of each run")
    parser.add_argument("--no-npm", dest="npm", action="store_false", default=None, help="no readers in Node")
    parser.add_argument("--pause", type=float, help="seconds between two tokens")
    parser.add_argument("--every", type=float, help="seconds between two faults")
    parser.add_argument("--keep", action="store_true", help="keep databases and logs even if no promise was broken")
    options = vars(parser.parse_args())
    keep = options.pop("keep")
    plan = dataclasses.replace(Plan(), **{name: value for name, value in options.items() if value is not None})
    node = ""
    if plan.npm:
        node = shutil.which("node") or parser.error("the readers in Node need Node; use --no-npm")
        node_modules()
        build()
    folder = Path(tempfile.mkdtemp(prefix="cable-storm-runs-"))
    outcome = asyncio.run(Storm(plan, folder, node, show).run())
    return conclude(outcome, table, violations, keep=keep)


if __name__ == "__main__":
    sys.exit(main())
