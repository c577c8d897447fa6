"""The site's own origin, trusted origins, and origins that a consumer names may open a WebSocket."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured

from reliable_cable import CableConsumer, origins
from reliable_cable.origins import is_allowed
from tests.unit.wire import Client

#: Values of `Origin` that no browser sends for a page, or that name no host.
INVALID = [
    "",
    "null",
    "NULL",
    "*",
    "example.com",
    "//example.com",
    "://example.com",
    "http://",
    "http:example.com",
    "file://",
    "ws://[::1",
    "http://[",
    "http://[]",
    "http://[v1.x]",
    "http://example.com/",
    "http://example.com/page",
    "http://example.com?x",
    "http://example.com#x",
    "http://user@example.com",
    "http://example.com@evil.com",
    "http://example.com:",
    "http://example.com:port",
    "http://example.com:-80",
    "http://example.com:80:80",
    "http://example.com, http://example.com",
    "http://example.com http://evil.com",
    " http://example.com",
    "http://exa\tmple.com",
    "http://example.com\x00.evil.com",
    "http://bücher.example",
    "1http://example.com",
]


def handshake(*origin: str | bytes, host: str = "example.com", scheme: str = "ws", **headers: str) -> dict[str, Any]:
    """Return the scope of a handshake with any number of `Origin` headers."""
    values = [value.encode("latin1") if isinstance(value, str) else value for value in origin]
    others = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {
        "type": "websocket",
        "scheme": scheme,
        "path": "/cable",
        "server": ["127.0.0.1", 8000],
        "headers": [(b"host", host.encode()), *((b"origin", value) for value in values), *others],
    }


def namespace(scope: Any = None) -> str:
    """Return the only tenant."""
    return "tenant"


@pytest.fixture(autouse=True)
def _settings(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.ALLOWED_HOSTS = ["example.com"]
    settings.CSRF_TRUSTED_ORIGINS = []
    monkeypatch.setattr(origins, "_logged_at", -math.inf)


class TestWithoutAllowedOrigins:
    def test_a_client_without_an_origin_is_allowed(self) -> None:
        assert is_allowed(handshake(), None)
        assert is_allowed({"type": "websocket"}, None)

    @pytest.mark.parametrize(("origin", "allowed"), [("http://example.com", True), ("http://evil.com", False)])
    def test_the_query_and_other_headers_do_not_matter(self, origin: str, allowed: bool) -> None:
        scope = {**handshake(origin, content_type="text/plain; charset*=no-such''x"), "query_string": b"\xff"}
        assert is_allowed(scope, None) is allowed

    @pytest.mark.parametrize("origin", INVALID)
    def test_an_invalid_origin_is_refused(self, settings: Any, origin: str) -> None:
        settings.ALLOWED_HOSTS = ["*", "example.com", "null", "", "bücher.example"]
        assert not is_allowed(handshake(origin), None)

    @pytest.mark.parametrize(
        "origin", [b"http://example.com\xff", b"http://\xffexample.com", "http://exämple.com".encode()]
    )
    def test_bytes_beyond_ascii_are_refused(self, origin: bytes) -> None:
        assert not is_allowed(handshake(origin), None)

    def test_several_origins_are_refused(self) -> None:
        assert not is_allowed(handshake("http://example.com", "http://evil.com"), None)
        assert not is_allowed(handshake("http://evil.com", "http://example.com"), None)
        assert not is_allowed(handshake("http://example.com", "http://example.com"), None)

    def test_another_site_is_refused(self) -> None:
        for origin in (
            "http://evil.com",
            "http://example.com.evil.com",
            "http://evilexample.com",
            "http://www.example.com",
        ):
            assert not is_allowed(handshake(origin), None)

    @pytest.mark.parametrize(
        "origin",
        [
            "http://example.com",
            "http://example.com:80",
            "http://example.com:8000",
            "https://example.com",
            "https://example.com:443",
            "HTTP://EXAMPLE.COM",
            "http://example.com.",
            "ws://example.com",
            "wss://example.com",
        ],
    )
    def test_an_allowed_host_may_have_any_port_and_case(self, origin: str) -> None:
        assert is_allowed(handshake(origin), None)

    @pytest.mark.parametrize(
        ("hosts", "origin", "allowed"),
        [
            ([".example.com"], "http://chat.example.com", True),
            ([".example.com"], "http://example.com", True),
            ([".example.com"], "http://evilexample.com", False),
            (["[::1]"], "http://[::1]:8000", True),
            (["[::1]"], "http://[::2]:8000", False),
            (["xn--bcher-kva.example"], "http://xn--bcher-kva.example", True),
            (["*"], "http://evil.com", False),
            (["example.com", "*"], "http://evil.com", False),
            (["example.com"], "capacitor://example.com", False),
            (["example.com"], "chrome-extension://example.com", False),
            ([], "http://localhost", False),
        ],
    )
    def test_allowed_hosts_are_allowed_except_the_one_that_stands_for_all(
        self, settings: Any, hosts: list[str], origin: str, allowed: bool
    ) -> None:
        settings.ALLOWED_HOSTS = hosts
        assert is_allowed(handshake(origin, host="another.host"), None) is allowed

    @pytest.mark.parametrize(
        ("origin", "allowed"),
        [
            ("http://localhost:5173", True),
            ("http://chat.localhost", True),
            ("http://127.0.0.1:8000", True),
            ("http://[::1]", True),
            ("http://evil.com", False),
        ],
    )
    def test_local_hosts_are_allowed_while_debugging_without_allowed_hosts(
        self, settings: Any, origin: str, allowed: bool
    ) -> None:
        settings.DEBUG, settings.ALLOWED_HOSTS = True, []
        assert is_allowed(handshake(origin, host="localhost:8000"), None) is allowed
        settings.ALLOWED_HOSTS = ["example.com"]
        assert not is_allowed(handshake(origin, host="localhost:8000"), None)

    @pytest.mark.parametrize(
        ("host", "origin", "allowed"),
        [
            ("chat.example", "http://chat.example", True),
            ("chat.example:80", "http://chat.example", True),
            ("chat.example", "http://chat.example:80", True),
            ("Chat.Example", "http://chat.example", True),
            ("chat.example:8000", "http://chat.example:8000", True),
            ("chat.example:8000", "http://chat.example", False),
            ("chat.example", "http://chat.example:8000", False),
            ("chat.example", "https://chat.example", True),
            ("chat.example", "https://chat.example:80", False),
            ("chat.example:443", "https://chat.example", True),
            ("[::1]:8000", "http://[::1]:8000", True),
            ("xn--bcher-kva.example", "http://xn--bcher-kva.example", True),
            ("chat.example", "http://evil.com", False),
            ("chat.example", "http://www.chat.example", False),
            ("not a host", "http://chat.example", False),
        ],
    )
    def test_the_host_of_the_request_is_allowed_if_all_hosts_are(
        self, settings: Any, host: str, origin: str, allowed: bool
    ) -> None:
        settings.ALLOWED_HOSTS = ["*"]
        assert is_allowed(handshake(origin, host=host), None) is allowed

    def test_the_host_of_the_request_is_refused_if_allowed_hosts_does_not_have_it(self) -> None:
        """The host name of another site may resolve to the address of this server (DNS rebinding)."""
        assert not is_allowed(handshake("http://evil.com", host="evil.com"), None)

    def test_the_host_that_a_proxy_forwards_counts_only_if_django_uses_it(self, settings: Any) -> None:
        settings.ALLOWED_HOSTS = ["*"]
        scope = handshake("http://chat.example", host="10.0.0.1:8000", x_forwarded_host="chat.example")
        assert not is_allowed(scope, None)
        settings.USE_X_FORWARDED_HOST = True
        assert is_allowed(scope, None)
        assert not is_allowed(handshake("http://a", host="a", x_forwarded_host="chat.example"), None)

    def test_a_page_without_tls_may_not_use_a_connection_with_tls(self, settings: Any) -> None:
        for hosts in (["example.com"], ["*"]):
            settings.ALLOWED_HOSTS = hosts
            assert not is_allowed(handshake("http://example.com", scheme="wss"), None)
            assert is_allowed(handshake("https://example.com", scheme="wss"), None)
            assert is_allowed(handshake("https://example.com", scheme="ws"), None)
        settings.CSRF_TRUSTED_ORIGINS = ["http://example.com"]
        assert is_allowed(handshake("http://example.com", scheme="wss"), None)

    def test_a_proxy_with_tls_is_known_by_the_header_that_django_trusts(self, settings: Any) -> None:
        scope = handshake("http://example.com", x_forwarded_proto="https")
        assert is_allowed(scope, None)
        settings.SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
        assert not is_allowed(scope, None)
        assert is_allowed(handshake("https://example.com", x_forwarded_proto="https"), None)

    @pytest.mark.parametrize(
        ("origin", "allowed"),
        [
            ("https://app.test", True),
            ("https://app.test:443", True),
            ("HTTPS://APP.TEST", True),
            ("http://app.test", False),
            ("https://app.test:8443", False),
            ("https://www.app.test", False),
            ("https://a.b.wild.test", True),
            ("https://evilwild.test", False),
            ("http://a.wild.test", False),
            ("http://port.test:8080", True),
            ("http://a.port.test:8080", True),
            ("http://a.port.test", False),
        ],
    )
    def test_origins_that_django_trusts_are_allowed(self, settings: Any, origin: str, allowed: bool) -> None:
        settings.CSRF_TRUSTED_ORIGINS = [
            "https://app.test",
            "https://*.wild.test",
            "http://*.port.test:8080",
            "old.style",
        ]
        assert is_allowed(handshake(origin), None) is allowed


class TestAllowedOrigins:
    LIST = ("https://app.test", "https://*.wild.test", "http://localhost:5173", "capacitor://localhost")

    @pytest.mark.parametrize(
        ("origin", "allowed"),
        [
            ("https://app.test", True),
            ("http://app.test", False),
            ("https://chat.wild.test", True),
            ("http://localhost:5173", True),
            ("http://localhost", False),
            ("capacitor://localhost", True),
            ("ionic://localhost", False),
            ("http://example.com", False),
            ("http://trusted.test", False),
            ("null", False),
        ],
    )
    def test_a_list_replaces_the_other_rules(self, settings: Any, origin: str, allowed: bool) -> None:
        settings.CSRF_TRUSTED_ORIGINS = ["http://trusted.test"]
        assert is_allowed(handshake(origin), self.LIST) is allowed

    def test_a_list_allows_clients_without_an_origin(self) -> None:
        assert is_allowed(handshake(), self.LIST)
        assert is_allowed(handshake(), [])
        assert not is_allowed(handshake("http://example.com"), [])

    @pytest.mark.parametrize("origin", ["http://evil.com", *INVALID])
    def test_an_asterisk_allows_everything(self, origin: str) -> None:
        assert is_allowed(handshake(origin), "*")
        assert is_allowed(handshake(origin, "http://evil.com"), "*")

    @pytest.mark.parametrize("value", [None, "*", [], ["https://app.test"], LIST])
    def test_valid_values_are_accepted(self, value: Any) -> None:
        CableConsumer.as_asgi(allowed_origins=value)

    @pytest.mark.parametrize(
        "value",
        [
            "https://app.test",
            "",
            1,
            {"https://app.test": True},
            ["app.test"],
            ["https://app.test/"],
            ["https://app.test/page"],
            ["https://*"],
            ["https://bücher.example"],
            ["*"],
            ["null"],
            [None],
            [""],
        ],
    )
    def test_the_error_for_an_invalid_value_names_the_consumer_and_the_valid_values(self, value: Any) -> None:
        class OpenConsumer(CableConsumer):
            allowed_origins = value

        with pytest.raises(ImproperlyConfigured, match=r"^OpenConsumer\.allowed_origins .*; it must be "):
            OpenConsumer.as_asgi()
        with pytest.raises(ImproperlyConfigured, match=r"^CableConsumer\.allowed_origins .*; it must be "):
            CableConsumer.as_asgi(allowed_origins=value)


class TestConsumer:
    @staticmethod
    async def is_welcomed(origin: str, consumer: type[CableConsumer]) -> bool:
        client = Client(consumer=consumer)
        client.communicator.scope["headers"] = handshake(origin)["headers"]
        connected, _ = await client.communicator.connect()
        await client.communicator.disconnect()
        return bool(connected)

    async def test_another_site_is_refused_before_connect_is_called(self, settings: Any) -> None:
        settings.RELIABLE_CABLE = {"ENGINE": "memory"}
        connects = []

        class Listed(CableConsumer):
            allowed_origins = ("https://app.test",)

            async def connect(self) -> None:
                connects.append(self.scope["headers"])

        assert await self.is_welcomed("https://app.test", Listed)
        assert not await self.is_welcomed("http://example.com", Listed)
        assert len(connects) == 1

    async def test_a_page_of_another_tenant_is_refused(self, settings: Any) -> None:
        settings.ALLOWED_HOSTS = [".example.com"]
        own, other = "http://example.com", "http://tenant.example.com"
        settings.RELIABLE_CABLE = {"ENGINE": "memory"}
        assert await self.is_welcomed(own, CableConsumer)
        assert await self.is_welcomed(other, CableConsumer)
        settings.RELIABLE_CABLE = {"ENGINE": "memory", "NAMESPACE": f"{__name__}.namespace"}
        assert await self.is_welcomed(own, CableConsumer)
        assert not await self.is_welcomed(other, CableConsumer)
        settings.CSRF_TRUSTED_ORIGINS = [other]
        assert await self.is_welcomed(other, CableConsumer)

    async def test_the_argument_replaces_the_attribute(self, settings: Any) -> None:
        settings.RELIABLE_CABLE = {"ENGINE": "memory"}

        class Listed(CableConsumer):
            allowed_origins = ("https://app.test",)

        class Open(CableConsumer):
            def __init__(self) -> None:
                super().__init__(allowed_origins="*")

        assert not await self.is_welcomed("http://evil.com", Listed)
        assert await self.is_welcomed("http://evil.com", Open)
        assert not await self.is_welcomed("http://evil.com", CableConsumer)

    async def test_refusals_are_logged_once_a_minute_and_shortened(
        self, settings: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settings.RELIABLE_CABLE = {"ENGINE": "memory"}
        with caplog.at_level(logging.WARNING, "reliable_cable"):
            for _ in range(3):
                assert not await self.is_welcomed("http://evil.com/\n" + "x" * 5000, CableConsumer)
            (record,) = caplog.records
            assert "http://evil.com/\\nxxx" in record.getMessage()
            assert "'example.com'" in record.getMessage()
            assert len(record.getMessage()) < 500
            monkeypatch.setattr(origins, "_logged_at", origins._logged_at - origins.LOG_INTERVAL)
            assert not await self.is_welcomed("http://evil.com", CableConsumer)
            assert len(caplog.records) == 2
