"""The code blocks of docs/pages.md can be executed."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import Group
from django.template import engines
from django.test import RequestFactory

from reliable_cable import abroadcast, aposition, position
from reliable_cable.channel import registry
from reliable_cable.signing import verify_signed_stream
from tests.unit.test_authentication_page import names_in, python_block
from tests.unit.test_docs import BLOCKS
from tests.unit.test_races import received
from tests.unit.wire import Client, identifier

PAGE = "pages.md"
TEMPLATES = [block.text for block in BLOCKS if (block.page, block.language) == (PAGE, "html")]


@pytest.fixture(autouse=True)
def _app(settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Provide the app of the page's example, with groups in place of orders, and users of a group in place of notes."""
    settings.RELIABLE_CABLE = {"ENGINE": "memory"}
    monkeypatch.setattr(Group, "notes", property(lambda group: group.user_set), raising=False)
    models = ModuleType("shop.models")
    models.Order = Group  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "shop", ModuleType("shop"))
    monkeypatch.setitem(sys.modules, "shop.models", models)
    cable = ModuleType("shop.cable")
    monkeypatch.setitem(sys.modules, "shop.cable", cable)
    vars(cable).update(names_in(python_block(PAGE, "# cable.py"), __name__="shop.cable"))
    yield
    registry.pop("OrderChannel")
    registry.pop("DashboardChannel", None)


async def frames_after(page: str) -> list[Any]:
    """Subscribe with the identifier that a page contains, and return the frames that the client is sent."""
    async with Client() as client:
        await client.send("subscribe", page)
        first = await client.receive()  # waits for the thread of a sync handler
        return [first.get("type") or first["message"], *await received(client)]


@pytest.mark.django_db(transaction=True)
async def test_the_page_of_an_order() -> None:
    order = await Group.objects.acreate(name="order")
    stream = f"OrderChannel:auth.group:{order.pk}"
    await abroadcast(stream, "before")
    view = names_in(python_block(PAGE, "# views.py"))

    def show(request: Any, name: str, context: dict[str, Any]) -> str:
        assert name == "order.html"
        return str(engines["django"].from_string(TEMPLATES[0]).render(context, request))

    view["render"] = show
    html = await sync_to_async(view["order"])(RequestFactory().get("/"), order.pk)
    await abroadcast(stream, "after")
    (after,) = re.findall(r'data-after="([^"]+)"', html)
    page = identifier("OrderChannel", order_id=order.pk, after=after)
    assert await frames_after(page) == ["confirm_subscription", 2]
    missing = identifier("OrderChannel", order_id=0, after=after)
    assert await frames_after(missing) == ["reject_subscription"]


async def test_a_signed_name_and_an_api() -> None:
    at = await aposition("news")
    html = str(engines["django"].from_string(TEMPLATES[1]).render({"at": at}))
    (signed,) = re.findall(r'data-stream="([^"]+)"', html)
    assert verify_signed_stream(signed) == ("news", at)
    view = names_in(python_block(PAGE, "# api.py"), list_news=lambda: ["old"])["news"]
    answer = json.loads((await sync_to_async(view)(RequestFactory().get("/"))).content)
    assert answer == {"items": ["old"], "after": str(at)}


async def test_a_handler_that_sends_the_data() -> None:
    await abroadcast("figures", 1)

    def read_figures() -> list[int]:
        from reliable_cable import broadcast

        broadcast("figures", 2)  # somebody else commits while the figures are being read
        return [1]

    names_in(python_block(PAGE, "# dashboard.py"), __name__="dashboard", read_figures=read_figures)
    assert await frames_after(identifier("DashboardChannel")) == [{"figures": [1]}, "confirm_subscription", 2]


@pytest.mark.django_db(transaction=True)
def test_one_snapshot() -> None:
    order = Group.objects.create(name="order")
    read_page = names_in(python_block(PAGE, "# one snapshot"))["read_page"]
    assert read_page(order, "news") == (position("news"), [])
