"""`broadcast_template` renders a template after the commit, and reports the errors of the rendering."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.contrib.auth.models import User
from django.db import transaction
from django.template import TemplateDoesNotExist, TemplateSyntaxError
from django.test import override_settings
from django.utils import translation
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reliable_cable import (
    BroadcastError,
    ChannelError,
    InvalidOption,
    InvalidPayload,
    abroadcast_template,
    broadcast,
    broadcast_template,
    history,
    position,
)
from reliable_cable.protocol.events import RawEvent
from reliable_cable.rendering import _template_broadcast
from reliable_cable.signals import broadcast_failed
from reliable_cable.validation import BatchOptions

pytestmark = pytest.mark.django_db(transaction=True)

TEMPLATES = {
    "user.html": "<b>{{ user.username }}</b>{{ user.groups.count }}",
    "users.html": "{% for user in users %}{{ user.username }} {% endfor %}",
    "text.html": "{{ text }}",
    "language.html": "{% load i18n %}{% get_current_language as code %}{{ code }}",
    "error.html": "{% for user in users %}{% endfor %}",
    "syntax.html": "{% nothing %}",
}


NOW = BatchOptions(transient=False, immediate=True, to_others=False, exclude_socket=None, using=None)


class Failing:
    """Fails when it is rendered."""

    def __str__(self) -> str:
        raise ZeroDivisionError("a bug in a template")


@pytest.fixture(params=["memory", "database"], autouse=True)
def _engine(request: pytest.FixtureRequest) -> Iterator[None]:
    engine = "django.template.backends.django.DjangoTemplates"
    loaders = [("django.template.loaders.locmem.Loader", TEMPLATES)]
    templates = [{"BACKEND": engine, "OPTIONS": {"loaders": loaders}}]
    with override_settings(RELIABLE_CABLE={"ENGINE": request.param}, TEMPLATES=templates):
        yield


def data(stream: str = "a") -> list[Any]:
    return [entry.data for entry in history(stream)]


class TestRendering:
    def test_the_message_is_the_html(self) -> None:
        assert broadcast_template("a", "text.html", {"text": "<script>"}) == position("a")
        assert data() == ["&lt;script&gt;"]

    def test_the_message_with_an_event_has_both(self) -> None:
        broadcast_template("a", "text.html", {"text": "<"}, event="status")
        assert data() == [{"$event": "status", "data": "&lt;"}]

    def test_the_stream_can_be_a_row_or_a_sequence(self) -> None:
        ann = User.objects.create_user("ann")
        broadcast_template(ann, "text.html", {"text": "row"})
        broadcast_template(["chat", ann, 7], "text.html", {"text": "sequence"})
        assert data(f"auth.user:{ann.pk}") == ["row"]
        assert data(f"chat:auth.user:{ann.pk}:7") == ["sequence"]

    @pytest.mark.parametrize("event", ["a\nb", "a b", "a,b", "", "x" * 101, "\x00", "\x85", "error", "open", "ping", 7])
    def test_an_event_that_htmx_cannot_name_is_refused(self, event: Any) -> None:
        with pytest.raises(InvalidOption, match="The event is"):
            broadcast_template("a", "text.html", {"text": "x"}, event=event)

    def test_errors_of_templates_are_raised(self) -> None:
        with pytest.raises(TemplateDoesNotExist):
            broadcast_template("a", "missing.html")
        with pytest.raises(ZeroDivisionError):
            broadcast_template("a", "text.html", {"text": Failing()})
        with pytest.raises(InvalidPayload):
            broadcast_template("a", "text.html", {"text": ""})
        assert data() == []

    def test_options_are_those_of_a_broadcast(self) -> None:
        first = broadcast_template("a", "text.html", {"text": "1"}, idempotency_key="k")
        assert broadcast_template("a", "text.html", {"text": "2"}, idempotency_key="k") == first
        assert broadcast_template("a", "text.html", {"text": "3"}, transient=True) is None
        assert data() == ["1"]


class TestServerSentEvents:
    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(text=st.text(min_size=1))
    def test_a_reader_gets_the_html(self, text: str) -> None:
        """CR and CRLF arrive as LF. HTML parsers convert them in the same way."""
        html = text.replace("\r\n", "\n").replace("\r", "\n")
        for event in (None, "status"):
            payload = _template_broadcast("a", "x", None, event, None, NOW)._payload(text)
            fields = RawEvent.transmission("", json.dumps(payload, ensure_ascii=False)).split("\n")
            assert [line for line in fields if line.startswith("event: ")][:1] == ([f"event: {event}"] if event else [])
            assert "\n".join(line[6:] for line in fields if line.startswith("data: ")) == html


class TestTransactions:
    def test_the_template_reads_the_committed_data(self) -> None:
        with transaction.atomic():
            user = User(username="draft")
            user.save()
            assert broadcast_template("a", "user.html", {"user": user}) is None
            user.username = "ann"
            user.save()
            user.groups.create(name="staff")
        assert data() == ["<b>ann</b>1"]

    def test_a_rollback_cancels_it(self) -> None:
        with transaction.atomic():
            broadcast_template("a", "text.html", {"text": "x"})
            transaction.set_rollback(True)
        assert data() == []

    def test_the_order_is_that_of_the_calls(self) -> None:
        with transaction.atomic():
            for number in range(3):
                broadcast_template("a", "text.html", {"text": number})
                broadcast("a", {"text": number}, transient=True)
        assert data() == ["0", "1", "2"]

    def test_a_later_change_of_the_context_has_no_effect(self) -> None:
        context = {"text": "before"}
        with transaction.atomic():
            broadcast_template("a", "text.html", context)
            context["text"] = "after"
        assert data() == ["before"]

    def test_the_language_is_that_of_the_call(self) -> None:
        with transaction.atomic(), translation.override("de"):
            with translation.override("fr"):
                broadcast_template("a", "language.html")
            broadcast_template("a", "language.html")
        assert data() == ["fr", "de"]

    def test_immediate_renders_in_the_transaction(self) -> None:
        settings = override_settings(RELIABLE_CABLE={"ENGINE": "memory"})  # SQLite allows only one writer
        with settings, transaction.atomic():
            User.objects.create_user("ann")
            broadcast_template("a", "users.html", {"users": User.objects.all()}, immediate=True)
            User.objects.create_user("bob")
            assert data() == ["ann "]

    @pytest.mark.parametrize(
        ("call", "error"),
        [
            (lambda: broadcast_template("a", "missing.html"), TemplateDoesNotExist),
            (lambda: broadcast_template("a", "syntax.html"), TemplateSyntaxError),
            (lambda: broadcast_template("", "text.html"), ChannelError),
            (lambda: broadcast_template("a\n", "text.html"), BroadcastError),
            (lambda: broadcast_template("a", "text.html", using="nothing"), InvalidOption),
        ],
    )
    def test_a_mistake_is_raised_by_the_call(self, call: Any, error: type[Exception]) -> None:
        with transaction.atomic(), pytest.raises(error):
            call()

    def test_an_error_of_the_rendering_is_reported(self, caplog: pytest.LogCaptureFixture) -> None:
        failures: list[Any] = []

        def receive(**values: Any) -> None:
            failures.append((values["stream"], type(values["error"])))

        broadcast_failed.connect(receive)
        try:
            with transaction.atomic():
                broadcast_template("a", "text.html", {"text": Failing()})
                broadcast_template("a", "text.html", {"text": "later"})
        finally:
            broadcast_failed.disconnect(receive)
        assert failures == [("a", ZeroDivisionError)]
        assert [record.levelno for record in caplog.records] == [logging.ERROR]
        assert data() == ["later"]


class TestAsync:
    async def test_the_template_may_query_the_database(self) -> None:
        await sync_to_async(User.objects.create_user)("ann")
        context = {"users": User.objects.filter(username="ann")}
        assert await abroadcast_template("a", "users.html", context) is not None
        await abroadcast_template("a", "users.html", context, event="users")
        assert await sync_to_async(data)() == ["ann ", {"$event": "users", "data": "ann "}]

    def test_it_waits_for_a_transaction_around_async_to_sync(self) -> None:
        with transaction.atomic():
            User.objects.create_user("ann")
            assert async_to_sync(abroadcast_template)("a", "users.html", {"users": User.objects.all()}) is None
            User.objects.create_user("bob")
        assert data("a") == ["ann bob "]

    def test_immediate_renders_in_the_transaction_of_the_caller(self) -> None:
        context = {"users": User.objects.all()}
        with override_settings(RELIABLE_CABLE={"ENGINE": "memory"}), transaction.atomic():
            User.objects.create_user("ann")
            async_to_sync(abroadcast_template)("a", "users.html", context, immediate=True)
            assert data() == ["ann "]

    async def test_errors_are_raised(self) -> None:
        with pytest.raises(TemplateDoesNotExist):
            await abroadcast_template("a", "missing.html")
        with pytest.raises(ZeroDivisionError):
            await abroadcast_template("a", "text.html", {"text": Failing()})
