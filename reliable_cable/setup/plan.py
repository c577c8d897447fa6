"""The plan of `cable_setup`: the files to write, the steps that are left to the user, and notes."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from .project import Source
from .syntax import NotUnderstood


@dataclass(frozen=True)
class Change:
    """A file that will be created or changed.

    Args:
        before: the current content; empty if the file does not exist.
        after: the new content.
    """

    before: bytes
    after: bytes


@dataclass(frozen=True)
class Step:
    """A change that the user must make, because the command cannot make it.

    Args:
        what: a message that names the file, says why the command cannot change it, and tells the user what to do.
        code: the code for the user to insert.
    """

    what: str
    code: str


@dataclass
class Plan:
    """The changes that `cable_setup` will make, and the steps and hints that it will print.

    Args:
        changes: the files to write, by path.
        steps: the changes that the user must make.
        notes: hints for the user.
    """

    changes: dict[Path, Change] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def edit(self, source: Source, after: bytes) -> None:
        """Add a change to a source file to the plan, unless the new content equals the current one.

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
            OSError: either a file has changed since the plan was made, and no file was written; or a file could not be
                written, but other files may have been written.
        """
        for path, change in self.changes.items():
            if (path.read_bytes() if path.exists() else b"") != change.before:
                raise OSError(f"{shown(path)} has changed since the plan was made. Run the command again.")
        for path, change in self.changes.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(change.after)


def shown(path: Path) -> str:
    """Return a path as a string for messages: relative to the current folder if the file is in that folder."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
