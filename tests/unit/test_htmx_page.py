"""The code blocks of docs/htmx.md work.

This module runs the Python code and the templates. It checks that the demo contains the scripts, which the browser
tests run there.
"""

from __future__ import annotations

import re
from html import unescape
from typing import Any
from urllib.parse import parse_qs

import pytest
from channels.routing import ProtocolTypeRouter, URLRouter
from django.core.asgi import get_asgi_application
from django.db import transaction
from django.template import engines
from django.urls import path

from demo_project.chat.consumers import AppConsumer
from demo_project.chat.models import Message, Room
from reliable_cable import history
from reliable_cable.auth import CableAuthMiddlewareStack
from reliable_cable.http import CableHTTP
from reliable_cable.signing import signed_stream_name
from tests.unit.test_docs import BLOCKS, ROOT

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _settings(settings: Any) -> None:
    settings.RELIABLE_CABLE = {"ENGINE": "memory"}


@pytest.fixture
def room() -> Room:
    return Room.objects.create(slug="lobby", name="Lobby")


def blocks(language: str) -> list[str]:
    return [each.text for each in BLOCKS if each.page == "htmx.md" and each.language == language]


def test_the_application_is_routed() -> None:
    names: dict[str, Any] = {
        "ProtocolTypeRouter": ProtocolTypeRouter,
        "URLRouter": URLRouter,
        "CableHTTP": CableHTTP,
        "CableAuthMiddlewareStack": CableAuthMiddlewareStack,
        "AppConsumer": AppConsumer,
        "django": get_asgi_application(),
        "path": path,
    }
    exec(blocks("python")[0], names)  # noqa: S102 - the code of the page is what is tested
    assert set(names["application"].application_mapping) == {"http", "websocket"}


def test_the_function_broadcasts(room: Room) -> None:
    names: dict[str, Any] = {"transaction": transaction, "Message": Message}
    exec(blocks("python")[1], names)  # noqa: S102
    names["post"](room, "<hi>")
    html, count = [entry.data for entry in history(f"chat.room:{room.pk}")]
    assert '<span class="text">&lt;hi&gt;</span>' in html
    assert count == {"$event": "count", "data": "1 message\n"}


@pytest.mark.parametrize("number", [0, 1])
def test_the_page_is_rendered(room: Room, number: int) -> None:
    message = Message.objects.create(room=room, text="<hi>", client_id="1")
    page = str(engines["django"].from_string(blocks("html")[number]).render({"room": room, "messages": [message]}))
    found = re.search(r'sse.connect="(/events\?[^"]+)"', page)
    assert found
    query = parse_qs(unescape(found[1]).partition("?")[2])
    assert query["signed_stream"] == [signed_stream_name(f"chat.room:{room.pk}"), signed_stream_name("news")]
    assert query["raw"] == ["1"]
    assert f'<li id="message-{message.pk}"' in page


def test_the_demo_runs_the_scripts() -> None:
    """The browser tests run the demo's script, which contains the scripts of this page."""
    demo = (ROOT / "demo_project/chat/static/chat/htmx.js").read_text()
    assert len(blocks("js")) == 2
    assert [part for text in blocks("js") for part in text.split("\n\n") if part not in demo] == []
