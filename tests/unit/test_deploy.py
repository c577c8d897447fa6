"""Tests that the files in demo_project/deploy agree with each other and with the package."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys

import pytest

from reliable_cable.conf import CableSettings
from reliable_cable.protocol.constants import PING_INTERVAL_MAX
from reliable_cable.servers.drain import DRAIN_LIMIT
from tests.support.nginx import DEPLOY, procfile
from tests.support.server import ROOT

COMPOSE = (DEPLOY / "compose.yaml").read_text()
NGINX = (DEPLOY / "nginx.conf").read_text()


def compose_command(service: str) -> list[str]:
    """Return the command of a service in the Compose file."""
    match = re.search(rf"^  {service}:\n(?:    .*\n)*?    command: (.*)\n", COMPOSE, re.MULTILINE)
    assert match, service
    return shlex.split(match[1])


def seconds(text: str, name: str) -> float:
    """Return the seconds in the only directive with this name in a text."""
    (number,) = re.findall(rf"\b{name}:? (\d+)s", text)
    return float(number)


@pytest.mark.parametrize("service", ["web-daphne", "web-uvicorn", "worker"])
def test_compose_runs_what_the_procfile_runs(service: str) -> None:
    # redis and nginx read their files elsewhere in Compose, so the next test compares them.
    assert [word.replace("0.0.0.0", "127.0.0.1") for word in compose_command(service)] == procfile()[service]  # noqa: S104


@pytest.mark.parametrize("service", ["redis", "nginx"])
def test_compose_runs_the_same_programs_in_other_places(service: str) -> None:
    words = compose_command(service)
    assert words[0] == procfile()[service][0]
    path = next(word for word in words if word.endswith(".conf"))
    assert f"./{service}.conf:{path}:ro" in COMPOSE


def test_both_upstreams_differ_only_in_their_addresses() -> None:
    by_procfile, by_compose = ((DEPLOY / name).read_text() for name in ("upstream.conf", "upstream.compose.conf"))
    servers = re.findall(r"^server \S+?:(\d+) (.*);$", by_procfile, re.MULTILINE)
    assert [port for port, _ in servers] == ["8001", "8002"]
    assert [(port, f"{rest} resolve") for port, rest in servers] == re.findall(
        r"^server web-\w+:(\d+) (.*);$", by_compose, re.MULTILINE
    )
    assert "./upstream.compose.conf:/etc/nginx/upstream.conf:ro" in COMPOSE


def test_nginx_waits_longer_than_a_connection_may_be_silent() -> None:
    longest = max(PING_INTERVAL_MAX, CableSettings().ping_interval) * 1.5
    assert seconds(NGINX, "proxy_read_timeout") > longest


def test_containers_have_enough_time_to_drain() -> None:
    assert seconds(COMPOSE, "stop_grace_period") > 2 * DRAIN_LIMIT


def test_compose_publishes_ports_on_the_loopback_only() -> None:
    ports = re.findall(r"^    ports:\n((?:      - .*\n)+)", COMPOSE, re.MULTILINE)
    assert ports
    assert [line for group in ports for line in group.splitlines() if not line.startswith("      - 127.0.0.1:")] == []


def test_the_demo_needs_a_secret_key_in_production() -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("DEBUG", "SECRET_KEY")}
    environment |= {"DJANGO_SETTINGS_MODULE": "demo_project.settings"}

    def check(**variables: str) -> int:
        command = [sys.executable, "manage.py", "check"]
        result = subprocess.run(command, cwd=ROOT, env=environment | variables, capture_output=True, check=False)
        return result.returncode

    assert check(DEBUG="0") != 0
    assert check(DEBUG="0", SECRET_KEY="secret") == 0
