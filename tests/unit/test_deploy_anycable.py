"""Tests that the files in demo_project/deploy/anycable agree with each other and with the package."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
import yaml

from reliable_cable.connection.anycable.grpc_server import GRACE
from tests.support.anycable import VERSION
from tests.support.nginx import DEPLOY

FOLDER = DEPLOY / "anycable"
COMPOSE: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]
PROCFILE = {
    name: shlex.split(command)
    for name, command in (line.split(": ", 1) for line in (FOLDER / "Procfile").read_text().splitlines())
}


@pytest.mark.parametrize("service", ["web", "anycable", "ws"])
def test_compose_runs_what_the_procfile_runs(service: str) -> None:
    words = shlex.split(COMPOSE[service]["command"])
    local = [word.replace("0.0.0.0", "127.0.0.1").replace("anycable:50051", "127.0.0.1:50051") for word in words]  # noqa: S104
    assert local == PROCFILE[service]


def test_the_version_of_anycable_go_is_the_tested_one() -> None:
    assert COMPOSE["ws"]["image"] == f"anycable/anycable-go:{VERSION}"


def test_django_and_anycable_go_share_the_secret() -> None:
    assert COMPOSE["ws"]["environment"]["ANYCABLE_SECRET"] == COMPOSE["anycable"]["environment"]["ANYCABLE_SECRET"]


def test_only_nginx_publishes_a_port_and_only_on_the_loopback() -> None:
    ports = {name: service["ports"] for name, service in COMPOSE.items() if "ports" in service}
    assert list(ports) == ["nginx"]
    assert all(port.startswith("127.0.0.1:") for port in ports["nginx"])


def test_nginx_finds_the_servers_of_compose_and_of_the_procfile() -> None:
    text = (FOLDER / "nginx.conf").read_text()
    for address, service in (("127.0.0.1:8001", "web:8001"), ("127.0.0.1:8002", "ws:8002")):
        assert text.count(f"server {address};") == 1
        assert f"s/{address}/{service}/" in COMPOSE["nginx"]["command"]


def test_containers_have_enough_time_for_running_calls() -> None:
    assert int(COMPOSE["anycable"]["stop_grace_period"].removesuffix("s")) > GRACE
