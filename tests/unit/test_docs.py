"""README and docs/ have valid frames, code that compiles, existing commands and paths, and a complete reference.

`tests/browser/test_first_hour.py` follows README as a newcomer does.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib import import_module
from inspect import ismodule
from itertools import takewhile
from pathlib import Path
from typing import Any, get_args

import pytest
from django.core.management import get_commands, load_command_class

import reliable_cable
from reliable_cable.connection.stream_ids import stream_alias
from reliable_cable.protocol import commands, messages
from reliable_cable.protocol.constants import DisconnectReason, MessageType
from tests.node import require_node

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

PROTOCOL_HEADINGS = [
    "Handshake",
    "Subscriptions",
    "Broadcasts",
    "Stream ids",
    "History",
    "Restore",
    "Presence",
    "Whispers",
    "Heartbeat",
    "Disconnects",
    "Fast clients",
    "Signed streams",
    "Slow clients",
    "Traps",
]
README = ROOT / "README.md"
LANGUAGES = {"html", "js", "json", "nginx", "python", "sh", "text", "{eval-rst}", "{toctree}"}
#: The programs outside of the virtual environment that commands in README and docs/ may start.
PROGRAMS = {".", "anycable-go", "cd", "curl", "django-admin", "docker", "export", "git", "honcho", "python3"}
#: The names of packages whose programs have other names, by program.
PACKAGES = {"lint-imports": "import-linter"}


@dataclass(frozen=True)
class Block:
    """A fenced code block of a page."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def read_blocks() -> Iterator[Block]:
    for path in (*sorted(DOCS.glob("*.md")), README):
        fence = None
        lines: list[str] = []
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if fence is None and line.startswith("```"):
                fence, lines = (number, line.removeprefix("```").strip()), []
            elif fence is not None and line.startswith("```"):
                yield Block(path.name, fence[0], fence[1], "\n".join(lines))
                fence = None
            else:
                lines.append(line)
        assert fence is None, f"{path.name}: a block is not closed"


BLOCKS = list(read_blocks())
PAGES = {path.name: path.read_text() for path in sorted(DOCS.glob("*.md"))}


def blocks(language: str) -> list[Any]:
    return [pytest.param(block, id=str(block)) for block in BLOCKS if block.language == language]


def headings(page: str, level: int | None = None) -> list[str]:
    titles = re.findall(r"^(#+) (.+)$", re.sub(r"^```.*?^```", "", PAGES[page], flags=re.M | re.S), flags=re.M)
    return [title for marks, title in titles if level is None or len(marks) == level]


def test_every_code_block_has_a_known_language() -> None:
    assert [str(block) for block in BLOCKS if block.language not in LANGUAGES] == []


# -- frames ------------------------------------------------------------------------------------------------------------


def decode_all(text: str) -> list[Any]:
    """Return the JSON values in a block, which contains one or more."""
    decoder = json.JSONDecoder()
    values = []
    rest = text.strip()
    while rest:
        value, end = decoder.raw_decode(rest)
        values.append(value)
        rest = rest[end:].lstrip()
    return values


FRAMES = [
    frame
    for block in BLOCKS
    if block.page == "protocol.md" and block.language == "json"
    for frame in decode_all(block.text)
]
CLIENT_FRAMES = [frame for frame in FRAMES if "command" in frame]
SERVER_FRAMES = [frame for frame in FRAMES if "command" not in frame]


def compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def encode_as_the_server(frame: dict[str, Any]) -> str:
    """Encode a frame of the server with `protocol.messages`, from the values in the frame."""
    identifier = frame.get("identifier", "")
    match frame.get("type"):
        case None if "stream_id" in frame:
            encode = messages.broadcast_encoder(identifier, frame["stream_id"], frame["epoch"])
            return encode(frame["offset"], compact(frame["message"]))
        case None:
            return messages.transmission(identifier, compact(frame["message"]))
        case MessageType.WELCOME:
            return messages.welcome(frame["sid"], frame.get("restored_ids"))
        case MessageType.PING:
            return messages.ping(frame["message"])
        case MessageType.PONG:
            return messages.pong()
        case MessageType.DISCONNECT:
            return messages.disconnect(DisconnectReason(frame["reason"]), reconnect=bool(frame["reconnect"]))
        case MessageType.PRESENCE:
            return messages.presence_event(identifier, encode_presence(frame["message"]))
        case type_:
            return messages.acknowledgement(MessageType(type_), identifier)


