"""`disconnect()`: its identifiers, when it takes effect, and the effect of a logout."""

from __future__ import annotations

import json
import subprocess
import sys
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import AnonymousUser
from django.contrib.auth.signals import user_logged_out
from django.db import transaction
from django.test import Client, RequestFactory
from django.utils.functional import SimpleLazyObject

from reliable_cable import BroadcastError, CableConsumer, InvalidIdentifier, StoreError, adisconnect, disconnect
from reliable_cable.conf import CONTROL_STREAM
from reliable_cable.identity import identifier_names
from reliable_cable.stores.engine import get_engine
from tests.stores.conftest import wait_until

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _memory(settings: Any) -> None:
    settings.RELIABLE_CABLE = {"ENGINE": "memory"}


@pytest.fixture
def user() -> Any:
    return get_user_model().objects.create_user("ann", password="secret")


def said() -> list[Any]:
    """Return the control messages so far, without their times."""
    page = get_engine().streams.read(CONTROL_STREAM, after=0, limit=100)
    messages = [json.loads(entry.data) for entry in page.entries]
    for message in messages:
        assert message.pop("at") > 0
    return messages


def revoked(identity: dict[str, str]) -> bool:
    """Return whether the session store has a revocation of an identity."""
    return get_engine().sessions.revoked([identity]) != [0]


