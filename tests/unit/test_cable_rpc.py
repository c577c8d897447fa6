"""`manage.py cable_rpc` reports mistakes, and serves until a signal."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import sys
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.test import override_settings

from reliable_cable.management.commands.cable_rpc import Command

CONSUMER = {"RPC_CONSUMER": "reliable_cable.consumer.CableConsumer"}


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["50051"], "is not an address"),
        (["localhost:port"], "is not an address"),
        (["--concurrency", "0"], "at least 1"),
        (["--tls-key", "key.pem"], "must be given together"),
        (["127.0.0.1:0", "--tls-key", "no/key.pem", "--tls-cert", "no/cert.pem"], "No such file"),
    ],
)
def test_wrong_arguments_are_reported(arguments: list[str], problem: str) -> None:
    with override_settings(RELIABLE_CABLE=CONSUMER), pytest.raises(CommandError, match=problem):
        call_command("cable_rpc", *arguments)


def test_a_missing_consumer_is_reported() -> None:
    with pytest.raises(CommandError, match=r"RPC_CONSUMER'\] is missing"):
        call_command("cable_rpc")


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "reliable_cable.connection.anycable.grpc_server", raising=False)
    monkeypatch.setitem(sys.modules, "grpc", None)
    with pytest.raises(
        CommandError, match=r"The Python package grpc is not installed: pip install 'reliable_cable\[grp"
    ):
        call_command("cable_rpc")


def test_it_serves_until_a_signal_stops_it() -> None:
    class Output(io.StringIO):
        """Stops the command after the command has printed its address."""

        def flush(self) -> None:
            if "Answering" in self.getvalue():
                asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGTERM)

    output = Output()
    with override_settings(RELIABLE_CABLE=CONSUMER):
        call_command(Command(), "127.0.0.1:0", stdout=output, skip_checks=True)
    assert "Answering the calls of anycable-go at 127.0.0.1:" in output.getvalue()


async def test_it_serves_with_tls(tmp_path: Any) -> None:
    """The server refuses a file that is no certificate, which shows that it uses the given files."""
    from reliable_cable.connection.anycable.grpc_server import GRPCServer
    from reliable_cable.connection.anycable.service import load_service

    (tmp_path / "key.pem").write_text("no key")
    with override_settings(RELIABLE_CABLE=CONSUMER):
        server = GRPCServer(load_service(), concurrency=1, certificate=(tmp_path / "key.pem", tmp_path / "key.pem"))
        with pytest.raises(OSError, match="cannot listen"):
            await server.start("127.0.0.1:0")
        await server.stop()
