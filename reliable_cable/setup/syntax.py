"""Functions that edit Python source code, and preserve its formatting and comments."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import libcst as cst
from libcst import matchers as m
from libcst.helpers import get_full_name_for_node

Brackets = TypeVar("Brackets", cst.List, cst.Dict)

LINE_BREAK: Final = cst.TrailingWhitespace()


class NotUnderstood(Exception):
    """Raised if source code cannot be edited, because it has an unexpected form. The message describes the form."""


@dataclass(frozen=True)
class Assignment:
    """A statement that assigns a value to a variable.

    Args:
        value: the assigned expression; None if the statement is not a plain assignment, but for example a `for` loop.
        top_level: whether the statement is outside of all blocks.
        extends: whether the expression contains the variable, as in `name = [*name, …]`, to extend the former value.
    """

    value: cst.BaseExpression | None
    top_level: bool
    extends: bool


def find_assignments(module: cst.Module, name: str) -> list[Assignment]:
    """Return the statements that assign a value to a global variable, including those in blocks, but no imports."""
    finder = _Assignments(name)
    module.visit(finder)
    outer = {id(small) for line in module.body if isinstance(line, cst.SimpleStatementLine) for small in line.body}
    return [
        Assignment(value, id(node) in outer, value is not None and bool(m.findall(value, m.Name(name))))
        for node, value in finder.found
    ]


class _Assignments(cst.CSTVisitor):
    def __init__(self, name: str) -> None:
        self.name = name
        self.found: list[tuple[cst.CSTNode, cst.BaseExpression | None]] = []

    def visit_Assign(self, node: cst.Assign) -> None:  # noqa: N802 - libcst's names
        if any(m.findall(target.target, m.Name(self.name)) for target in node.targets):
            self.found.append((node, node.value))

    def visit_AnnAssign(self, node: cst.AnnAssign) -> None:  # noqa: N802
        if m.matches(node.target, m.Name(self.name)):
            self.found.append((node, node.value))

    def visit_For(self, node: cst.For) -> None:  # noqa: N802
        if m.findall(node.target, m.Name(self.name)):
            self.found.append((node, None))

    def visit_AsName(self, node: cst.AsName) -> None:  # noqa: N802
        """Find `with … as name` and `except … as name`."""
        if m.findall(node.name, m.Name(self.name)):
            self.found.append((node, None))

    def visit_NamedExpr(self, node: cst.NamedExpr) -> None:  # noqa: N802
        if m.matches(node.target, m.Name(self.name)):
            self.found.append((node, None))

    def visit_ImportAlias(self, node: cst.ImportAlias) -> bool:  # noqa: N802
        return False  # imports are not assignments; `_is_imported` finds them

    def visit_FunctionDef(self, node: cst.FunctionDef) -> bool:  # noqa: N802
        if node.name.value == self.name:
            self.found.append((node, None))
        return False

    def visit_ClassDef(self, node: cst.ClassDef) -> bool:  # noqa: N802
        if node.name.value == self.name:
            self.found.append((node, None))
        return False


def only_value(module: cst.Module, name: str, *, extended: bool = False) -> cst.BaseExpression:
    """Return the expression that is assigned to a variable exactly once, at the top level of a module.

    Args:
        module: the module that assigns the variable.
        name: the name of the variable.
        extended: whether to ignore assignments that extend the value, such as `name = [*name, …]`.

    Raises:
        NotUnderstood: the variable is assigned more than once, in a block, or never.
    """
    found = [each for each in find_assignments(module, name) if not (extended and each.extends)]
    if len(found) != 1 or not found[0].top_level or found[0].value is None:
        raise NotUnderstood(f"`{name}` is not assigned exactly once, outside of blocks")
    return found[0].value


def operands(value: cst.BaseExpression) -> list[cst.BaseExpression]:
    """Return the operands of a sum, from left to right. An expression that is not a sum is its only operand."""
    if isinstance(value, cst.BinaryOperation) and isinstance(value.operator, cst.Add):
        return [*operands(value.left), *operands(value.right)]
    return [value]


def string_value(node: cst.CSTNode | None) -> str | None:
    """Return the value of a plain string literal; None for all other expressions."""
    value = node.evaluated_value if isinstance(node, cst.SimpleString) else None
    return value if isinstance(value, str) else None


def calls(node: cst.CSTNode, function: str) -> list[cst.Call]:
    """Return all calls to a function in a syntax tree, outer calls first.

    Both `function()` and `module.function()` are found.
    """
    named = m.Call(func=m.Name(function) | m.Attribute(attr=m.Name(function)))
    return [found for found in m.findall(node, named) if isinstance(found, cst.Call)]


def only_argument(call: cst.Call) -> cst.BaseExpression | None:
    """Return the argument of a call that has exactly one argument, a positional one; None for all other calls."""
    if len(call.args) != 1 or call.args[0].keyword or call.args[0].star:
        return None
    return call.args[0].value


def replace(module: cst.Module, old: cst.CSTNode, new: cst.CSTNode) -> cst.Module:
    """Return a copy of a module, with one node replaced by another."""
    return cst.ensure_type(module.deep_replace(old, new), cst.Module)


def in_quotes_of(module: cst.Module, code: str) -> str:
    """Replace the double quotes in some code by single quotes, if most strings in a module have single quotes."""
    strings = [node.value for node in m.findall(module, m.SimpleString()) if isinstance(node, cst.SimpleString)]
    quotes = Counter(text.lstrip("rbuRBU")[0] for text in strings if '"""' not in text)
    return code.replace('"', "'") if quotes["'"] > quotes['"'] else code


