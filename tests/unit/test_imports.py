"""Imports point one way (DESIGN.md): each module knows only the layers below its own."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "reliable_cable"

#: From the bottom up: a module may import its own package and the layers before its own, not its neighbours in a layer.
#: An entry stands for a module or a whole package; where two fit, the longer one counts.
LAYERS = (
    ("exceptions", "executor", "fair_lock", "identity", "reply", "signals", "turns"),
    ("protocol", "conf", "outages"),
    ("clock", "heartbeat", "middleware", "models", "outbox", "redis", "servers", "signing", "stream_ids", "threads"),
    ("committing", "workers"),
    ("database",),
    ("database_server",),
    ("auth", "streams", "presence", "sessions"),
    ("engine", "readers", "validation"),
    ("hub_stream", "pages"),
    ("presence.service", "repair", "sessions.service"),
    ("control",),
    ("broadcasting", "hub"),
    ("channel", "remote"),
    ("handlers", "pubsub", "testing"),
    ("membership",),
    ("subscription",),
    ("execution",),
    ("restore",),
    ("session",),
    ("consumer",),
    ("http", "templatetags", "checks", "admin"),
    ("apps", "management", "urls"),
)

#: Need nothing of the package, and nothing in it needs them but the command that builds the client.
APART = ("client", "migrations")

#: What the sans-I/O core may not touch: frameworks, loops, sockets, and clocks and ids of its own.
NOT_IN_PROTOCOL = {
    "asyncio",
    "channels",
    "daphne",
    "django",
    "os",
    "random",
    "redis",
    "secrets",
    "select",
    "socket",
    "threading",
    "time",
    "twisted",
    "uuid",
}

MODULES = {
    ".".join(path.relative_to(ROOT / PACKAGE).with_suffix("").parts): path
    for path in sorted((ROOT / PACKAGE).rglob("*.py"))
    if "node_modules" not in path.parts
}


def runtime_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node but those under `if TYPE_CHECKING:`, which import nothing when the program runs."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            for other in node.orelse:
                yield from runtime_nodes(other)
            continue
        yield node
        yield from runtime_nodes(node)


def imports(source: str, module: str) -> set[str]:
    """The full dotted names that a module imports, wherever in it: `from .a import b` gives `reliable_cable.a.b`."""
    full = f"{PACKAGE}.{module}"
    package = full.removesuffix(".__init__") if full.endswith(".__init__") else full.rpartition(".")[0]
    found = set()
    for node in runtime_nodes(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = [*parts[: len(parts) - node.level + 1]] if node.level else []
            base += [node.module] if node.module else []
            found |= {".".join([*base, alias.name]) for alias in node.names}
    return found


def own(names: set[str]) -> set[str]:
    """The modules of this package among `names`, without the package's name: attributes of modules become modules."""
    result = set()
    for name in names:
        head, _, rest = name.partition(".")
        if head != PACKAGE or not rest:
            continue
        while rest and rest not in MODULES and f"{rest}.__init__" not in MODULES:
            rest = rest.rpartition(".")[0]
        if rest:
            result.add(rest)
    return result


def place(module: str, entries: tuple[str, ...]) -> str | None:
    """The longest of `entries` that is `module` or a package of it."""
    return max((e for e in entries if f"{module}.".startswith(f"{e}.")), key=len, default=None)


RANK = {entry: rank for rank, layer in enumerate(LAYERS) for entry in layer}


def wrong_imports(module: str, source: str) -> list[str]:
    """What `module` imports against the direction of LAYERS."""
    mine = place(module, tuple(RANK))
    if mine is None:
        return [f"{module} has no place in LAYERS"]
    wrong = []
    for target in sorted(own(imports(source, module))):
        theirs = place(target, tuple(RANK))
        if theirs is None:
            if not (module.startswith("management.") and place(target, APART)):
                wrong.append(f"{module} imports {target}, which stands apart, or has no place in LAYERS")
        elif theirs != mine and RANK[theirs] >= RANK[mine]:
            wrong.append(f"{module} imports {target}, which is not below it")
    return wrong


LAYERED = [module for module in MODULES if module != "__init__" and place(module, APART) is None]


@pytest.mark.parametrize("module", LAYERED)
def test_imports_point_down(module: str) -> None:
    assert wrong_imports(module, MODULES[module].read_text()) == []


@pytest.mark.parametrize("module", [m for m in MODULES if place(m, APART)])
def test_what_stands_apart_needs_nothing_of_the_package(module: str) -> None:
    used = own(imports(MODULES[module].read_text(), module))
    assert {target for target in used if place(target, APART) is None} == set()


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("protocol.")])
def test_the_protocol_is_sans_io(module: str) -> None:
    tops = {name.split(".")[0] for name in imports(MODULES[module].read_text(), module)}
    assert tops & NOT_IN_PROTOCOL == set()
    assert tops <= set(sys.stdlib_module_names) | {PACKAGE, "orjson", "msgspec"}


def test_only_redis_modules_import_redis() -> None:
    assert {
        module
        for module, path in MODULES.items()
        for name in imports(path.read_text(), module)
        if (name.split(".")[0] == "redis" or f"{name}.".startswith(f"{PACKAGE}.redis."))
        and module.split(".")[-1] != "redis"
        and not module.startswith("redis.")
    } == set()


def test_only_model_stores_admin_and_commands_import_the_models() -> None:
    assert {
        module
        for module, path in MODULES.items()
        if "models" in own(imports(path.read_text(), module))
        and module.split(".")[-1] not in ("model", "model_numbering", "model_retention", "admin")
        and not module.startswith(("management.commands.", "migrations."))
    } == set()


def test_broadcasting_knows_stores_only() -> None:
    if "broadcasting" in MODULES:
        used = own(imports(MODULES["broadcasting"].read_text(), "broadcasting"))
        assert used & {"hub", "outbox", "channel", "session", "subscription", "consumer"} == set()


def test_the_client_is_built_with_the_standard_library_alone() -> None:
    tops = {name.split(".")[0] for name in imports(MODULES["client.build"].read_text(), "client.build")}
    assert tops <= set(sys.stdlib_module_names)


def test_nothing_imports_the_demo_or_the_tests() -> None:
    assert {
        module
        for module, path in MODULES.items()
        for name in imports(path.read_text(), module)
        if name.split(".")[0] in ("demo_project", "tests")
    } == set()


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("hub", "from .session import Session"),
        ("hub", "from . import session"),
        ("hub", "def later():\n    from reliable_cable.consumer import CableConsumer"),
        ("streams.memory", "import reliable_cable.hub.hub"),
        ("streams.memory", "from ..presence.base import PresenceStore"),
        ("session", "from .client.build import build"),
        ("nowhere", ""),
    ],
)
def test_a_wrong_import_is_noticed(module: str, source: str) -> None:
    assert len(wrong_imports(module, source)) == 1


def test_types_may_be_named_in_any_direction() -> None:
    assert wrong_imports("hub", "if TYPE_CHECKING:\n    from .session import Session") == []
