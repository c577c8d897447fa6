"""The code blocks of docs/turbo.md work: this module runs the Python and the templates, and the demo has the script."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import transaction
from django.template import engines
from django.test import override_settings

import reliable_cable
from demo_project.chat.models import Message, Room
from reliable_cable import PagePosition, broadcast, broadcast_template, history
from reliable_cable.signing import signed_stream_name
from tests.unit.test_docs import BLOCKS, ROOT

pytestmark = pytest.mark.django_db(transaction=True)


def block(language: str, part: str) -> str:
    """Return the text of the only block that contains `part`."""
    (found,) = [each for each in BLOCKS if each.page == "turbo.md" and each.language == language and part in each.text]
    return found.text


@pytest.fixture(autouse=True)
def _settings() -> Iterator[None]:
    backend = "django.template.backends.django.DjangoTemplates"
    templates = {"chat/message.turbo_stream.html": block("html", "<turbo-stream action"), "chat/page.html": ""}
    loaders = [
        ("django.template.loaders.locmem.Loader", templates),
        "django.template.loaders.app_directories.Loader",
    ]
    libraries = {"turbo_helper": "turbo_helper.templatetags.turbo_helper"}
    options = {"loaders": loaders, "libraries": libraries}
    with override_settings(RELIABLE_CABLE={"ENGINE": "memory"}, TEMPLATES=[{"BACKEND": backend, "OPTIONS": options}]):
        yield


@pytest.fixture
def room() -> Room:
    return Room.objects.create(slug="lobby", name="Lobby")


def render(source: str, **context: Any) -> str:
    return str(engines["django"].from_string(source).render(context))


def source_of(room: Room, at: PagePosition | None = None) -> str:
    return (
        '<turbo-cable-stream-source channel="Turbo::StreamsChannel" '
        f'signed-stream-name="{signed_stream_name(f"chat.room:{room.pk}", at=at)}"'
    )


def test_the_page_is_rendered(room: Room) -> None:
    message = Message.objects.create(room=room, text="<hi>", client_id="1")
    broadcast(f"chat.room:{room.pk}", "<hi>")
    names: dict[str, Any] = {}
    code = block("python", "def room").replace("from chat.", "from demo_project.chat.")
    exec(code, names)  # noqa: S102 - the code of the page is what is tested
    names["render"] = lambda request, template, context: context
    context = names["room"](None, room.pk)
    page = render(block("html", "<ol"), **context)
    assert context["at"].offset == 1
    assert source_of(room, context["at"]) in page
    assert f'<li id="message-{message.pk}"' in page
    assert '"@anycable/core": "/static/reliable_cable/cable.mjs"' in page
    assert '<meta name="cable-history-timestamp"' in page


def test_the_demo_runs_the_script() -> None:
    """The browser tests run the demo's script, which contains the script of this page."""
    demo = (ROOT / "demo_project/chat/static/chat/turbo.js").read_text()
    script = block("js", "TurboChannel")
    (imports, _, rest) = script.partition("const cable")
    assert all(line in demo for line in imports.split("\n"))
    assert rest.partition("\n\n")[2] in demo


def test_the_function_broadcasts(room: Room) -> None:
    names: dict[str, Any] = {"transaction": transaction, "Message": Message}
    exec(block("python", "def post"), names)  # noqa: S102 - the code of the page is what is tested
    names["post"](room, User.objects.create_user("ann"), "<hi>")
    append, update, remove = [entry.data for entry in history(f"chat.room:{room.pk}")]
    assert append.startswith('<turbo-stream action="append" target="messages"><template><li id="message-')
    assert '<span class="text">&lt;hi&gt;</span>' in append
    assert update == (
        '<turbo-stream action="update" target="latest"><template><b>&lt;hi&gt;</b></template></turbo-stream>'
    )
    assert remove == '<turbo-stream action="remove" target="no-messages"></turbo-stream>'


def test_a_template_with_several_elements(room: Room) -> None:
    message = Message.objects.create(room=room, text="<hi>", client_id="1")
    names = {"room": room, "message": message, "broadcast_template": broadcast_template}
    exec(block("python", "broadcast_template(room"), names)  # noqa: S102
    (entry,) = history(f"chat.room:{room.pk}")
    assert entry.data.count("<turbo-stream ") == 2


class TestDjangoTurboHelper:
    def test_its_tags_are_used_beside_ours(self, room: Room) -> None:
        page = render(block("html", "turbo_frame"), room=room)
        assert source_of(room) in page
        assert '<turbo-frame id="search"' in page

    @pytest.mark.parametrize("last", ["reliable_cable", "turbo_helper"])
    def test_the_library_that_is_loaded_last_has_the_tag(self, room: Room, last: str) -> None:
        page = render("{% load turbo_helper reliable_cable %}{% load " + last + ' %}{% turbo_stream_from "a" %}')
        assert ("Turbo::StreamsChannel" in page) is (last == "reliable_cable")

    def test_what_its_builders_return_can_be_broadcast(self, room: Room) -> None:
        message = SimpleNamespace(pk=7, author_name="ann", text="<hi>", created=None)
        exec(block("python", "turbo_stream.append"), {"broadcast": reliable_cable.broadcast, "message": message})  # noqa: S102
        (entry,) = history("chat.room:1")
        assert entry.data.startswith('<turbo-stream action="append" target="messages"><template><li id="message-7"')
        assert broadcast is reliable_cable.broadcast


def test_every_block_of_the_page_is_tested_here() -> None:
    count = {"html": 3, "js": 2, "python": 4}
    assert {
        language: sum(b.page == "turbo.md" and b.language == language for b in BLOCKS) for language in count
    } == count
    assert Path(ROOT, "demo_project/chat/static/chat/turbo.js").is_file()
