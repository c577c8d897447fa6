"""A control message is sent if a signal of Django shows that a login may have ended, and not otherwise."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any
from unittest import mock

import pytest
from django.apps import apps
from django.contrib.auth import get_user_model, login
from django.contrib.auth.models import User
from django.contrib.auth.signals import user_logged_in, user_logged_out
from django.contrib.sessions.middleware import SessionMiddleware
from django.db import transaction
from django.db.models.signals import post_save
from django.http import HttpResponse
from django.test import Client, RequestFactory

from reliable_cable import BroadcastError
from reliable_cable.conf import CONTROL_STREAM
from reliable_cable.login_signals import check_saved_user, connect_receivers
from reliable_cable.logins import session_digest
from reliable_cable.protocol.control import LoginChange, decode, encode_login_change
from reliable_cable.stores.engine import get_engine

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("memory_engine")]


@pytest.fixture
def user() -> Any:
    return get_user_model().objects.create_user("ann", password="secret")


@pytest.fixture
def staff_model() -> Iterator[Any]:
    """A proxy model of the user model, which exists during one test."""

    class Staff(User):
        class Meta:
            proxy = True
            app_label = "auth"

    yield Staff
    del apps.all_models["auth"]["staff"]
    apps.clear_cache()


def changes() -> list[LoginChange]:
    """Return the changes of logins that were announced."""
    page = get_engine().streams.read(CONTROL_STREAM, after=0, limit=100)
    return [message for entry in page.entries for message in decode(entry.data) if isinstance(message, LoginChange)]


class TestUsers:
    def test_a_new_password_is_announced(self, user: Any) -> None:
        user.set_password("new")
        user.save()
        assert changes() == [LoginChange({"user": str(user.pk)})]

    def test_so_is_one_that_is_saved_alone(self, user: Any) -> None:
        user.password = "another hash"
        user.save(update_fields=["password"])
        assert changes() == [LoginChange({"user": str(user.pk)})]

    @pytest.mark.parametrize("fields", [None, ["is_active"]])
    def test_a_user_who_is_not_active_is_announced(self, user: Any, fields: Any) -> None:
        user.is_active = False
        user.save(update_fields=fields)
        assert changes() == [LoginChange({"user": str(user.pk)})]

    async def test_async_code_announces_it_too(self, user: Any) -> None:
        user.is_active = False
        await user.asave()
        assert changes() == [LoginChange({"user": str(user.pk)})]

    def test_a_deleted_user_is_announced(self, user: Any) -> None:
        id_ = str(user.pk)
        user.delete()
        assert changes() == [LoginChange({"user": id_})]

    def test_a_proxy_of_the_user_model_is_the_same_user(self, user: Any, staff_model: Any) -> None:
        connect_receivers()
        staff = staff_model.objects.get(pk=user.pk)
        staff.set_password("new")
        staff.save()
        assert changes() == [LoginChange({"user": str(user.pk)})]

    def test_other_changes_are_not_announced(self, user: Any) -> None:
        user.first_name = "Ann"
        user.save()
        user.save(update_fields=["first_name"])
        get_user_model().objects.create_user("bob", password="secret")
        get_user_model().objects.create_user("carl", is_active=False)
        Client().force_login(user)  # saves `last_login`
        assert changes() == []

    def test_deferred_fields_are_not_loaded(self, user: Any, django_assert_num_queries: Any) -> None:
        partial = get_user_model().objects.only("first_name").get(pk=user.pk)
        with django_assert_num_queries(1):
            partial.save()
        assert changes() == []


class TestLogins:
    def test_a_login_as_another_user_ends_the_former_session(self, user: Any) -> None:
        browser = Client()
        browser.force_login(user)
        key = browser.session.session_key
        assert key
        log_in(browser, get_user_model().objects.create_user("bob"))
        assert changes() == [LoginChange({"session": session_digest(key)})]

    def test_the_same_user_may_log_in_again(self, user: Any) -> None:
        browser = Client()
        browser.force_login(user)
        log_in(browser, user)
        assert changes() == []

    def test_a_visitor_with_a_session_may_log_in(self, user: Any) -> None:
        browser = Client()
        session = browser.session
        session["basket"] = [1]
        session.save()
        log_in(browser, user)
        assert browser.session["basket"] == [1]
        assert changes() == []

    def test_a_login_without_a_request_is_ignored(self, user: Any) -> None:
        user_logged_in.send(type(user), request=None, user=user)
        user_logged_in.send(type(user), request=RequestFactory().get("/"), user=user)
        assert changes() == []

    def test_a_logout_ends_the_session(self, user: Any) -> None:
        browser = Client()
        browser.force_login(user)
        key = browser.session.session_key
        assert key
        browser.logout()
        assert changes() == [LoginChange({"session": session_digest(key)})]

    def test_a_logout_without_a_session_is_ignored(self, user: Any) -> None:
        user_logged_out.send(type(user), request=None, user=user)
        user_logged_out.send(type(user), request=RequestFactory().get("/"), user=user)
        assert changes() == []

    def test_session_keys_are_not_sent(self, user: Any) -> None:
        browser = Client()
        browser.force_login(user)
        key = str(browser.session.session_key)
        log_in(browser, get_user_model().objects.create_user("bob"))
        page = get_engine().streams.read(CONTROL_STREAM, after=0, limit=100)
        assert [key in entry.data for entry in page.entries] == [False]


def log_in(browser: Client, user: Any) -> None:
    """Call `login()` in a request with a browser's cookies, as a view does, and store the response's cookies."""

    def view(request: Any) -> HttpResponse:
        login(request, user, "django.contrib.auth.backends.ModelBackend")
        return HttpResponse()

    request = RequestFactory().post("/")
    request.COOKIES = {name: morsel.value for name, morsel in browser.cookies.items()}
    response = SessionMiddleware(view)(request)
    assert isinstance(response, HttpResponse)
    browser.cookies.update(response.cookies)


class TestTransactions:
    def test_a_change_is_announced_after_the_commit(self, user: Any) -> None:
        with transaction.atomic():
            user.is_active = False
            user.save()
            assert changes() == []
        assert len(changes()) == 1

    def test_a_rollback_cancels_it(self, user: Any) -> None:
        with transaction.atomic():
            user.delete()
            transaction.set_rollback(True)
        assert changes() == []

    @pytest.mark.parametrize("atomic", [False, True])
    def test_users_are_saved_while_the_store_is_down(
        self, user: Any, atomic: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        user.is_active = False
        with mock.patch.object(get_engine().streams, "append", side_effect=BroadcastError("Redis is down")):
            with transaction.atomic() if atomic else nullcontext():
                user.save()
        assert "noticed within REAUTHENTICATE_INTERVAL: Redis is down" in caplog.text
        assert not get_user_model().objects.get(pk=user.pk).is_active


def test_the_receivers_can_be_disconnected(user: Any) -> None:
    model = get_user_model()
    assert post_save.disconnect(sender=model, dispatch_uid="reliable_cable.user_saved")
    try:
        user.is_active = False
        user.save()
        assert changes() == []
    finally:
        post_save.connect(check_saved_user, sender=model, dispatch_uid="reliable_cable.user_saved")


def test_servers_of_an_earlier_version_ignore_the_message() -> None:
    message = json.loads(encode_login_change(LoginChange({"user": "1"})))
    assert not {"revoke", "supersede"} & set(message)
