"""Measures several processes with PostgreSQL alone: `python -m tests.benchmarks postgres`.

Processes broadcast to many streams. A client of a uvicorn server, which makes no broadcasts, subscribes to all streams.
The time of a delivery is that from the call of `broadcast()` until the client has read the message.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import quantiles
from typing import Any

import psycopg

from tests.benchmarks.fanout.process import usage
from tests.support.client import Client, identify
from tests.support.outage import child_pids
from tests.support.postgres import find_postgres, running_postgres
from tests.support.server import ROOT, Server, environment, make_database

#: The isolation levels of transactions.
LEVELS = ("read committed", "repeatable read", "serializable")
#: How long, in seconds, the client waits for the last messages.
PATIENCE = 60.0
#: The number of streams in one subscription.
STREAMS_PER_SUBSCRIPTION = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument("--rate", type=float, action="append", help="broadcasts per second (20 and 1000)")
    parser.add_argument("--seconds", type=float, default=10, help="how long each rate is measured (10)")
    parser.add_argument("--streams", type=int, default=200, help="number of streams (200)")
    parser.add_argument("--writers", type=int, default=4, help="number of processes that broadcast (4)")
    parser.add_argument("--batch", type=int, default=1, help="broadcasts in each call of broadcast_batch() (1)")
    parser.add_argument("--level", choices=LEVELS, action="append", help="isolation level (read committed)")
    parser.add_argument("--polling", action="store_true", help="set NOTIFY to False, for comparison")
    parser.add_argument("--size", type=int, default=200, help="size of a message in characters (200)")


def run(options: argparse.Namespace) -> int:
    """Measure each isolation level and rate, print the results, and return the exit code."""
    binaries = find_postgres()
    if binaries is None:
        sys.stderr.write("PostgreSQL is needed: initdb and pg_ctl.\n")
        return 1
    complete = True
    for level in options.level or LEVELS[:1]:
        with running_postgres(binaries) as host, tempfile.TemporaryDirectory() as name:
            for number, rate in enumerate(options.rate or [20.0, 1000.0]):
                folder = Path(name) / str(number)
                folder.mkdir()
                complete &= asyncio.run(_measure(host, folder, level, rate, options))
    return 0 if complete else 1


async def _measure(host: str, folder: Path, level: str, rate: float, options: argparse.Namespace) -> bool:
    """Measure one rate. Return whether each message has arrived once and in order."""
    variables = {
        "CABLE_TEST_POSTGRES": host,
        "PGOPTIONS": "-c default_transaction_isolation=" + level.replace(" ", "\\ "),
    }
    settings = {"NOTIFY": not options.polling, "MAX_PENDING_SIZE": 16 * 1024 * 1024}
    database = make_database(folder, **variables)
    streams = [f"bench:{rate:g}:{number}" for number in range(options.streams)]
    with Server("uvicorn", folder, database, settings, shared=True, **variables) as server:
        async with Client(server.url, query="pi=60") as client:
            for start in range(0, len(streams), STREAMS_PER_SUBSCRIPTION):
                names = streams[start : start + STREAMS_PER_SUBSCRIPTION]
                await client.subscribe(identify("StreamChannel", streams=names))
            await asyncio.sleep(1)
            before, database_before = usage(server.pid).cpu, _database_cpu(host)
            writers = [
                subprocess.Popen(  # noqa: ASYNC220
                    [sys.executable, "-m", __name__, json.dumps(_share(streams, index, rate, options))],
                    cwd=ROOT, env=environment(database, settings, **variables), stdout=subprocess.PIPE,
                )
                for index in range(options.writers)
            ]  # fmt: skip
            times, offsets = await _receive(client, writers)
            cpu, database_cpu = usage(server.pid).cpu - before, _database_cpu(host) - database_before
            made = [json.loads((writer.communicate()[0] or b"{}").splitlines()[-1]) for writer in writers]
    count = sum(each["count"] for each in made)
    # The first message of each stream is not measured.
    complete = _is_complete(offsets, count + len(streams))
    _print(level, rate, times, made, (cpu, database_cpu), host, complete=complete)
    return complete


def _database_cpu(host: str) -> float:
    """Return the CPU time of a PostgreSQL server and its processes, including ended ones, in seconds."""
    postmaster = int((Path(host) / "data" / "postmaster.pid").read_text().split()[0])
    ticks = sum(_times(postmaster)) + sum(sum(_times(child)[:2]) for child in child_pids(postmaster))
    return ticks / os.sysconf("SC_CLK_TCK")


def _times(pid: int) -> list[int]:
    """Return the user and system time of a process, and those of its ended children, in ticks; `[]` if it has ended."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
        return [int(value) for value in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15]]
    return []


