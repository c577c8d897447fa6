"""`manage.py cable_prune` and the admin pages."""

from __future__ import annotations

from collections.abc import Iterator
from io import StringIO

import pytest
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.db import OperationalError
from django.db.backends.utils import CursorWrapper
from django.db.models import F
from django.test import Client, TestCase, override_settings
from django.urls import NoReverseMatch, reverse

from reliable_cable import broadcast
from reliable_cable.models import OutboxEntry, PresenceStream, Session, Stream, StreamEntry, TransientEntry
from reliable_cable.stores.engine import get_engine
from reliable_cable.stores.streams.base import YOUNG_TIME

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _in_the_tests_transaction() -> Iterator[None]:
    with override_settings(RELIABLE_CABLE={"HANDLER_THREADS": 0, "HISTORY_SIZE": 2}):
        yield


def prune(*args: str) -> str:
    out = StringIO()
    call_command("cable_prune", *args, stdout=out)
    return out.getvalue()


class TestCommand:
    def test_it_deletes_old_rows_and_prints_their_number(self) -> None:
        for number in range(1, 8):
            broadcast("a", number, immediate=True)
        StreamEntry.objects.update(created=F("created") - YOUNG_TIME)
        TransientEntry.objects.create(name="a", data="1", origin="", created=0)
        Session.objects.create(sid="old", identity="{}", authenticated=0, expires=0)
        Stream.objects.create(name="idle", epoch="e", tail=5, low=6)
        PresenceStream.objects.create(name="idle", incarnation="i", used_at=0)
        assert (
            prune("--limit", "2")
            == "Messages and idle streams: 7 deleted.\nOld presence data: 1 deleted.\nSessions: 1 deleted.\n"
        )
        assert [entry.offset for entry in StreamEntry.objects.order_by("offset")] == [6, 7]
        assert [stream.name for stream in Stream.objects.all()] == ["a"]
        assert not TransientEntry.objects.exists()
        assert not PresenceStream.objects.exists()
        assert prune() == "Messages and idle streams: 0 deleted.\nOld presence data: 0 deleted.\nSessions: 0 deleted.\n"

    def test_no_sessions_deletes_no_sessions(self) -> None:
        Session.objects.create(sid="old", identity="{}", authenticated=0, expires=0)
        assert prune("--no-sessions") == "Messages and idle streams: 0 deleted.\nOld presence data: 0 deleted.\n"
        assert Session.objects.count() == 1

    def test_a_limit_of_0_is_refused(self) -> None:
        with pytest.raises(CommandError, match="--limit is 0; it must be at least 1"):
            prune("--limit", "0")

    def test_a_database_error_is_a_command_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def down(*args: object, **kwargs: object) -> None:
            raise OperationalError("database is down")

        get_engine()
        monkeypatch.setattr(CursorWrapper, "execute", down)
        with pytest.raises(CommandError, match="database is down"):
            prune()


class TestAdmin:
    @pytest.fixture
    def admin(self) -> Client:
        client = Client()
        client.force_login(User.objects.create_superuser("admin", password="admin"))
        return client

    def test_the_admin_shows_streams_and_messages(self, admin: Client) -> None:
        broadcast("a", {"text": "hello"}, immediate=True)
        OutboxEntry.objects.create(name="a", data="1")
        TransientEntry.objects.create(name="a", data="1", origin="", created=0)
        entry = StreamEntry.objects.get()
        for model in ("stream", "streamentry", "outboxentry", "transiententry"):
            assert admin.get(f"/admin/reliable_cable/{model}/").status_code == 200
        assert "hello" in admin.get(f"/admin/reliable_cable/streamentry/{entry.pk}/change/").content.decode()

    def test_the_admin_cannot_add_change_or_delete_rows(self, admin: Client) -> None:
        broadcast("a", 1, immediate=True)
        stream, entry = Stream.objects.get(), StreamEntry.objects.get()
        assert admin.get("/admin/reliable_cable/stream/add/").status_code == 403
        assert admin.post(f"/admin/reliable_cable/stream/{stream.pk}/change/", {"tail": 5}).status_code == 403
        assert admin.post(f"/admin/reliable_cable/streamentry/{entry.pk}/delete/", {"post": "yes"}).status_code == 403

    def test_the_admin_can_forget_streams(self, admin: Client) -> None:
        broadcast("a", 1, immediate=True)
        broadcast("b", 1, immediate=True)
        action = {"action": "forget_streams", "_selected_action": [Stream.objects.get(name="a").pk]}
        with TestCase.captureOnCommitCallbacks(execute=True):
            page = admin.post("/admin/reliable_cable/stream/", action, follow=True)
        assert "Streams forgotten: 1." in page.content.decode()
        assert [entry.stream.name for entry in StreamEntry.objects.all()] == ["b"]

    def test_the_admin_shows_no_sessions(self, admin: Client) -> None:
        assert "/admin/reliable_cable/stream/" in admin.get("/admin/").content.decode()
        assert "/admin/reliable_cable/session/" not in admin.get("/admin/").content.decode()
        with pytest.raises(NoReverseMatch):
            reverse("admin:reliable_cable_session_changelist")
