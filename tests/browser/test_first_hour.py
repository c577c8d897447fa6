"""A newcomer follows README literally: from an empty folder to a working page, its tests and its deployment."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from django import get_version
from playwright.async_api import Browser, Page, expect

from reliable_cable import __version__
from tests.browser.demo import PAGE_PATIENCE
from tests.integration.test_wheel import clone, wheel
from tests.support.projects import interpreter_for, own_environment
from tests.support.redis import RedisPool, find_binaries
from tests.support.server import LOCAL, PATIENCE, ROOT, free_port

__all__ = ["clone", "wheel"]

pytestmark = [
    pytest.mark.browser,
    pytest.mark.node,
    pytest.mark.redis,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.asyncio(loop_scope="session"),
]

#: The heading after which README no longer describes the project of the newcomer.
END = "## The demo"
USER = {"USERNAME": "ann", "PASSWORD": "secret", "EMAIL": "ann@example.com"}
#: The path of a file, in the comment at the beginning of a block.
PATH = re.compile(r"(?:#|//|<!--) ([\w./]+)( \(add at the end\))?(?: -->)?\n")
TICKET = "/tickets/1/"
ANSWER = "Have you tried another bulb?"


@dataclass(frozen=True)
class Block:
    """A code block of README.

    Args:
        heading: the heading above it.
        language: its language.
        text: its text.
    """

    heading: str
    language: str
    text: str


def blocks() -> Iterator[Block]:
    """Yield the blocks that a newcomer follows, in order."""
    text = (ROOT / "README.md").read_text()
    heading = ""
    for match in re.finditer(r"^## ([^\n]+)$|^```(\w+)\n(.*?)^```$", text[: text.index(END)], re.MULTILINE | re.DOTALL):
        if match[1]:
            heading = match[1]
        else:
            yield Block(heading, match[2], match[3])


class Newcomer:
    """Follows README in an empty folder.

    Args:
        folder: the path of the folder.
        python: the Python that makes the virtual environment.
        wheel: the wheel that pip must find.
        constraints: the versions that pip must choose.
        redis_url: the Redis to use in place of the one in README.
        dependencies: a folder with packages that are made available in the virtual environment, so that pip does not
            install them; None: pip installs all packages.
    """

    def __init__(
        self,
        folder: Path,
        python: str,
        wheel: Path,
        constraints: Path,
        redis_url: str,
        *,
        dependencies: Path | None,
    ) -> None:
        self.folder = folder
        self.python = python
        self.wheel = wheel
        self.dependencies = dependencies
        self.redis_url = redis_url
        self.port = free_port()
        self.server: subprocess.Popen[bytes] | None = None
        self.served = ""
        self.environment = {
            **own_environment(),
            # Console scripts of the packages in `dependencies` are in the bin directory of the Python of these tests.
            "PATH": f"{folder}/.venv/bin:{os.environ['PATH']}:{Path(sys.executable).parent}",
            "PIP_CONSTRAINT": str(constraints),
            "PIP_FIND_LINKS": str(wheel.parent),
            "PIP_NO_COMPILE": "1",
            "PIP_QUIET": "1",
            **{f"DJANGO_SUPERUSER_{name}": value for name, value in USER.items()},
        }

    def follow(self, block: Block) -> None:
        """Run the commands of a block, or write its file."""
        text = block.text.replace("redis://127.0.0.1:6379/0", self.redis_url)
        if block.language == "sh":
            for line in text.splitlines():
                self.run(line)
                if " -m venv " in line and self.dependencies is not None:
                    self.provide(self.dependencies)
            return
        match = PATH.match(text)
        assert match is not None, f"the block does not name its file: {text}"
        path = self.folder / match[1]
        path.parent.mkdir(parents=True, exist_ok=True)
        former = path.read_text() if match[2] else ""
        path.write_text(former + text[match.end() :])

    def provide(self, dependencies: Path) -> None:
        """Make the packages of a folder available in the new environment, but install this package from its wheel."""
        (site_packages,) = self.folder.glob(".venv/lib/python*/site-packages")
        (site_packages / "dependencies.pth").write_text(f"{dependencies}\n")
        self.run(f"pip install --no-deps --no-index --ignore-installed {self.wheel}")

    def run(self, line: str) -> str:
        """Run a command, and return its output. A server goes on running until the next one is started."""
        if re.search(r" (runserver|cable_serve)\b", line):
            self.serve(line)
            return ""
        line = line.replace("python3 ", f"{self.python} ")
        if line.endswith(" createsuperuser"):
            line += " --noinput"
        done = subprocess.run(
            ["bash", "-ec", line],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=240,
        )
        if "check --deploy" in line:
            # Django reports problems of the settings that `startproject` has written, but none of this package.
            assert "reliable_cable" not in done.stdout, done.stdout
        else:
            assert done.returncode == 0, f"{line}\n{done.stdout}"
        return done.stdout

    def serve(self, line: str) -> None:
        """Start the server of a command on a free port, and wait until it answers."""
        self.stop()
        command, _, address = line.partition(" 127.0.0.1:8000")
        assert not address
        self.served = line
        with (self.folder / "server.log").open("ab") as log:
            self.server = subprocess.Popen(
                ["bash", "-ec", f"exec {command} 127.0.0.1:{self.port}"],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                httpx.get(f"{self.url}/", **LOCAL)
                return
            except httpx.TransportError:
                assert time.monotonic() < deadline, self.log
                assert self.server.poll() is None, self.log
                time.sleep(0.05)

    def stop(self) -> None:
        """Stop the server, if one is running, and the processes that it started."""
        if self.server is not None:
            os.killpg(self.server.pid, signal.SIGTERM)
            self.server.wait(PATIENCE)
            self.server = None

    @property
    def url(self) -> str:
        """The address of the server."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        """The output of all servers."""
        return (self.folder / "server.log").read_text(errors="replace")


@pytest.fixture
def newcomer(django: str, wheel: Path, redis_pool: RedisPool, tmp_path: Path) -> Iterator[Newcomer]:
    """A `Newcomer` in an empty folder, who installs the Django version that the parameter `django` names."""
    constraints = tmp_path / "constraints.txt"
    constraints.write_text(f"reliable_cable=={__version__}\ndjango~={django}.0\n")
    folder = tmp_path / "folder"
    folder.mkdir()
    newcomer = Newcomer(
        folder,
        interpreter_for(django),
        wheel,
        constraints,
        redis_pool.get(find_binaries()[0].name).url,
        # If these tests run with another version of Django, pip installs all packages.
        dependencies=Path(sysconfig.get_path("purelib")) if get_version().startswith(f"{django}.") else None,
    )
    yield newcomer
    if newcomer.server is not None:
        newcomer.stop()


@asynccontextmanager
async def windows(chromium: Browser, newcomer: Newcomer) -> AsyncIterator[tuple[Page, Page]]:
    """Log in, and open the page of the ticket in two windows."""
    context = await chromium.new_context()
    context.set_default_timeout(PAGE_PATIENCE)
    first = await context.new_page()
    await first.goto(newcomer.url + TICKET)
    await first.get_by_label("Username").fill(USER["USERNAME"])
    await first.get_by_label("Password").fill(USER["PASSWORD"])
    await first.get_by_role("button", name="Log in").click()
    await first.wait_for_url(newcomer.url + TICKET)
    second = await context.new_page()
    await second.goto(newcomer.url + TICKET)
    for page in (first, second):
        await expect(page.locator("#members")).to_have_text(USER["USERNAME"])
    yield first, second
    await context.close()


async def write(page: Page, text: str) -> None:
    await page.get_by_label("Comment").fill(text)
    await page.get_by_role("button").click()


async def expect_comments(page: Page, *texts: str) -> None:
    await expect(page.locator("li")).to_have_text([f"ann: {text}" for text in texts])


async def check_first_server(newcomer: Newcomer, first: Page, second: Page) -> None:
    """Do what README says below the command `runserver`."""
    await write(first, "Which lamp?")
    await expect_comments(first, "Which lamp?")
    await expect_comments(second, "Which lamp?")
    await write(first, " ")
    await expect(first.locator("output")).to_have_text("Write something first.")
    newcomer.stop()
    await expect(second.locator("#members")).to_have_text("unknown: no connection")
    newcomer.run(
        "python manage.py shell -c 'from tickets.cable import *; ticket = Ticket.objects.get(); "
        'TicketChannel.broadcast_to(ticket, ticket.comments.create(author="ann", text="That one.").as_dict())\''
    )
    newcomer.serve(newcomer.served)
    for page in (first, second):
        await expect_comments(page, "Which lamp?", "That one.")
    await second.reload()
    await expect_comments(second, "Which lamp?", "That one.")


async def check_stranger(chromium: Browser, newcomer: Newcomer, page: Page) -> None:
    """Check that the channel refuses a page without a login, even if it shows the markup of a logged-in user's page."""
    markup = await page.content()
    context = await chromium.new_context()
    stranger = await context.new_page()
    await stranger.route(f"**{TICKET}", lambda route: route.fulfill(body=markup, content_type="text/html"))
    await stranger.goto(newcomer.url + TICKET)
    await write(stranger, "Let me in.")
    await expect(stranger.locator("output")).to_contain_text("Not sent")
    await context.close()
    await expect_comments(page, "Which lamp?", "That one.")


