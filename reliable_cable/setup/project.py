"""Finds the source files of a Django project."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec, resolve_name
from pathlib import Path
from typing import Final

import libcst as cst
from libcst import matchers as m
from libcst.helpers import get_full_name_for_node

from .syntax import NotUnderstood

#: The folders of the standard library and of installed packages. Their files are never edited.
INSTALLED: Final = {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "purelib", "platlib")}


@dataclass(frozen=True)
class Source:
    """A Python file of the project.

    Args:
        name: the dotted name of the module.
        path: the path of the file.
        package: the dotted name of the package from which the relative imports of the module are resolved.
        text: the content of the file; empty if the file does not exist yet.
        module: the syntax tree of the content.
    """

    name: str
    path: Path
    package: str
    text: bytes
    module: cst.Module

    @property
    def root(self) -> Path:
        """The folder that contains the module's top-level package."""
        depth = len(self.name.split("."))
        return (self.path.parent if self.path.name == "__init__.py" else self.path).parents[depth - 1]


def find_source(name: str) -> Source | None:
    """Return the source file of a module; None if there is no such file in the project.

    Raises:
        NotUnderstood: the file cannot be parsed.
    """
    try:
        spec = find_spec(name)
    except (ImportError, ValueError):  # a parent package does not exist, or the name is `__main__`
        return None
    if spec is None or spec.origin is None or not spec.has_location or spec.parent is None:
        return None
    path = Path(spec.origin)
    if path.suffix != ".py" or any(path.resolve().is_relative_to(folder) for folder in INSTALLED):
        return None
    text = path.read_bytes()
    try:
        module = cst.parse_module(text)
    except (cst.ParserSyntaxError, UnicodeDecodeError) as error:
        raise NotUnderstood("the file cannot be parsed") from error
    return Source(name, path, spec.parent, text, module)


def required_source(name: str) -> Source:
    """Return the source file of a module.

    Raises:
        NotUnderstood: there is no such file in the project, or it cannot be parsed.
    """
    source = find_source(name)
    if source is None:
        raise NotUnderstood(f"{name} is not a Python file of this project")
    return source


def imported_sources(source: Source, *, star: bool = False) -> Iterator[Source]:
    """Yield the project files from which a given file imports names by `from … import`.

    Args:
        source: the importing file.
        star: whether to follow only `from … import *`. If so, these imports in the found files are followed, too.
    """
    for node in m.findall(source.module, m.ImportFrom()):
        if not isinstance(node, cst.ImportFrom) or (star and not isinstance(node.names, cst.ImportStar)):
            continue
        name = get_full_name_for_node(node.module) if node.module else ""
        found = find_source(resolve_name("." * len(node.relative) + (name or ""), source.package))
        if found is not None and found.path != source.path:
            yield found
            if star:
                yield from imported_sources(found, star=True)