# -- insertions -------------------------------------------------------------------------------------------------------


def insert_first(node: cst.List, code: str) -> cst.List:
    """Return a list literal with a new first element. If the former first element begins a line, so does the new one.

    Args:
        node: the list literal.
        code: the source code of the new element.
    """
    element = cst.Element(cst.parse_expression(code))
    if not node.elements:
        return node.with_changes(elements=[element])
    opening = node.lbracket.whitespace_after
    separator: cst.BaseParenthesizableWhitespace = cst.SimpleWhitespace(" ")
    if isinstance(opening, cst.ParenthesizedWhitespace):
        # Comment lines above the former first element stay directly above that element.
        separator = opening.with_changes(first_line=LINE_BREAK)
        opening = opening.with_changes(empty_lines=[])
    first = element.with_changes(comma=cst.Comma(whitespace_after=separator))
    return node.with_changes(lbracket=cst.LeftSquareBracket(whitespace_after=opening), elements=[first, *node.elements])


def insert_last(node: Brackets, code: str) -> Brackets:
    """Return a list or dict literal with a new last element. If the first element begins a line, so does the new one.

    Args:
        node: the literal.
        code: the source code of the new element; for a dict, `key: value`.
    """
    new: Any
    if isinstance(node, cst.List):
        names, new = ("lbracket", "rbracket"), cst.Element(cst.parse_expression(code))
    else:
        parsed = cst.ensure_type(cst.parse_expression(f"{{{code}}}"), cst.Dict)
        names, new = ("lbrace", "rbrace"), parsed.elements[0]
    if not node.elements:
        return node.with_changes(elements=[new])
    opening = getattr(node, names[0]).whitespace_after
    close = getattr(node, names[1])
    separator: cst.BaseParenthesizableWhitespace = cst.SimpleWhitespace(" ")
    closing = close.whitespace_before
    if isinstance(opening, cst.ParenthesizedWhitespace):
        separator = opening.with_changes(first_line=LINE_BREAK, empty_lines=[])
        if isinstance(closing, cst.ParenthesizedWhitespace):
            # A comment that follows the former last element on its line stays on that line.
            separator = separator.with_changes(first_line=closing.first_line, empty_lines=closing.empty_lines)
            closing = closing.with_changes(first_line=LINE_BREAK, empty_lines=[])
            new = new.with_changes(comma=cst.Comma())
    last: Any = node.elements[-1]
    return node.with_changes(
        elements=[*node.elements[:-1], last.with_changes(comma=cst.Comma(whitespace_after=separator)), new],
        **{names[1]: close.with_changes(whitespace_before=closing)},
    )


def insert_statements(module: cst.Module, code: str, *, after: str | None = None) -> cst.Module:
    """Return a module with additional statements.

    Args:
        module: the module to change.
        code: the source code of the statements.
        after: the name of a variable. The statements are inserted after the assignment to this variable. By default, or
            if there is no such assignment, they are appended to the module.
    """
    added = cst.parse_module(in_quotes_of(module, code))
    body = list(module.body)
    index = len(body)
    if after is not None:
        assigned = m.SimpleStatementLine(body=[m.Assign(targets=[m.AssignTarget(m.Name(after))])])
        index = next((number + 1 for number, line in enumerate(body) if m.matches(line, assigned)), index)
    statements = list(added.body)
    if added.header:
        statements[0] = statements[0].with_changes(leading_lines=[*added.header, *statements[0].leading_lines])
    if index < len(body):
        return module.with_changes(body=[*body[:index], *statements, *body[index:]])
    # Comments at the end of the file are in the footer of the module. They stay above the new statements.
    statements[0] = statements[0].with_changes(leading_lines=[*module.footer, *statements[0].leading_lines])
    return module.with_changes(body=[*body, *statements], footer=added.footer)


