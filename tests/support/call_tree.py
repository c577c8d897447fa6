"""Records which functions of the package call each other. `str` of a `CallTree` shows the calls, one per line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import reliable_cable

PACKAGE = Path(reliable_cable.__file__).parent


@dataclass(eq=False)
class Call:
    """A call of a function of the package. The resumptions of a coroutine belong to its call.

    Args:
        name: the qualified name of the function. A nested function has the name of the function around it.
        module: the path of its module in the package: `hub/stream.py`.
        caller: the innermost call of a function of the package that contains this call; None if there is none.
    """

    name: str
    module: str
    caller: Call | None = None
    calls: list[Call] = field(default_factory=list)

    @property
    def chain(self) -> list[Call]:
        """The calls from the outermost one to this one."""
        return [*(self.caller.chain if self.caller is not None else ()), self]

    def walk(self) -> Iterator[Call]:
        """Return this call and all calls in it, in their order."""
        yield self
        for call in self.calls:
            yield from call.walk()

    def lines(self, indent: str = "") -> Iterator[str]:
        """Return this call and the calls in it as lines of text."""
        yield f"{indent}{self.name}  ({self.module})"
        for call in self.calls:
            yield from call.lines(f"{indent}    ")


@dataclass(eq=False)
class CallTree:
    """The recorded calls. Frames that are not functions (comprehensions) count as a part of their function."""

    roots: list[Call] = field(default_factory=list)
    #: The calls by their frames. The frames are kept alive, so that no new frame gets the identity of a recorded one.
    _known: dict[FrameType, Call] = field(default_factory=dict)

    def all(self) -> Iterator[Call]:
        """Yield all calls in the tree, each before the calls that it made."""
        for root in self.roots:
            yield from root.walk()

    def find(self, name: str) -> list[Call]:
        """Return the calls of a function."""
        return [call for call in self.all() if call.name == name]

    def __str__(self) -> str:
        return "\n".join(line for root in self.roots for line in root.lines())

    def record(self, frame: FrameType, event: str, arg: Any) -> None:
        """Record an event of `sys.setprofile`."""
        if event == "call" and _is_ours(frame):
            self._call_of(frame)

    def _call_of(self, frame: FrameType) -> Call:
        if frame in self._known:
            return self._known[frame]
        outer = frame.f_back
        while outer is not None and not _is_ours(outer):
            outer = outer.f_back
        caller = self._call_of(outer) if outer is not None else None
        module = str(Path(frame.f_code.co_filename).relative_to(PACKAGE))
        call = self._known[frame] = Call(frame.f_code.co_qualname.partition(".<")[0], module, caller)
        (self.roots if caller is None else caller.calls).append(call)
        return call


def _is_ours(frame: FrameType) -> bool:
    code = frame.f_code
    return Path(code.co_filename).is_relative_to(PACKAGE) and (code.co_name[0] != "<" or code.co_name == "<lambda>")


@contextmanager
def recorded_calls() -> Iterator[CallTree]:
    """Record the calls that this thread makes inside the block."""
    tree = CallTree()
    former = sys.getprofile()
    sys.setprofile(tree.record)
    try:
        yield tree
    finally:
        sys.setprofile(former)
