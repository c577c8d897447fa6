"""Generates the content of an answer from a seed, so that the checks can compute what a writer must have written."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from reliable_cable.runs.parts import Content

Item = str | Mapping[str, Any]

#: Texts that a reader may handle wrongly: characters outside of the BMP, combining characters, line breaks, HTML.
TEXTS = ("😀", "é", "\n\n", "<b>", "\u2028", "\\", '"', "👩\u200d👩", "data: ")
#: The fraction of the items that are parts.
PARTS = 0.04


def make_items(seed: int, count: int) -> list[Item]:
    """Return the pieces of text and the parts of an answer, in the order in which they are written."""
    rng = random.Random(seed)
    return [_part(rng, number) if rng.random() < PARTS else _text(rng, number) for number in range(count)]


def _text(rng: random.Random, number: int) -> str:
    return f"{rng.choice(TEXTS)} " if rng.random() < 0.1 else f"word{number} "


def _part(rng: random.Random, number: int) -> Item:
    parts: Sequence[Item] = (
        {"type": "reasoning", "text": f"thought{number} "},
        {"type": "tool-call", "id": f"call{number}", "name": "look", "input": {"number": number}},
        {"type": "source", "url": f"https://example.com/{number}", "title": f"Page {number}"},
        {"type": "data", "name": "chart", "data": [number]},
    )
    return rng.choice(parts)


def has_prefix(items: Sequence[Item], text: str, parts: Sequence[Mapping[str, Any]]) -> int | None:
    """Return the number of items after which an answer has this text and these parts; None if it never has them."""
    content = Content()
    for count, item in enumerate([*items, None]):
        if content.length == len(text) and len(content.parts) == len(parts):
            if content.text == text and content.parts == list(parts):
                return count
        elif content.length > len(text):
            return None
        if item is not None:
            content.add(item)
    return None
