"""The template tags print what a page needs: meta tags, scripts, signed names and tokens."""

from __future__ import annotations

import datetime
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from html import unescape
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock
from urllib.parse import parse_qs, quote_plus

import django
import jwt
import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth import get_user_model
from django.contrib.auth.models import AnonymousUser
from django.http import HttpRequest, HttpResponse
from django.template import TemplateSyntaxError, engines
from django.test import AsyncClient, Client, RequestFactory, override_settings
from django.urls import path

from reliable_cable import Channel, ChannelError, InvalidStreamName, position, request_time
from reliable_cable.broadcasting import abroadcast
from reliable_cable.channel import registry
from reliable_cable.conf import CableSettings
from reliable_cable.signing import signed_stream_name, verify_stream_name
from reliable_cable.stores.clock import MARGIN
from reliable_cable.stores.engine import get_engine
from reliable_cable.stores.streams.memory import MemoryStreamStore
from reliable_cable.templatetags import reliable_cable as tags

from . import wire
from .tokens import SECRET


def render(source: str, context: dict[str, Any] | None = None, request: HttpRequest | None = None) -> str:
    return str(engines["django"].from_string("{% load reliable_cable %}" + source).render(context, request))


def timestamp(html: str) -> int:
    """Return the time in the meta tags of a page."""
    return int(html.rpartition('content="')[2].partition('"')[0])


def stamp(source: str, context: dict[str, Any] | None = None) -> int:
    """Render meta tags, and return the time in them."""
    return timestamp(render(source, context))


def far_time() -> float:
    """Return the time by the clock of the server that `FarStore` imitates."""
    return time.time() + FarStore.ahead


class FarStore(MemoryStreamStore):
    """A store with the clock of a server that is ahead of this host. The server answers while `answers` is set."""

    answers = threading.Event()
    answers.set()
    ahead = 1000.0

    def __init__(self, settings: CableSettings) -> None:
        super().__init__(settings, clock=far_time)

    def time(self) -> float:
        self.answers.wait(10)
        return far_time()

    def clocks(self) -> dict[str, Callable[[], float]]:
        return {"server": self.time}


#: Settings of an engine with `FarStore` as its stream store.
FAR = {
    "ENGINE": {
        "streams": "tests.unit.test_templatetags.FarStore",
        "presence": "reliable_cable.stores.presence.memory.MemoryPresenceStore",
        "sessions": "reliable_cable.stores.sessions.memory.MemorySessionStore",
    }
}


class News(Channel, abstract=True):
    async def subscribed(self) -> None:
        self.stream_from("news")


def page(request: HttpRequest) -> HttpResponse:
    return HttpResponse(render("{% cable_script %}", request=request))


def tagged(request: HttpRequest) -> HttpResponse:
    return HttpResponse(render("{% cable_meta_tags %}", request=request))


async def tagged_async(request: HttpRequest) -> HttpResponse:
    return HttpResponse(render("{% cable_meta_tags %}", request=request))


urlpatterns = [path("", page), path("tagged/", tagged), path("tagged-async/", tagged_async)]


