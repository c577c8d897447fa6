"""Turbo Streams are broadcast as elements to pages, which subscribe with a template tag and a channel."""

from __future__ import annotations

import base64
import inspect
import json
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import User
from django.core import signals
from django.db import transaction
from django.template import TemplateSyntaxError, engines
from django.template.loader import render_to_string
from django.test import RequestFactory, override_settings
from django.utils.safestring import mark_safe
from hypothesis import given
from hypothesis import strategies as st

from reliable_cable import (
    ChannelError,
    InvalidOption,
    InvalidPayload,
    aposition,
    broadcast,
    history,
    position,
    turbo,
)
from reliable_cable.protocol.positions import StreamPosition
from reliable_cable.pubsub_channel import TurboStreamsChannel
from reliable_cable.reply import StreamStart
from reliable_cable.request_time import request_began
from reliable_cable.signing import signed_stream_name
from reliable_cable.stores.engine import get_engine
from tests.unit import wire

pytestmark = pytest.mark.django_db(transaction=True)

TEMPLATES = {"item.html": "<li>{{ text }}</li>", "users.html": "{% for user in users %}{{ user.username }}{% endfor %}"}
CONTENT = ("append", "prepend", "replace", "update", "before", "after")
ACTIONS = (*CONTENT, "remove", "refresh")


@pytest.fixture(autouse=True)
def _settings() -> Iterator[None]:
    engine = "django.template.backends.django.DjangoTemplates"
    options = {
        "loaders": [("django.template.loaders.locmem.Loader", TEMPLATES)],
        "libraries": {"reliable_cable": "reliable_cable.templatetags.reliable_cable"},
    }
    with override_settings(RELIABLE_CABLE={"ENGINE": "memory"}, TEMPLATES=[{"BACKEND": engine, "OPTIONS": options}]):
        yield


def data(stream: str = "a") -> list[Any]:
    return [entry.data for entry in history(stream)]


