"""Draws the plot in docs/deployment.md, an SVG with costs in multiples of the floor (see floor.py)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape
from typing import Any

from .report import fan_out

#: The geometry, in pixels.
WIDTH, LEFT, RIGHT, TOP, ROW = 940, 420, 60, 64, 24
#: The beginning and the ticks of the axis, in multiples of the floor.
LEAST = 0.04
TICKS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #24292f }
.small { font-size: 11px; fill: #57606a }
.ours { font-weight: 600 }
.grid { stroke: #d0d7de }
.paced { fill: #0969da }
.burst { fill: none; stroke: #bc4c00; stroke-width: 2 }
.bar { stroke: #d0d7de; stroke-width: 2 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 }
  .small { fill: #9198a1 }
  .grid, .bar { stroke: #3d444d }
  .paced { fill: #4493f8 }
  .burst { stroke: #f0883e }
}
"""


def plot(measured: Mapping[str, Any]) -> str:
    """Return an SVG of the CPU per delivery in multiples of the floor, on a logarithmic axis."""
    # For this project, show only broadcasts by another process, so that each server has one row.
    rows = [row for row in fan_out(measured["results"]) if not (row[0].startswith("reliable") and "POST" in row[1])]
    rows.sort(key=lambda row: _floors(row[3]))
    height = TOP + ROW * len(rows) + 34
    bottom = TOP + ROW * len(rows)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}">',
        f"<style>{STYLE}</style>",
        '<text x="8" y="20">CPU per delivered message, in multiples of a server that calls send() from C</text>',
        f'<circle class="paced" cx="14" cy="38" r="5"/><text class="small" x="24" y="42">20 broadcasts/s to '
        f"{measured['plan']['connections']} subscribers</text>",
        '<circle class="burst" cx="234" cy="38" r="4.5"/><text class="small" x="244" y="42">back to back</text>',
    ]
    for tick in TICKS:
        x = _place(tick)
        parts.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{TOP - 6}" y2="{bottom}"/>')
        parts.append(f'<text class="small" x="{x}" y="{bottom + 16}" text-anchor="middle">{tick}</text>')
    for number, row in enumerate(rows):
        y = TOP + ROW * number + ROW / 2
        paced, burst = _place(_floors(row[3])), _place(_floors(row[5])) if row[5] else None
        ours = ' class="ours"' if row[0].startswith("reliable") else ""
        parts.append(f'<text{ours} x="{LEFT - 16}" y="{y + 4}" text-anchor="end">{escape(row[0])}</text>')
        if burst is not None:
            parts.append(f'<line class="bar" x1="{paced}" x2="{burst}" y1="{y}" y2="{y}"/>')
            parts.append(f'<circle class="burst" cx="{burst}" cy="{y}" r="4.5"/>')
        parts.append(f'<circle class="paced" cx="{paced}" cy="{y}" r="5"/>')
        label = max(paced, burst or 0) + 12
        parts.append(f'<text class="small" x="{label}" y="{y + 4}">{float(row[2]):.0f} µs</text>')
    return "\n".join([*parts, "</svg>", ""])


def _floors(text: str) -> float:
    return float(text.split()[0])


def _place(ratio: float) -> float:
    """Return the position of a ratio on the axis, in pixels."""
    share = math.log(max(ratio, LEAST) / LEAST) / math.log(TICKS[-1] / LEAST)
    return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)