@pytest.fixture
def slow_views(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ten seconds pass between the beginning of each request and the rendering of its page."""
    monkeypatch.setattr(request_time, "time", SimpleNamespace(monotonic=lambda: time.monotonic() - 10))


class TestMetaTags:
    def test_the_tags_have_the_url_and_the_time(self) -> None:
        with mock.patch.object(get_engine().streams, "clock", return_value=1_700_000_000.999):
            assert render("{% cable_meta_tags %}") == (
                '<meta name="cable-url" content="/cable">\n<meta name="cable-history-timestamp" content="1700000000">'
            )

    def test_the_time_is_not_later_than_the_rendering(self) -> None:
        before = int(time.time())
        stamp = int(render("{% cable_meta_tags %}").rpartition('content="')[2].partition('"')[0])
        assert before <= stamp <= time.time()

    @pytest.mark.urls("tests.unit.test_templatetags")
    @pytest.mark.usefixtures("slow_views")
    @pytest.mark.parametrize("url", ["/tagged/", "/tagged-async/"])
    async def test_messages_after_the_view_has_read_the_data_are_not_lost(self, url: str) -> None:
        for response in (await sync_to_async(Client().get)(url), await AsyncClient().get(url)):
            rendered = time.time()
            assert rendered - 15 < timestamp(response.content.decode()) <= rendered - 10
        # The beginning of a request that did not come from a server is not known.
        assert timestamp(render("{% cable_meta_tags %}", request=RequestFactory().get("/"))) > rendered - 9

    @pytest.mark.urls("tests.unit.test_templatetags")
    @pytest.mark.usefixtures("slow_views")
    def test_the_beginning_of_a_request_is_a_time_of_the_store(self) -> None:
        with override_settings(RELIABLE_CABLE=FAR):
            get_engine().stream_clock.measure()
            since = timestamp(Client().get("/tagged/").content.decode())
            assert far_time() - 15 < since <= far_time() - 10

    @pytest.mark.parametrize("ahead", [-90.0, 0.5, 90.0])
    def test_the_time_is_that_of_the_store_if_the_clock_of_this_host_is_wrong(
        self, ahead: float, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with override_settings(RELIABLE_CABLE=FAR):
            clock = get_engine().stream_clock
            monkeypatch.setattr(clock, "_host", lambda: time.time() + ahead)
            clock.measure()
            before = int(far_time())
            assert before - 1 <= stamp("{% cable_meta_tags %}") <= far_time()
            # The data of the page was read 100 seconds ago, by the clock of this host.
            then = stamp("{% cable_meta_tags since=since %}", {"since": time.time() + ahead - 100})
            assert before - 101 <= then <= far_time() - 100

    def test_the_time_is_earlier_before_the_clock_of_the_store_was_measured(self) -> None:
        with override_settings(RELIABLE_CABLE=FAR):
            FarStore.answers.clear()
            try:
                assert stamp("{% cable_meta_tags %}") <= time.time() - MARGIN
            finally:
                FarStore.answers.set()

    async def test_messages_between_the_rendering_and_the_subscribe_are_not_lost(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(FarStore, "ahead", -5.0)
        monkeypatch.setitem(registry, "News", [News])
        with override_settings(RELIABLE_CABLE=FAR):
            get_engine().stream_clock.measure()
            since = stamp("{% cable_meta_tags %}")
            for number in (1, 2, 3):
                await abroadcast("news", number)
            monkeypatch.setattr(FarStore, "ahead", 5.0)  # the clock of the store advances by ten seconds
            async with wire.Client() as client:
                await client.subscribe(wire.identifier("News"), history={"since": since})
                assert [(await client.receive())["message"] for _ in range(3)] == [1, 2, 3]
                assert (await client.receive())["type"] == "confirm_history"

    def test_the_url_can_be_given(self) -> None:
        assert 'content="wss://example.org/ws?a=1&amp;b=2"' in render(
            "{% cable_meta_tags url=url %}", {"url": "wss://example.org/ws?a=1&b=2"}
        )

    @pytest.mark.parametrize(
        "since", [1700000000.9, 1700000000, datetime.datetime.fromtimestamp(1700000000.9, datetime.UTC)]
    )
    def test_the_time_at_which_the_data_was_read_can_be_given(self, since: object) -> None:
        assert 'cable-history-timestamp" content="1700000000"' in render(
            "{% cable_meta_tags since=since %}", {"since": since}
        )

    def test_the_time_is_not_localized(self) -> None:
        with override_settings(USE_THOUSAND_SEPARATOR=True, LANGUAGE_CODE="de"):
            assert 'content="1700000000"' in render("{% cable_meta_tags since=1700000000 %}")

    def test_everything_is_escaped(self) -> None:
        html = render("{% cable_meta_tags url=url %}", {"url": '"><script>alert(1)</script>'})
        assert "<script>" not in html
        assert "&quot;&gt;&lt;script&gt;" in html


class TestScript:
    def test_the_bundle_is_loaded_with_defer(self) -> None:
        assert render("{% cable_script %}") == '<script src="/static/reliable_cable/cable.js" defer></script>'

    def test_a_nonce_can_be_given(self) -> None:
        assert render('{% cable_script nonce="abc" %}').endswith(' defer nonce="abc"></script>')

    def test_a_nonce_is_escaped(self) -> None:
        assert 'nonce="&quot; onload=&quot;x"' in render("{% cable_script nonce=n %}", {"n": '" onload="x'})

    def test_the_nonce_of_djangos_context_processor_is_used(self) -> None:
        assert 'nonce="abc"' in render("{% cable_script %}", {"csp_nonce": "abc"})

    def test_the_lazy_nonce_of_django_csp_is_used(self) -> None:
        class Unused(str):
            """A lazy nonce, which is false until it is used."""

            def __bool__(self) -> bool:
                return False

        request = SimpleNamespace(csp_nonce=Unused("abc"))
        assert 'nonce="abc"' in render("{% cable_script %}", {"request": request})

    def test_a_given_nonce_takes_precedence(self) -> None:
        html = render('{% cable_script nonce="mine" %}', {"csp_nonce": "theirs"})
        assert 'nonce="mine"' in html
        assert "theirs" not in html

    def test_without_any_nonce_there_is_no_attribute(self) -> None:
        assert "nonce" not in render("{% cable_script %}", request=RequestFactory().get("/"))
        assert "nonce" not in render("{% cable_script %}", {"csp_nonce": None})

    @pytest.mark.skipif(django.VERSION < (6, 0), reason="Django makes nonces from 6.0 on")
    def test_the_policy_of_djangos_middleware_has_the_nonce(self, client: Client) -> None:
        from django.utils.csp import CSP  # type: ignore[import-not-found,unused-ignore]

        with override_settings(
            ROOT_URLCONF=__name__,
            MIDDLEWARE=["django.middleware.csp.ContentSecurityPolicyMiddleware"],
            SECURE_CSP={"script-src": [CSP.NONCE]},
        ):
            response = client.get("/")
        nonce = response.content.decode().partition('nonce="')[2].partition('"')[0]
        assert nonce
        assert response.headers["Content-Security-Policy"] == f"script-src 'nonce-{nonce}'"


class TestSignedStreamName:
    def test_the_name_is_signed(self) -> None:
        assert verify_stream_name(render('{% signed_stream_name "chat/1" %}')) == "chat/1"

    def test_the_signed_name_can_be_assigned_to_a_variable(self) -> None:
        assert verify_stream_name(render("{% signed_stream_name name as s %}{{ s }}", {"name": "chat/2"})) == "chat/2"


class TestEventsUrl:
    def test_it_has_the_signed_names_and_the_time(self) -> None:
        with mock.patch.object(get_engine().streams, "clock", return_value=1_700_000_000.999):
            url = unescape(render("{% cable_events_url 'chat/1' parts %}", {"parts": ["news", 7]}))
        path, _, query = url.partition("?")
        assert path == "/events"
        assert parse_qs(query) == {
            "signed_stream": [signed_stream_name("chat/1"), signed_stream_name("news:7")],
            "history_since": ["1700000000"],
            "raw": ["1"],
        }

    def test_the_path_and_the_time_of_the_data_can_be_given(self) -> None:
        source = '{% cable_events_url "a" url="/live" since=1700000000.9 as url %}{{ url|safe }}'
        assert re.fullmatch(r"/live\?signed_stream=[\w%-]+&history_since=1700000000&raw=1", render(source))

    def test_the_url_can_have_a_query(self) -> None:
        url = render('{% cable_events_url "a" url="/live?jid=x" as url %}{{ url|safe }}')
        assert url.startswith(f"/live?jid=x&signed_stream={quote_plus(signed_stream_name('a'))}&")

    def test_a_position_stands_for_its_stream(self) -> None:
        with override_settings(RELIABLE_CABLE={"ENGINE": "memory"}):
            at = position("chat/1")
            query = parse_qs(unescape(render("{% cable_events_url at 'news' %}", {"at": at})).partition("?")[2])
            assert query["signed_stream"] == [signed_stream_name("chat/1", at=at), signed_stream_name("news")]

    def test_it_is_escaped_as_an_attribute(self) -> None:
        page = render('<i sse-connect="{% cable_events_url name %}">', {"name": '"><script>&'})
        assert re.fullmatch(r'<i sse-connect="/events\?[\w=&;%.-]+">', page)
        assert "&amp;" in page

    @pytest.mark.parametrize(
        ("source", "error"),
        [
            ("", TemplateSyntaxError),
            ("missing", ChannelError),
            ('"a" missing', ChannelError),
            ("newline", InvalidStreamName),
        ],
    )
    def test_a_stream_is_required(self, source: str, error: type[Exception]) -> None:
        with pytest.raises(error):
            render("{% cable_events_url " + source + " %}", {"newline": "a\nb"})


class TestMissingBundle:
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> Iterator[None]:
        """Look for static files in a folder of this test only."""
        finder = "django.contrib.staticfiles.finders.FileSystemFinder"
        # When a test changes STATICFILES_DIRS, Django clears the cache of finders.
        with override_settings(STATICFILES_DIRS=[tmp_path], STATICFILES_FINDERS=[finder]):
            tags._warn_if_missing.cache_clear()
            yield
        tags._warn_if_missing.cache_clear()

    def test_it_is_logged_once_with_the_command_that_creates_it(self, caplog: pytest.LogCaptureFixture) -> None:
        render("{% cable_script %}{% cable_script %}")
        (line,) = [record.getMessage() for record in caplog.records]
        assert line.startswith(
            "{% cable_script %} refers to reliable_cable/cable.js, but there is no such static file."
        )
        assert "run `manage.py cable_client`" in line

    def test_a_bundle_that_exists_is_not_logged(self, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
        (tmp_path / "reliable_cable").mkdir()
        (tmp_path / tags.SCRIPT).touch()
        render("{% cable_script %}")
        assert not caplog.records


@pytest.mark.django_db
class TestTokens:
    @pytest.fixture(autouse=True)
    def _settings(self, settings: Any) -> None:
        settings.RELIABLE_CABLE = {"ENGINE": "memory", "JWT_SECRET": SECRET}

    @pytest.fixture
    def request_of(self) -> Callable[[Any], HttpRequest]:
        def make(user: Any) -> HttpRequest:
            request = RequestFactory().get("/")
            request.user = user
            return request

        return make

    def test_the_token_of_the_user_of_the_request(self, request_of: Any) -> None:
        user = get_user_model().objects.create_user("ann", password="secret")
        for source in ("{% cable_token %}", "{% cable_token ttl=60 %}"):
            claims = jwt.decode(render(source, {}, request_of(user)), SECRET, algorithms=["HS256"])
            assert json.loads(claims["ext"]) == {"user": f"auth.user:{user.pk}"}
            assert claims["exp"] - time.time() <= (60 if "ttl" in source else 3600)
        without_request = render("{% cable_token %}", {"user": user})
        assert jwt.decode(without_request, SECRET, algorithms=["HS256"])["ext"] == claims["ext"]

    def test_the_meta_tags_have_it_on_demand(self, request_of: Any) -> None:
        user = get_user_model().objects.create_user("ann", password="secret")
        page = render("{% cable_meta_tags token=True %}", {}, request_of(user))
        assert re.fullmatch(
            r'<meta name="cable-token" content="[\w.-]+">\n'
            r'<meta name="cable-history-timestamp" content="\d+">',
            page,
        )
        assert "cable-token" not in render("{% cable_meta_tags %}", {}, request_of(user))

    def test_a_client_that_reads_the_page_again_gets_an_absolute_url(self, request_of: Any) -> None:
        """`fetchTokenFromHTML` passes the URL to a transport that cannot use a path."""
        request = request_of(AnonymousUser())
        for url, expected in (
            ("/live", "ws://testserver/live"),
            ("wss://example.com/live", "wss://example.com/live"),
            ("//example.com/live", "//example.com/live"),
        ):
            page = render(f'{{% cable_meta_tags "{url}" token=True %}}', {}, request)
            assert f'<meta name="cable-url" content="{expected}">' in page
        secure = RequestFactory().get("/", secure=True)
        assert "wss://testserver/live" in render('{% cable_meta_tags "/live" token=True %}', {}, secure)
        assert 'content="/live"' in render('{% cable_meta_tags "/live" token=True %}', {}, None)
        assert 'content="/live"' in render('{% cable_meta_tags "/live" %}', {}, request)

    def test_there_is_none_for_anonymous_users(self, request_of: Any) -> None:
        for source in ("{% cable_token %}", "{% cable_meta_tags token=True %}"):
            for page in (render(source, {}, request_of(AnonymousUser())), render(source), render(source, {}, None)):
                assert "eyJ" not in page
                assert "cable-token" not in page

    def test_the_url_is_escaped(self, request_of: Any) -> None:
        assert 'content="&lt;&quot;"' in render("{% cable_meta_tags url=url token=True %}", {"url": '<"'})
