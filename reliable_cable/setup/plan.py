"""A plan: the files to write, the steps that are left to the user, and notes."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from .project import Source
from .syntax import NotUnderstood


@dataclass(frozen=True)
class Change:
    """A file to write.

    Args:
        before: the content of the file; empty if it does not exist.
        after: the new content.
    """

    before: bytes
    after: bytes


@dataclass(frozen=True)
class Step:
    """Something that the user has to do.

    Args:
        what: what to do, or why nothing was changed.
        code: the code to write.
    """

    what: str
    code: str


@dataclass
class Plan:
    """What `cable_setup` will do, and what it leaves to the user.

    Args:
        changes: the files to write.
        steps: what the user has to write.
        notes: what the user should know.
    """

    changes: dict[Path, Change] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def edit(self, source: Source, after: bytes) -> None:
        """Plan a change of a source file, unless the content stays the same.

        Raises:
            NotUnderstood: the plan already changes this file.
        """
        if source.path in self.changes:
            raise NotUnderstood(f"{shown(source.path)} has several parts to change")
        if after != source.text:
            self.changes[source.path] = Change(source.text, after)

    def diff(self) -> Iterator[str]:
        """Yield the lines of a unified diff of all changes."""
        for path, change in self.changes.items():
            before, after = (text.decode(errors="replace").splitlines() for text in (change.before, change.after))
            old = f"a/{shown(path)}" if path.exists() else "/dev/null"
            yield from difflib.unified_diff(before, after, old, f"b/{shown(path)}", lineterm="")

    def apply(self) -> None:
        """Write the files.

        Raises:
            OSError: a file cannot be written, while others have been written. Or a file has changed since the plan was
                made, and none has been written.
        """
        for path, change in self.changes.items():
            if (path.read_bytes() if path.exists() else b"") != change.before:
                raise OSError(f"{shown(path)} was changed meanwhile. Run the command again.")
        for path, change in self.changes.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(change.after)


def shown(path: Path) -> str:
    """Return a path as it is shown to the user: relative to the current folder if it is below it."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
