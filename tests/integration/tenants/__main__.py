"""Runs scenarios with the clients of two tenants, and writes the messages that they receive as a line of JSON."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from types import SimpleNamespace
from typing import Any

import django

os.environ["DJANGO_SETTINGS_MODULE"] = "tests.integration.tenants.settings"
django.setup()

from django.contrib.auth import get_user_model  # noqa: E402 - needs the apps
from django.core.management import call_command  # noqa: E402
from django.test import Client as HttpClient  # noqa: E402
from django_tenants.utils import tenant_context  # noqa: E402

from tests.integration.tenants.documented import TenantConsumer, TenantMiddleware  # noqa: E402
from tests.integration.tenants.models import Customer, Domain  # noqa: E402
from tests.unit.wire import Client, identifier  # noqa: E402

TENANTS = ("a", "b")
IDENTIFIER = identifier("TenantChannel")
CONSUMER: Any = SimpleNamespace(as_asgi=lambda: TenantMiddleware(TenantConsumer.as_asgi()))


def prepare() -> dict[str, HttpClient]:
    """Create the tenants, each with a user whose id is 1. Return HTTP clients that are logged in as these users."""
    call_command("migrate_schemas", shared=True, verbosity=0)
    clients = {}
    for name in TENANTS:
        customer = Customer.objects.create(schema_name=name)
        Domain.objects.create(tenant=customer, domain=f"{name}.test", is_primary=True)
        clients[name] = log_in(name, f"user-of-{name}")
    return clients


def log_in(name: str, username: str) -> HttpClient:
    """Return an HTTP client that is logged in as a new user of a tenant."""
    client = HttpClient(headers={"host": f"{name}.test"})
    with tenant_context(Customer.objects.get(schema_name=name)):
        client.force_login(get_user_model().objects.create_user(username))
    return client


def connect(http: HttpClient, name: str, sid: str = "") -> Client:
    """Return a WebSocket client with the login of an HTTP client."""
    cookie = f"sessionid={http.cookies['sessionid'].value}"
    headers = [(b"host", f"{name}.test:80".encode()), (b"cookie", cookie.encode())]
    return Client(sid, consumer=CONSUMER, scope={"headers": headers})


async def receive(client: Client) -> Any:
    """Return the client's next frame that is not about presence."""
    while (frame := await client.receive()).get("type") == "presence":
        pass
    return frame


async def observe(http: dict[str, HttpClient]) -> dict[str, Any]:
    """Return the messages and results that the clients of both tenants receive, by scenario."""
    seen: dict[str, Any] = {}
    clients = [await connect(http[name], name).__aenter__() for name in TENANTS]
    for client in clients:
        await client.send("subscribe", IDENTIFIER)
    seen["users"] = [(await receive(client))["message"]["user"] for client in clients]
    for client in clients:
        assert (await receive(client))["type"] == "confirm_subscription"
    for name, client in zip(TENANTS, clients, strict=True):
        await asyncio.to_thread(http[name].post, "/say", {"text": f"a view of {name}"})
        await client.perform(IDENTIFIER, "say", text=f"a handler of {name}")
    seen["broadcasts"] = [sorted([(await receive(client))["message"] for _ in range(2)]) for client in clients]
    seen["members"] = [list((await asyncio.to_thread(http[name].get, "/members")).json()) for name in TENANTS]
    async with connect(http["b"], "b", clients[0].sid) as other:
        seen["restored by another tenant"] = other.welcome.get("restored", False)
    others = [await asyncio.to_thread(log_in, name, "other") for name in TENANTS]
    async with connect(others[1], "b") as there, connect(others[0], "a") as here:
        await asyncio.to_thread(others[0].post, "/change-password")
        seen["new password"] = await receive(here)
        await there.send_text('{"command":"ping"}')
        seen["new password in another tenant"] = await receive(there)
    await asyncio.to_thread(http["a"].post, "/sign-out")
    seen["logout"] = await receive(clients[0])
    await clients[1].send_text('{"command":"ping"}')
    seen["logout of another tenant"] = await receive(clients[1])
    await asyncio.to_thread(http["a"].post, "/revoke")
    await clients[1].send_text('{"command":"ping"}')
    seen["revocation of another tenant"] = await receive(clients[1])
    await asyncio.to_thread(http["b"].post, "/revoke")
    seen["revocation"] = (await receive(clients[1]))["message"]
    seen["unknown host"] = await connect(http["a"], "c").communicator.connect()
    return seen


sys.stdout.write(json.dumps(asyncio.run(observe(prepare()))) + "\n")