class TestDisconnect:
    def test_revokes_and_tells_every_process(self, user: Any) -> None:
        disconnect(user=user)
        name = f"auth.user:{user.pk}"
        assert said() == [{"revoke": {"user": name}, "reconnect": False}]
        assert revoked({"user": name})

    async def test_its_async_twin_does_the_same(self) -> None:
        await adisconnect(user="ann", reconnect=True)
        assert said() == [{"revoke": {"user": "str:ann"}, "reconnect": True}]

    def test_takes_what_connect_sets(self, user: Any) -> None:
        disconnect(user=SimpleLazyObject(lambda: user))
        disconnect(user=5)
        assert [message["revoke"]["user"] for message in said()] == [f"auth.user:{user.pk}", "int:5"]

    def test_needs_an_identifier(self) -> None:
        with pytest.raises(InvalidIdentifier, match=r"at least one identifier: disconnect\(user=user\)"):
            disconnect(reconnect=True)
        assert said() == []

    def test_knows_the_names(self) -> None:
        class Tenant(CableConsumer):
            identified_by = ("user", "tenant")

        try:
            disconnect(tenant=1, user=2)
            with pytest.raises(InvalidIdentifier, match=r"no connection is identified by 'team'.* 'tenant', 'user'"):
                disconnect(tenant=1, team=2)
            assert len(said()) == 1
        finally:
            identifier_names.discard("tenant")

    def test_imports_the_consumers_where_nobody_has_done_so(
        self, settings: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # For example, in a task worker.
        module = ModuleType("some_asgi")

        def define() -> None:
            type("Consumer", (CableConsumer,), {"identified_by": ("device",)})

        monkeypatch.setitem(sys.modules, "some_asgi", module)
        settings.ASGI_APPLICATION = "some_asgi.application"
        with mock.patch("reliable_cable.disconnecting.import_module", side_effect=lambda name: define()) as imported:
            disconnect(device=1)
        imported.assert_called_once_with("some_asgi")
        identifier_names.discard("device")

    def test_an_application_that_cannot_be_imported_is_no_other_error(self, settings: Any) -> None:
        settings.ASGI_APPLICATION = "no_such_module.application"
        with pytest.raises(InvalidIdentifier):
            disconnect(nothing=1)

    @pytest.mark.parametrize("nobody", [None, AnonymousUser(), SimpleLazyObject(AnonymousUser)])
    def test_is_not_for_nobody(self, nobody: Any) -> None:
        # This would disconnect all visitors who are not logged in, which is hardly intended.
        with pytest.raises(InvalidIdentifier, match="nobody"):
            disconnect(user=nobody)

    def test_nor_for_a_user_who_is_not_saved(self) -> None:
        with pytest.raises(InvalidIdentifier, match="not saved"):
            disconnect(user=get_user_model()(username="new"))

    def test_raises_if_a_store_cannot_be_reached(self) -> None:
        with mock.patch.object(get_engine().sessions, "revoke", side_effect=StoreError("down")):
            with pytest.raises(StoreError):
                disconnect(user="ann")
        with mock.patch.object(get_engine().streams, "append", side_effect=BroadcastError("down")):
            with pytest.raises(BroadcastError):
                disconnect(user="ann")


class TestTransactions:
    def test_it_waits_for_the_commit(self) -> None:
        with transaction.atomic():
            disconnect(user="ann")
            assert said() == []
            assert not revoked({"user": "str:ann"})
        assert len(said()) == 1
        assert revoked({"user": "str:ann"})

    def test_rolled_back_it_never_happened(self) -> None:
        with transaction.atomic():
            disconnect(user="ann")
            transaction.set_rollback(True)
        assert said() == []

    def test_wrong_arguments_are_told_at_once(self) -> None:
        with transaction.atomic(), pytest.raises(InvalidIdentifier):
            disconnect(user=None)

    def test_a_logout_that_cannot_be_told_does_not_break_its_transaction(
        self, user: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        with mock.patch.object(get_engine().sessions, "revoke", side_effect=StoreError("Redis is down")):
            with transaction.atomic():
                user_logged_out.send(type(user), request=RequestFactory().get("/"), user=user)
        assert "Redis is down" in caplog.text


LOST = """
import django
from django.conf import settings

settings.configure(
    SECRET_KEY="tests",
    INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth", "channels", "reliable_cable"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    RELIABLE_CABLE={"REDIS_URL": "redis://127.0.0.1:1/0"},
)
django.setup()

from django.db import transaction
from reliable_cable import CableConsumer, disconnect, disconnecting

disconnecting._pending._exit_timeout = 0.2
with transaction.atomic():
    disconnect(user="ann")
print("committed")
"""


def test_what_could_not_be_stored_when_the_process_ends_is_logged() -> None:
    done = subprocess.run([sys.executable, "-c", LOST], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "committed\n"
    first, last = done.stderr.splitlines()
    assert first.startswith("The connections of {'user': 'str:ann'} are not closed yet; trying again: Redis cannot be")
    assert last == "The connections of {'user': 'str:ann'} were not closed, because the process exits."


class TestLogout:
    def test_ends_the_users_connections_and_lets_them_come_back(self, user: Any) -> None:
        browser = Client()
        browser.force_login(user)
        browser.logout()
        assert said() == [{"revoke": {"user": f"auth.user:{user.pk}"}, "reconnect": True}]

    async def test_also_in_async_code(self, user: Any) -> None:
        await user_logged_out.asend(type(user), request=RequestFactory().get("/"), user=user)
        assert len(said()) == 1

    def test_of_nobody_is_nothing(self) -> None:
        user_logged_out.send(type(None), request=RequestFactory().get("/"), user=None)
        assert said() == []

    def test_works_without_us(self, user: Any, caplog: pytest.LogCaptureFixture) -> None:
        browser = Client()
        browser.force_login(user)
        with mock.patch.object(get_engine().streams, "append", side_effect=BroadcastError("Redis is down")):
            browser.logout()
        assert "Redis is down" in caplog.text
        # The disconnect is retried.
        wait_until(lambda: len(said()) == 1)

    def test_can_be_left_alone(self, user: Any) -> None:
        from reliable_cable.disconnecting import disconnect_logged_out

        assert user_logged_out.disconnect(dispatch_uid="reliable_cable.logout")
        try:
            user_logged_out.send(type(user), request=RequestFactory().get("/"), user=user)
            assert said() == []
        finally:
            user_logged_out.connect(disconnect_logged_out, dispatch_uid="reliable_cable.logout")