def _share(streams: Sequence[str], index: int, rate: float, options: argparse.Namespace) -> dict[str, Any]:
    return {
        "streams": streams,
        "first": index,
        "writers": options.writers,
        "rate": rate / options.writers,
        "seconds": options.seconds,
        "size": options.size,
        "batch": options.batch,
    }


async def _receive(client: Client, writers: Sequence[subprocess.Popen[bytes]]) -> tuple[list[float], dict[str, Any]]:
    """Read messages until no more arrive. Return the delays in seconds, and the offsets by stream."""
    times: list[float] = []
    offsets: dict[str, list[int]] = {}
    ended_at: float | None = None
    while ended_at is None or time.monotonic() - ended_at < PATIENCE:
        try:
            async with asyncio.timeout(2):
                frame = await client.next()
        except TimeoutError:
            if ended_at is not None:
                break
            if all(writer.poll() is not None for writer in writers):
                ended_at = time.monotonic()
            continue
        if "offset" in frame:
            if frame["message"]["at"]:
                times.append(time.time() - frame["message"]["at"])
            offsets.setdefault(frame["stream_id"], []).append(frame["offset"])
        elif frame.get("type") not in (None, "ping"):
            sys.stdout.write(f"unexpected: {frame}\n")
    return times, offsets


def _is_complete(offsets: dict[str, list[int]], count: int) -> bool:
    in_order = all(found == list(range(1, len(found) + 1)) for found in offsets.values())
    return in_order and sum(map(len, offsets.values())) == count


def _print(
    level: str,
    rate: float,
    times: Sequence[float],
    made: Sequence[Any],
    cpu: tuple[float, float],
    host: str,
    *,
    complete: bool,
) -> None:
    cuts = quantiles(times, n=100)
    count = sum(each["count"] for each in made)
    lag = max(each["late"] for each in made)
    longest = max(each["seconds"] for each in made)
    load = os.getloadavg()[0]
    sys.stdout.write(
        f"{level}, {rate:g}/s: {count} broadcasts in {longest:.1f} s ({count / longest:.0f}/s, "
        f"at most {lag:.2f} s late); "
        f"delivery p50 {cuts[49] * 1000:.1f} ms, p90 {cuts[89] * 1000:.1f} ms, p99 {cuts[98] * 1000:.1f} ms; "
        f"CPU per message: server {cpu[0] / count * 1e6:.0f} µs, PostgreSQL {cpu[1] / count * 1e6:.0f} µs, "
        f"writers {sum(each['cpu'] for each in made) / count * 1e6:.0f} µs; "
        f"{'no gap, no repeat' if complete else 'NOT COMPLETE'}; load {load:.0f}\n"
    )
    query = (
        "SELECT relname, n_live_tup, n_dead_tup, n_tup_hot_upd, n_tup_upd, autovacuum_count, "
        "pg_total_relation_size(relid) / 1024 FROM pg_stat_user_tables "
        "WHERE relname LIKE 'reliable_cable_%' AND n_tup_ins > 0 ORDER BY relname"
    )
    with psycopg.connect(host=host, user="postgres", dbname="postgres") as connection:
        for name, live, dead, hot, updated, vacuums, size in connection.execute(query):
            sys.stdout.write(
                f"  {name}: {live} live and {dead} dead rows, {hot} of {updated} updates in place, "
                f"{vacuums} autovacuums, {size} KiB\n"
            )
    sys.stdout.flush()


def _write(options: dict[str, Any]) -> None:
    """Broadcast at a fixed rate. Print the number of broadcasts, the longest delay of one, their time and CPU time."""
    import django

    django.setup()
    from reliable_cable import broadcast, broadcast_batch

    streams, batch = options["streams"], options["batch"]
    fill = "x" * options["size"]
    count = int(options["rate"] * options["seconds"])
    for name in streams[options["first"] :: options["writers"]]:
        broadcast(name, {"at": 0})
    cpu, began, late = time.process_time(), time.monotonic(), 0.0
    for number in range(0, count, batch):
        due = began + number / options["rate"]
        wait = due - time.monotonic()
        if wait > 0:
            time.sleep(wait)
        late = max(late, time.monotonic() - due)
        names = [
            streams[(options["first"] + number + index) % len(streams)] for index in range(min(batch, count - number))
        ]
        items = [(name, {"at": time.time(), "fill": fill}) for name in names]
        if batch == 1:
            broadcast(*items[0])
        else:
            broadcast_batch(items)
    result = {"count": count, "late": late, "seconds": time.monotonic() - began, "cpu": time.process_time() - cpu}
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    _write(json.loads(sys.argv[1]))