def encode_presence(message: dict[str, Any]) -> str:
    match message["type"]:
        case "join":
            return messages.presence_join(message["id"], message["info"])
        case "leave":
            return messages.presence_leave(message["id"])
        case "info":
            records = message.get("records")
            return messages.presence_info(
                message["total"], None if records is None else [(record["id"], record["info"]) for record in records]
            )
        case type_:
            assert type_ == "error"
            return messages.presence_error()


@pytest.mark.parametrize("block", blocks("json"))
def test_json_blocks_can_be_decoded(block: Block) -> None:
    assert decode_all(block.text)


@pytest.mark.parametrize("frame", SERVER_FRAMES, ids=lambda frame: compact(frame)[:60])
def test_frames_of_the_server_equal_those_that_it_sends(frame: dict[str, Any]) -> None:
    assert encode_as_the_server(frame) == compact(frame)


@pytest.mark.parametrize("frame", CLIENT_FRAMES, ids=lambda frame: compact(frame)[:60])
def test_frames_of_clients_can_be_parsed(frame: dict[str, Any]) -> None:
    command = commands.parse(compact(frame))
    if isinstance(command, commands.Subscribe | commands.History) and "history" in frame:
        assert command.history is not None
        assert command.history.since == frame["history"]["since"]
        assert command.history.streams.keys() == frame["history"]["streams"].keys()
    if isinstance(command, commands.Subscribe | commands.Join) and "presence" in frame:
        assert command.presence == commands.PresenceClaim(**frame["presence"])


@pytest.mark.parametrize(
    "frame", [frame for frame in FRAMES if "identifier" in frame], ids=lambda frame: compact(frame)[:60]
)
def test_identifiers_name_a_channel(frame: dict[str, Any]) -> None:
    assert commands.parse_identifier(frame["identifier"])[0]


def test_the_stream_ids_are_a_name_and_its_alias() -> None:
    shown = {(frame["stream_id"], frame["identifier"]) for frame in SERVER_FRAMES if "stream_id" in frame}
    own = {(stream_id, identifier) for stream_id, identifier in shown if "#" in stream_id}
    assert own
    assert own < shown
    for stream_id, identifier in own:
        assert stream_id == stream_alias(stream_id.partition("#")[0], identifier)


def test_the_protocol_page_has_every_command_message_and_reason() -> None:
    page = PAGES["protocol.md"]
    assert {type(commands.parse(compact(frame))) for frame in CLIENT_FRAMES} == set(get_args(commands.AnyCommand))
    assert {frame["type"] for frame in SERVER_FRAMES if "type" in frame} == set(MessageType)
    presence = {frame["message"]["type"] for frame in SERVER_FRAMES if frame.get("type") == "presence"}
    assert presence == {"join", "leave", "info", "error"}
    assert [reason for reason in DisconnectReason if f"`{reason}`" not in page] == []


# -- code and commands -------------------------------------------------------------------------------------------------