def add_imports(module: cst.Module, needed: Mapping[str, Iterable[str]]) -> cst.Module:
    """Return a module with additional imports at the top, in alphabetical order.

    Args:
        module: the module to change.
        needed: the names to import, by the dotted name of the module that defines them.

    Raises:
        NotUnderstood: the module uses one of the names for something else.
    """
    for source, names in needed.items():
        module = _add_import(module, source, [name for name in names if not _is_imported(module, source, name)])
    return module


def _is_imported(module: cst.Module, source: str, name: str) -> bool:
    """Return whether a module imports a name at its top level.

    Raises:
        NotUnderstood: the module uses the name for something else.
    """
    outer = {id(node) for _, node in _imports(module)}
    found = [
        (_source(node), id(node) in outer)
        for node in m.findall(module, m.ImportFrom() | m.Import())
        if isinstance(node, cst.ImportFrom | cst.Import) and not isinstance(node.names, cst.ImportStar)
        for alias in node.names
        if (alias.evaluated_alias or alias.evaluated_name) == name
    ]
    if find_assignments(module, name) or any(where != source for where, _ in found):
        raise NotUnderstood(f"the name `{name}` is already used for something other than {source}.{name}")
    return (source, True) in found


def _add_import(module: cst.Module, source: str, names: list[str]) -> cst.Module:
    if not names:
        return module
    block = _import_block(module)
    for _, node in block:
        if isinstance(node, cst.ImportFrom) and _source(node) == source and not isinstance(node.names, cst.ImportStar):
            return replace(module, node, _with_names(node, names))
    lines = [(number, _source(node)) for number, node in block]
    packages = [(n, w) for n, w in lines if w and w.split(".")[0] not in {*sys.stdlib_module_names, "__future__"}]
    later = next((number for number, where in packages if where > source), None)
    new = cst.ensure_type(cst.parse_statement(f"from {source} import {', '.join(names)}"), cst.SimpleStatementLine)
    body: list[Any] = list(module.body)
    if later is not None:
        # Comments above the next import stay directly above it, so the new import is inserted above them.
        above = list(body[later].leading_lines)
        blank = next((number for number, line in enumerate(above) if line.comment), len(above))
        new = new.with_changes(leading_lines=above[:blank])
        body[later] = body[later].with_changes(leading_lines=above[blank:])
        return module.with_changes(body=[*body[:later], new, *body[later:]])
    index = packages[-1][0] + 1 if packages else lines[-1][0] + 1 if lines else int(_has_docstring(module))
    if not packages and index:
        new = new.with_changes(leading_lines=[cst.EmptyLine(indent=False)])
    return module.with_changes(body=[*body[:index], new, *body[index:]])


def _with_names(node: cst.ImportFrom, names: list[str]) -> cst.ImportFrom:
    """Return a `from … import` with additional names, in alphabetical order.

    `AddImportsVisitor` of libcst is not used for this, because it fails if zope.interface is loaded.
    """
    aliases = [] if isinstance(node.names, cst.ImportStar) else list(node.names)
    space: cst.BaseParenthesizableWhitespace = cst.SimpleWhitespace(" ")
    if node.lpar and isinstance(node.lpar.whitespace_after, cst.ParenthesizedWhitespace):
        space = node.lpar.whitespace_after.with_changes(first_line=LINE_BREAK, empty_lines=[])
    comma = cst.Comma(whitespace_after=space)
    for name in names:
        new = cst.ImportAlias(cst.Name(name))
        index = next((i for i, alias in enumerate(aliases) if alias.evaluated_name > name), len(aliases))
        if index < len(aliases):
            aliases.insert(index, new.with_changes(comma=comma))
        else:
            last = aliases.pop()
            aliases += [last.with_changes(comma=comma), new.with_changes(comma=last.comma)]
    return node.with_changes(names=aliases)


def _source(node: cst.CSTNode) -> str:
    """Return the module from which an absolute `from … import` imports; `""` for all other imports."""
    if not isinstance(node, cst.ImportFrom) or node.relative or node.module is None:
        return ""
    return get_full_name_for_node(node.module) or ""


def _has_docstring(module: cst.Module) -> bool:
    return bool(module.body) and m.matches(module.body[0], m.SimpleStatementLine([m.Expr(m.SimpleString())]))


def _imports(module: cst.Module) -> list[tuple[int, cst.Import | cst.ImportFrom]]:
    """Return the top-level imports of a module, each with the index of its line in `module.body`."""
    firsts = [
        (number, line.body[0]) for number, line in enumerate(module.body) if isinstance(line, cst.SimpleStatementLine)
    ]
    return [(number, node) for number, node in firsts if isinstance(node, cst.Import | cst.ImportFrom)]


def _import_block(module: cst.Module) -> list[tuple[int, cst.Import | cst.ImportFrom]]:
    """Return the top-level imports that precede all other statements."""
    start = int(_has_docstring(module))
    return [found for index, found in enumerate(_imports(module)) if found[0] == start + index]