class Elements(HTMLParser):
    """Collects the start tags of an HTML string."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


class TestElements:
    @pytest.mark.parametrize("action", CONTENT)
    def test_an_action_with_content(self, action: str) -> None:
        call = getattr(turbo, f"broadcast_{action}_to")
        assert isinstance(call("a", target="list", template="item.html", context={"text": "<"}), StreamPosition)
        call("a", targets=".list", html=mark_safe("<li>&amp;</li>"))
        assert data() == [
            f'<turbo-stream action="{action}" target="list"><template><li>&lt;</li></template></turbo-stream>',
            f'<turbo-stream action="{action}" targets=".list"><template><li>&amp;</li></template></turbo-stream>',
        ]

    def test_remove_and_refresh_have_no_content(self) -> None:
        turbo.broadcast_remove_to("a", target="item_1")
        turbo.broadcast_refresh_to("a")
        turbo.broadcast_refresh_to("a", request_id="r")
        assert data() == [
            '<turbo-stream action="remove" target="item_1"></turbo-stream>',
            '<turbo-stream action="refresh"></turbo-stream>',
            '<turbo-stream action="refresh" request-id="r"></turbo-stream>',
        ]

    @pytest.mark.parametrize("action", ["replace", "update"])
    def test_content_can_be_morphed(self, action: str) -> None:
        getattr(turbo, f"broadcast_{action}_to")("a", target="list", method="morph", html="x")
        assert data() == [
            f'<turbo-stream action="{action}" method="morph" target="list"><template>x</template></turbo-stream>'
        ]

    def test_content_may_be_empty(self) -> None:
        turbo.broadcast_update_to("a", target="list", html="")
        assert data() == ['<turbo-stream action="update" target="list"><template></template></turbo-stream>']

    def test_text_is_escaped_unless_it_is_safe(self) -> None:
        turbo.broadcast_append_to("a", target="list", html="<b>")
        turbo.broadcast_append_to("a", target="list", html=render_to_string("item.html", {"text": "<"}))
        assert [text.partition("<template>")[2].partition("</template>")[0] for text in data()] == [
            "&lt;b&gt;",
            "<li>&lt;</li>",
        ]

    @given(target=st.text(min_size=1), html=st.text())
    def test_nothing_in_a_text_leaves_its_place(self, target: str, html: str) -> None:
        """Texts add no element and no attribute. The target arrives unchanged, apart from line breaks."""
        for name in ("target", "targets"):
            options = {name: target, "html": html, "method": target}
            made = turbo._broadcast("append", turbo.MorphOptions, ("a",), options)
            assert made._ready is not None
            text = json.loads(made._ready.message.data)
            (_, attributes), (template, _) = Elements(text).found
            plain = target.replace("\r\n", "\n").replace("\r", "\n")
            assert template == "template"
            assert {key: (value or "") for key, value in attributes.items()}.keys() == {"action", name, "method"}
            assert (attributes[name] or "").replace("\r\n", "\n").replace("\r", "\n") == plain


class TestArguments:
    @pytest.mark.parametrize(
        "options",
        [
            {"html": "x"},
            {"html": "x", "target": "a", "targets": "b"},
            {"target": "a"},
            {"target": "", "html": "x"},
            {"target": "a", "html": "x", "template": "item.html"},
        ],
    )
    def test_a_target_and_a_content_are_required(self, options: Any) -> None:
        with pytest.raises(InvalidOption, match="broadcast_append_to: give"):
            turbo.broadcast_append_to("a", **options)

    @pytest.mark.parametrize("options", [{}, {"targets": ""}, {"target": "a", "targets": "b"}])
    def test_a_target_is_required(self, options: Any) -> None:
        with pytest.raises(InvalidOption, match="broadcast_remove_to: give"):
            turbo.broadcast_remove_to("a", **options)

    @pytest.mark.parametrize("action", ACTIONS)
    def test_an_unknown_option_is_an_error(self, action: str) -> None:
        with pytest.raises(TypeError, match=rf"broadcast_{action}_to\(\) got an unexpected keyword argument 'traget'"):
            getattr(turbo, f"broadcast_{action}_to")("a", traget="b")

    @pytest.mark.parametrize("streamables", [(), ("",), (None,), (User(),), ([],), (1.5,)])
    def test_what_names_no_stream_is_refused(self, streamables: Any) -> None:
        with pytest.raises(ChannelError, match=r"names no stream|is not saved"):
            turbo.broadcast_refresh_to(*streamables)

    def test_a_message_that_is_too_large_is_refused_by_the_call(self) -> None:
        with (
            override_settings(RELIABLE_CABLE={"ENGINE": "memory", "MAX_BROADCAST_SIZE": 1024}),
            transaction.atomic(),
            pytest.raises(InvalidPayload),
        ):
            turbo.broadcast_append_to("a", target="list", html="x" * 2000)

    def test_options_are_those_of_a_broadcast(self) -> None:
        for number in range(2):
            turbo.broadcast_update_to("a", target="n", html=str(number), idempotency_key="k", exclude_socket="s" * 22)
        turbo.broadcast_refresh_to("a", transient=True)
        assert len(data()) == 1

    @pytest.mark.parametrize("action", ACTIONS)
    def test_twins_have_the_same_signature(self, action: str) -> None:
        sync, twin = (getattr(turbo, f"{prefix}broadcast_{action}_to") for prefix in ("", "a"))
        assert inspect.signature(sync) == inspect.signature(twin)
        assert inspect.iscoroutinefunction(twin)

    @pytest.mark.parametrize("action", ACTIONS)
    async def test_twins_send_the_same(self, action: str) -> None:
        options: dict[str, Any] = {} if action == "refresh" else {"target": "list"}
        if action in CONTENT:
            options |= {"template": "item.html", "context": {"text": "x"}}
        await getattr(turbo, f"abroadcast_{action}_to")("a", **options)
        await sync_to_async(getattr(turbo, f"broadcast_{action}_to"))("b", **options)
        assert await sync_to_async(data)("a") == await sync_to_async(data)("b") != []


def test_templates_and_html_of_a_transaction_keep_their_order() -> None:
    with transaction.atomic():
        turbo.broadcast_remove_to("a", target="empty")
        turbo.broadcast_append_to("a", target="list", template="users.html", context={"users": User.objects.all()})
        turbo.broadcast_update_to("a", target="count", html="1")
        User.objects.create_user("ann")
        assert data() == []
    assert [Elements(text).found[0][1]["action"] for text in data()] == ["remove", "append", "update"]
    assert "ann" in data()[1]


class TestTag:
    def render(self, source: str, **context: Any) -> dict[str, str | None]:
        html = engines["django"].from_string("{% load reliable_cable %}" + source).render(context)
        ((tag, attributes),) = Elements(str(html)).found
        assert tag == "turbo-cable-stream-source"
        return attributes

    def test_the_element_has_the_channel_and_the_signed_name(self) -> None:
        user = User.objects.create_user("ann")
        for source, name in [
            ('"chat"', "chat"),
            ('"chat" 1', "chat:1"),
            ("user", f"auth.user:{user.pk}"),
            ('"chat" user "x"', f"chat:auth.user:{user.pk}:x"),
        ]:
            attributes = self.render("{% turbo_stream_from " + source + " %}", user=user)
            assert abs(float(attributes.pop("data-since") or "") - time.time()) < 60
            assert attributes == {"channel": "Turbo::StreamsChannel", "signed-stream-name": signed_stream_name(name)}

    def test_the_time_is_the_beginning_of_the_request(self) -> None:
        request = RequestFactory().get("/")
        signals.request_started.send(type(self), environ=request.META)
        began = request_began(request)
        assert began is not None
        former = RequestFactory().get("/")
        former.META["reliable_cable.request_began"] = began - 100
        now, before = (
            float(self.render('{% turbo_stream_from "chat" %}', request=each)["data-since"] or "")
            for each in (request, former)
        )
        assert abs(now - get_engine().stream_clock.at(began)) < 1
        assert abs(now - before - 100) < 1

    def test_the_signed_name_can_have_a_position(self) -> None:
        at = position("chat:1")
        attributes = self.render('{% turbo_stream_from "chat" 1 at=at %}', at=at)
        assert attributes["signed-stream-name"] == signed_stream_name("chat:1", at=at)
        assert "data-since" not in attributes
        for source in ('{% turbo_stream_from "chat" 1 at=missing %}', '{% turbo_stream_from "chat" at=at %}'):
            with pytest.raises((TemplateSyntaxError, InvalidOption)):
                self.render(source, at=at)

    def test_a_missing_variable_is_an_error(self) -> None:
        for source in ("", "missing", '"chat" missing'):
            with pytest.raises(ChannelError):
                self.render("{% turbo_stream_from " + source + " %}")


class TestChannel:
    @pytest.mark.parametrize("protocol", [wire.EXTENDED, wire.BASE])
    async def test_a_client_with_the_signed_name_gets_the_elements(self, protocol: str) -> None:
        user = await sync_to_async(User.objects.create_user)("ann")
        name = signed_stream_name(f"auth.user:{user.pk}")
        async with wire.Client(protocol=protocol) as client:
            await client.subscribe(wire.identifier("Turbo::StreamsChannel", signed_stream_name=name))
            await turbo.abroadcast_remove_to(user, target="x")
            frame = await client.receive()
            assert frame["message"] == '<turbo-stream action="remove" target="x"></turbo-stream>'

    async def test_a_page_with_a_position_gets_what_came_after_it(self) -> None:
        """The time in the meta tags of the page does not cause the message to be sent again."""
        await turbo.abroadcast_remove_to("a", target="before")
        at = await aposition("a")
        await turbo.abroadcast_remove_to("a", target="after")
        identifier = wire.identifier("Turbo::StreamsChannel", signed_stream_name=signed_stream_name("a", at=at))
        async with wire.Client() as client:
            await client.subscribe(identifier, history={"since": int(time.time()) - 10})
            assert 'target="after"' in (await client.receive())["message"]
            assert (await client.receive())["type"] == "confirm_history"
            assert await client.quiet()

    @pytest.mark.parametrize("history", [None, "later"])
    async def test_a_page_with_a_time_gets_what_came_since_then(self, history: str | None) -> None:
        """The time of the page counts. `since` does not. Under Turbo Drive, it is the time of the last ping."""
        began = time.time() - 5
        await turbo.abroadcast_remove_to("a", target="x")
        identifier = wire.identifier(
            "Turbo::StreamsChannel", signed_stream_name=signed_stream_name("a"), since=f"{began:.6f}"
        )
        async with wire.Client() as client:
            request = {} if history is None else {"history": {"since": int(time.time()) + 5}}
            await client.subscribe(identifier, **request)
            assert 'target="x"' in (await client.receive())["message"]
            if history is not None:
                assert (await client.receive())["type"] == "confirm_history"
            await turbo.abroadcast_remove_to("a", target="y")
            assert 'target="y"' in (await client.receive())["message"]
            assert await client.quiet()

    @pytest.mark.parametrize("since", [0, 1.5, "", "x", "nan", "inf", "1e400", "-1.000000", "9" * 400, None, []])
    async def test_what_is_not_a_time_is_ignored(self, since: Any) -> None:
        await turbo.abroadcast_remove_to("a", target="x")
        identifier = wire.identifier("Turbo::StreamsChannel", signed_stream_name=signed_stream_name("a"), since=since)
        async with wire.Client() as client:
            await client.subscribe(identifier)
            assert await client.quiet()

    async def test_presence_and_whispers_are_refused(self) -> None:
        identifier = wire.identifier("Turbo::StreamsChannel", signed_stream_name=signed_stream_name("a"))
        async with wire.Client() as client, wire.Client() as other:
            await client.subscribe(identifier)
            await other.subscribe(identifier)
            await other.send("whisper", identifier, data={"html": "forged"})
            await other.send("join", identifier, presence={"id": "ann", "info": {}})
            assert await client.quiet()

    async def test_a_signed_name_is_required(self) -> None:
        signed = signed_stream_name("a")
        wrong: list[Any] = [None, "a", 7, ["a"], signed[:-1], signed + "0", "--", signed.replace("--", "-")]
        for value in wrong:
            channel = TurboStreamsChannel(None, {"signed_stream_name": value, "stream_name": "a"})
            await channel.subscribed()
            assert channel.reply.rejected
            assert channel.reply.streams == []

    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        )
    )
    async def test_no_other_value_opens_a_stream(self, value: Any) -> None:
        channel = TurboStreamsChannel(None, {"signed_stream_name": value})
        await channel.subscribed()
        assert channel.reply.rejected

    @given(st.text(), st.text(), st.binary())
    async def test_a_name_with_another_signature_opens_no_stream(self, name: str, digest: str, raw: bytes) -> None:
        for text in (json.dumps(name).encode(), raw):
            channel = TurboStreamsChannel(None, {"signed_stream_name": f"{base64.b64encode(text).decode()}--{digest}"})
            await channel.subscribed()
            assert channel.reply.rejected

    @given(st.text(min_size=1).filter(lambda name: "\x1f" not in name and name.isprintable()))
    async def test_a_signed_name_opens_its_stream_if_it_is_valid(self, name: str) -> None:
        channel = TurboStreamsChannel(None, {"signed_stream_name": signed_stream_name(name)})
        await channel.subscribed()
        valid = len(name) <= 255
        assert channel.reply.rejected is not valid
        assert channel.reply.streams == ([StreamStart(name, whisper=False, presence=False)] if valid else [])


def test_what_is_broadcast_to_the_name_reaches_the_page_too() -> None:
    """An application can broadcast elements that another package has built, or a template with several elements."""
    user = User.objects.create_user("ann")
    broadcast(f"auth.user:{user.pk}", '<turbo-stream action="refresh"></turbo-stream>')
    turbo.broadcast_refresh_to(user)
    assert len(set(data(f"auth.user:{user.pk}"))) == 1