def test_python_blocks_compile_and_import_what_exists() -> None:
    for block in BLOCKS:
        if block.language != "python":
            continue
        compile(block.text, str(block), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        for node in ast.walk(ast.parse(block.text)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("reliable_cable"):
                module = import_module(str(node.module))
                assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == [], str(block)


@pytest.mark.node
@pytest.mark.parametrize("block", blocks("js"))
def test_javascript_blocks_are_valid(block: Block, tmp_path: Path) -> None:
    require_node()
    module = tmp_path / "block.mjs"
    module.write_text(block.text)
    done = subprocess.run(["node", "--check", str(module)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def shell_commands() -> Iterator[Any]:
    for block in BLOCKS:
        if block.language == "sh":
            for line in block.text.replace("\\\n", "").splitlines():
                # The output of `$(…)` is an argument of the command around it.
                for words in split_commands(re.sub(r"\$\(.*?\)(?=\s|$)", "output", line)):
                    yield pytest.param(words, id=f"{block.page}: {' '.join(words)}")


def split_commands(line: str) -> list[list[str]]:
    """Return the commands of a line as lists of words."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;")
    lexer.whitespace_split = True
    split: list[list[str]] = [[]]
    for word in lexer:
        if word in ("&&", "||", "|", ";"):
            split.append([])
        else:
            split[-1].append(word)
    return [words for words in split if words]


@pytest.mark.parametrize("words", list(shell_commands()))
def test_commands_name_programs_options_and_files_that_exist(words: list[str]) -> None:
    variables = list(takewhile(lambda word: "=" in word, words))
    program, *arguments = words[len(variables) :] or ["export"]
    match program:
        case ".venv/bin/pytest":
            files = [ROOT / path for path in ("tests/conftest.py", *arguments) if (ROOT / path).is_file()]
            source = "".join(path.read_text() for path in files)
            assert all(f'"{variable.partition("=")[0]}"' in source for variable in variables)
            check_pytest(arguments)
        case ".venv/bin/python" | "python" if arguments[0] == "-m":
            check_module(arguments[1], arguments[2:])
        case ".venv/bin/python" | "python" if arguments[0] == "manage.py":
            check_management(arguments[1], arguments[2:])
        case ".venv/bin/pip" | "pip":
            check_pip(arguments)
        case ".venv/bin/sphinx-build":
            source, output = arguments[-2:]
            assert (ROOT / source / "conf.py").is_file()
            assert is_ignored(output)
        case _ if program.startswith(".venv/bin/"):
            name = program.removeprefix(".venv/bin/")
            assert re.search(rf'"{PACKAGES.get(name, name)}[>=\[]', (ROOT / "pyproject.toml").read_text())
        case _:
            assert program in PROGRAMS or os.access(ROOT / program, os.X_OK)


def check_pytest(arguments: list[str]) -> None:
    settings = PROJECT["tool"]["pytest"]["ini_options"]
    markers = {marker.partition(":")[0] for marker in settings["markers"]}
    rest = iter(arguments)
    for argument in rest:
        if argument == "-m":
            assert set(re.findall(r"\w+", next(rest))) - {"and", "or", "not"} <= markers
        elif argument in ("-k", "-n"):
            assert next(rest)
        elif argument not in ("-q", "-x"):
            path, *names = argument.split("::")
            assert (ROOT / path).exists(), path
            text = (ROOT / path).read_text() if names else ""
            assert [name for name in names if not re.search(rf"(def|class) {name}\b", text)] == []


def check_module(name: str, arguments: list[str]) -> None:
    if name in ("venv", "build"):
        return
    if name == "reliable_cable.setup":
        check_management("cable_setup", arguments)
        return
    folder = ROOT / name.replace(".", "/")
    assert (folder / "__main__.py").is_file()
    # The modules of the command declare its options.
    text = "\n".join(path.read_text() for path in folder.rglob("*.py"))
    subcommands = arguments[:1] if arguments and not arguments[0].startswith("-") else []
    for word in [*subcommands, *(argument for argument in arguments if argument.startswith("-"))]:
        assert f'"{word}"' in text, f"{name} does not have {word}"


def check_management(name: str, arguments: list[str]) -> None:
    assert name in get_commands()
    command = load_command_class(get_commands()[name], name)
    command.create_parser("manage.py", name).parse_args(arguments)


def check_pip(arguments: list[str]) -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    for names in re.findall(r"(?:\.|reliable_cable)\[(.+?)\]", " ".join(arguments)):
        assert set(names.split(",")) <= extras.keys()


def is_ignored(path: str) -> bool:
    patterns = (ROOT / ".gitignore").read_text().split()
    return any(fnmatch(f"/{path}/", pattern) for pattern in patterns)


# -- paths, links, headings --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", ["contributing.md", "glossary.md", "index.md", "protocol.md", "reference.md"])
def test_paths_in_text_exist(page: str) -> None:
    named = re.findall(r"`((?:[\w.-]+/)+[\w.-]*|[\w-]+\.(?:md|toml))`", PAGES[page])
    places = (ROOT, ROOT / "reliable_cable")
    assert [path for path in named if "NAME" not in path and not any((place / path).exists() for place in places)] == []


@pytest.mark.parametrize("path", [*DOCS.glob("*.md"), README], ids=lambda path: path.name)
def test_links_lead_to_files_and_headings(path: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", path.read_text()):
        file, _, anchor = target.partition("#")
        assert not file or (path.parent / file).exists(), target
        page = (path.parent / file).name if file else path.name
        if anchor and page in PAGES:
            assert anchor in {title.lower().replace(" ", "-") for title in headings(page)}, target


def test_the_protocol_has_its_headings_in_order() -> None:
    assert headings("protocol.md", 2) == PROTOCOL_HEADINGS


def test_references_in_code_name_existing_headings() -> None:
    """An example of a reference is "see Protocol: History"."""
    titles = {name.removesuffix(".md").capitalize(): headings(name) for name in PAGES}
    reference = re.compile(rf"(?<![\w.])({'|'.join(titles)}): ([A-Z].{{,40}})")
    dangling = []
    for folder in ("reliable_cable", "tests", "demo_project"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            text = re.sub(r"\s*\n\s*(?:#:? )?", " ", path.read_text())
            for page, heading in reference.findall(text):
                if not heading.startswith(tuple(titles[page])):
                    dangling.append(f"{path.relative_to(ROOT)}: {page}: {heading}")
    assert dangling == []


def test_every_page_is_in_the_index() -> None:
    (toctree,) = [block.text for block in BLOCKS if block.page == "index.md" and block.language == "{toctree}"]
    named = {line for line in toctree.splitlines() if line and not line.startswith(":")}
    assert {f"{name}.md" for name in named} | {"index.md"} == PAGES.keys()


def test_the_list_of_checks_is_complete() -> None:
    ids = set(re.findall(r"reliable_cable\.[EW]\d{3}", (ROOT / "reliable_cable/checks/__init__.py").read_text()))
    assert set(re.findall(r"reliable_cable\.[EW]\d{3}", PAGES["notices.md"])) == ids


# -- reference and glossary --------------------------------------------------------------------------------------------


def documented() -> Iterator[str]:
    """Yield the dotted path of each object in the reference."""
    module = ""
    for line in PAGES["reference.md"].splitlines():
        if match := re.match(r"\.\. currentmodule:: (\S+)", line):
            module = match[1]
        elif match := re.match(r"\.\. auto(?:function|class|exception|data):: ([\w.]+)", line):
            yield match[1] if "." in match[1] else f"{module}.{match[1]}"


def test_the_reference_has_every_public_name() -> None:
    public = {name for name, value in vars(reliable_cable).items() if name[0] != "_" and not ismodule(value)}
    assert {f"reliable_cable.{name}" for name in public} - set(documented()) == set()


@pytest.mark.parametrize("path", list(documented()))
def test_every_name_in_the_reference_exists_and_has_a_docstring(path: str) -> None:
    module, _, name = path.rpartition(".")
    assert getattr(import_module(module), name).__doc__


def test_the_glossary_is_sorted_and_has_whole_sentences() -> None:
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", PAGES["glossary.md"], flags=re.M)
    assert rows[0] == ("term", "meaning")
    terms = [term for term, _ in rows[1:]]
    assert terms == sorted(terms, key=str.lower)
    assert len(terms) == len(set(terms)) > 30
    assert [term for term, meaning in rows[1:] if not re.fullmatch(r"[A-Z].*[.]", meaning)] == []
