"""Formats the results as tables. Fan-out costs are also given as multiples of a baseline, the floor (see floor.py)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import median
from typing import Any

HEAD = ("", "broadcast by", "20/s µs", "floors", "b2b µs", "floors", "p50 ms", "p99 ms", "bytes")
COSTS = ("", "connect µs", "signed in µs", "idle µs/s", "memory KiB")
SMALL = ("", "streams", "per s", "µs", "p50 ms", "p99 ms", "max ms")
CROWD = ("beside a crowd", "crowd", "memory KiB", "crowd max ms", "p50 ms", "p99 ms", "max ms")


def fan_out(results: Iterable[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Return the rows of the table of deliveries."""
    rows: list[tuple[str, ...]] = []
    for result in results:
        for way in result["ways"]:
            paced, burst = way["paced"], way.get("back_to_back")
            bare = result["name"].startswith("bare hub")
            rows.append(
                (
                    f"{way['name']}, {result['server']}" if bare else result["name"],
                    "POST to it" if bare else way["name"],
                    f"{paced['us']:.1f}",
                    _floors(paced),
                    f"{burst['us']:.1f}" if burst else "",
                    _floors(burst) if burst else "",
                    f"{paced['p50_ms']:.1f}",
                    f"{paced['p99_ms']:.1f}",
                    f"{paced['wire_bytes']:.0f}",
                )
            )
    return rows


def _floors(part: Mapping[str, Any]) -> str:
    """Return a cost in multiples of the CPU time of the floor process and, in brackets, of its calls of `send()`."""
    return f"{part['us'] / part['floor_process_us']:.2f} ({part['ratio']:.2f})"


def costs(results: Iterable[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Return the rows of the table of connections."""
    return [
        (
            result["name"],
            f"{result['connect_us']:.0f}",
            f"{result['connect_signed_in_us']:.0f}" if "connect_signed_in_us" in result else "",
            f"{result['idle_us']:.1f}",
            f"{result['memory_kib']:.1f}",
        )
        for result in results
    ]


def small_streams(results: Iterable[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Return the rows of the table of small streams."""
    return [
        (
            result["name"],
            f"{small['streams']}",
            f"{small['rate']:.0f}",
            *(f"{small[key]:.1f}" for key in ("us", "p50_ms", "p99_ms", "max_ms")),
        )
        for result in results
        if (small := result.get("small_streams"))
    ]


def crowds(results: Iterable[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Return the rows of the table of subscribers beside a crowd (see `Plan.crowd` in measure.py)."""
    return [
        (
            result["name"],
            f"{crowd['connections']}",
            *(f"{crowd[key]:.1f}" for key in ("memory_kib", "crowd_ms", "p50_ms", "p99_ms", "max_ms")),
        )
        for result in results
        if (crowd := result.get("crowd"))
    ]


def floors(results: Iterable[Mapping[str, Any]], kind: str, key: str) -> list[float]:
    """Return all measured floors, in µs."""
    return [way[kind][key] for result in results for way in result["ways"] if kind in way]


def problems(results: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return a description of each error, such as lost messages."""
    descriptions: list[str] = []
    for result in results:
        parts = [(f"{way['name']}, {kind}", way[kind]) for way in result["ways"] for kind in way if kind != "name"]
        parts += [(key.replace("_", " "), result[key]) for key in ("small_streams", "crowd") if key in result]
        for what, part in parts:
            for key in ("lost", "disordered", "posts_failed"):
                if part.get(key):
                    descriptions.append(f"{result['name']}, {what}: {part[key]} {key.replace('_', ' ')}")
    return descriptions


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """Format a table in Markdown."""
    lines = [head, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    rule = ["-" * width + ("" if column < 1 else ":") for column, width in enumerate(widths)]

    def line(words: Iterable[str]) -> str:
        padded = (
            word.ljust(width) if column < 1 else word.rjust(width + 1)
            for column, (word, width) in enumerate(zip(words, widths, strict=True))
        )
        return f"| {' | '.join(padded)} |"

    return "\n".join([line(head), f"| {' | '.join(rule)} |", *(line(row) for row in rows)])


def report(measured: Mapping[str, Any]) -> str:
    """Return the whole report in Markdown."""
    results = measured["results"]
    parts = [
        f"{measured['plan']['connections']} subscribers of one stream, {measured['environment']['floor']}. CPU of the "
        "server's process tree per delivered message, in µs, with the kernel; bytes: its frame on the wire. Floors: "
        "multiples of the process that sends from C, measured at the same time; in brackets, of its loop of send().",
    ]
    for kind, words in {"paced": "20 broadcasts/s", "back_to_back": "back to back"}.items():
        whole, loop = floors(results, kind, "floor_process_us"), floors(results, kind, "floor_us")
        if loop:
            parts.append(
                f"Floor, {words}: {median(whole):.1f} µs ({min(whole):.1f} to {max(whole):.1f}), of which "
                f"{median(loop):.1f} µs ({min(loop):.1f} to {max(loop):.1f}) in the loop."
            )
    sections = (
        (HEAD, fan_out(results)),
        (COSTS, costs(results)),
        (SMALL, small_streams(results)),
        (CROWD, crowds(results)),
    )
    parts += [table(head, rows) for head, rows in sections if rows]
    parts += [f"PROBLEM: {problem}" for problem in problems(results)]
    return "\n\n".join(parts)