async def check_long_answer(newcomer: Newcomer, *pages: Page) -> None:
    """Stream more tokens than a stream keeps by default, while the pages have no connection."""
    newcomer.stop()
    newcomer.run(
        "python manage.py shell -c 'from tickets.cable import *; ticket = Ticket.objects.get()\n"
        'for _ in range(300): TicketChannel.broadcast_to(ticket, {"token": "."})\''
    )
    newcomer.serve(newcomer.served)
    for page in pages:
        await expect(page.locator("#answer")).to_have_text(ANSWER + "." * 300)


@pytest.mark.parametrize("django", ["5.2", "6.1"])
async def test_a_newcomer_follows_readme(chromium: Browser, newcomer: Newcomer, django: str) -> None:
    todo = list(blocks())
    served = next(number for number, block in enumerate(todo) if "runserver" in block.text)
    for block in todo[: served + 1]:
        newcomer.follow(block)
    assert newcomer.run("python -m django --version").startswith(f"{django}.")
    async with windows(chromium, newcomer) as (first, second):
        await check_first_server(newcomer, first, second)
        await check_stranger(chromium, newcomer, first)
        deployed = next(number for number, block in enumerate(todo) if "REDIS_URL" in block.text)
        for block in todo[served + 1 : deployed]:
            newcomer.follow(block)
        newcomer.run("python manage.py shell -c 'from tickets.tasks import answer; answer.apply(args=[1])'")
        for page in (first, second):
            await expect(page.locator("#answer")).to_have_text(ANSWER)
        await check_long_answer(newcomer, first, second)
    for block in todo[deployed:]:
        newcomer.follow(block)
    async with windows(chromium, newcomer) as (first, second):
        await write(first, "Deployed.")
        await expect_comments(second, "Which lamp?", "That one.", "Deployed.")
    newcomer.stop()
    assert "Traceback" not in newcomer.log
