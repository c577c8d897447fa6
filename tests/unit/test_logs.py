"""Data of clients are logged on one line, shortened and without secrets. Servers log no session ids or tokens."""

from __future__ import annotations

import ast
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from reliable_cable import Channel, StoreError, action, logs, origins
from reliable_cable.channel import registry
from reliable_cable.hub.rosters import Rosters
from reliable_cable.signing import signed_stream_name
from reliable_cable.stores.engine import get_engine
from tests.unit.wire import Client, connection_of, identifier, leave_session, run_event_loop, until

PACKAGE = Path(logs.__file__).parent
SIGNED = signed_stream_name("private")
SIGNATURE = SIGNED.rpartition("--")[2]
TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJleHQiOiJ7fSJ9.c2lnbmF0dXJl"

HOSTILE = {
    "newline": "x\nERROR FORGED",
    "carriage return": "x\rERROR FORGED",
    "line separator": "x\u2028ERROR FORGED",
    "ANSI escape": "x\x1b[2K\x1b[1GERROR FORGED",
    "NUL": "x\0FORGED",
    "right to left": "x\u202eFORGED",
    "lone surrogate": "x\ud800FORGED",
    "60 KB": "x" * 60_000,
    "signed stream name": f"x{SIGNED}",
    "token": f"x{TOKEN}",
    "session id": "x?sid=SECRET&jid=SECRET",
}


@pytest.fixture(params=HOSTILE)
def hostile(request: pytest.FixtureRequest) -> str:
    return HOSTILE[request.param]


def check(text: str) -> None:
    """Check that a message or a traceback with text of a client has no forged or overlong line, and no secret."""
    for line in text.split("\n"):
        assert line.isprintable()
        assert not line.startswith("ERROR FORGED")
        assert len(line) < 2 * logs.ERROR_LIMIT
    assert SIGNATURE not in text
    assert TOKEN.rpartition(".")[2] not in text
    assert "SECRET" not in text


def check_records(caplog: pytest.LogCaptureFixture, *expected: str) -> None:
    """Apply `check` to all log records of the package. Check that each expected string occurs in a message."""
    messages = []
    for record in caplog.records:
        if record.name == "reliable_cable":
            messages.append(record.getMessage())
            assert "\n" not in messages[-1]
            check(messages[-1])
            check(logging.Formatter("%(message)s").format(record))
            check(repr(record.args))
    for text in expected:
        assert any(text in message for message in messages), (text, messages)


class TestLogText:
    def test_a_plain_text_is_not_changed(self) -> None:
        assert str(logs.LogText("chat:1 - Zürich")) == "chat:1 - Zürich"
        assert repr(logs.LogText("it's")) == '"it\'s"'

    def test_a_hostile_text_is_safe_with_and_without_quotes(self, hostile: str) -> None:
        for text in ("%s" % logs.LogText(hostile), "%r" % logs.LogText(hostile)):  # noqa: UP031 - as in logging
            check(text)
            assert "\n" not in text

    def test_a_long_text_says_how_much_is_missing(self) -> None:
        assert repr(logs.LogText("x" * 205)) == f"'{'x' * 200}'... (5 more characters)"
        assert str(logs.LogText(["x" * 300])) == f"['{'x' * 198}... (104 more characters)"
        assert repr(logs.LogText(ValueError("x\n"), 20)) == "ValueError('x\\n')"

    def test_a_signature_is_hidden_and_the_name_is_not(self) -> None:
        text = repr(logs.LogText(json.dumps({"channel": "$pubsub", "signed_stream_name": SIGNED})))
        assert f"{SIGNED.rpartition('--')[0]}--***" in text


class TestTracebacks:
    def test_the_exceptions_of_a_chain_and_of_a_group_are_safe(
        self, hostile: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        try:
            try:
                raise ExceptionGroup(hostile, [ValueError(hostile), SyntaxError(hostile)])
            except ExceptionGroup as error:
                error.add_note(hostile)
                raise LookupError(hostile) from error
        except LookupError:
            logging.getLogger("reliable_cable").exception("It failed.")
        check_records(caplog, "It failed.")
        assert "ValueError: x" in caplog.text
        assert "raise LookupError(hostile)" in caplog.text


def calls_of_loggers() -> Iterator[tuple[str, ast.Call]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                yield f"{path.relative_to(PACKAGE)}:{node.lineno}", node


def test_all_modules_log_to_the_logger_that_has_the_filter() -> None:
    names = {
        place: ast.unparse(call.args[0])
        for place, call in calls_of_loggers()
        if ast.unparse(call.func) == "logging.getLogger" and not place.startswith(("logs.py", "server_logs.py"))
    }
    assert set(names.values()) == {"'reliable_cable'"}
    assert any(isinstance(each, logs.TextFilter) for each in logging.getLogger("reliable_cable").filters)


def test_messages_are_constants_or_come_from_the_doctor() -> None:
    levels = {"debug", "info", "warning", "error", "exception"}
    messages = {
        place: ast.unparse(call.args[0])
        for place, call in calls_of_loggers()
        if isinstance(call.func, ast.Attribute)
        and call.func.attr in levels
        and ast.unparse(call.func.value).endswith(("logger", "log"))
        and not isinstance(call.args[0], ast.Constant)
    }
    assert set(messages.values()) == {"problem", "NOT_WOKEN"}


class Loud(Channel, abstract=True):
    """Raises errors whose messages are in its params or in the data of an action."""

    async def subscribed(self) -> None:
        if "raises" in self.params:
            raise LookupError(self.params["raises"])
        self.stream_from(self.params.get("stream", "room"), presence=True)

    async def resubscribed(self) -> None:
        raise LookupError(self.params["text"])

    async def authorize_presence(self, id: str, info: Any) -> bool:  # noqa: A002 - the name in the protocol
        raise LookupError(info)

    @action
    async def fail(self, data: dict[str, Any]) -> None:
        raise LookupError(data["text"])

    @action
    async def start(self, data: dict[str, Any]) -> None:
        self.stream_from(data["text"])

    async def handle_error(self, error: Exception, action: str) -> None:
        raise RuntimeError(str(error)) from error


class TestWhatClientsSend:
    @pytest.fixture(autouse=True)
    def _channels(self, settings: Any, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
        settings.RELIABLE_CABLE = {"ENGINE": "memory", "PUBLIC_STREAMS": ["x*"], "MAX_MESSAGE_SIZE": 2**20}
        settings.RELIABLE_CABLE["MAX_IDENTIFIER_SIZE"] = 2**20
        settings.RELIABLE_CABLE["MAX_PENDING_SIZE"] = 2**24
        caplog.set_level(logging.DEBUG, "reliable_cable")
        registry["Loud"] = [Loud]
        yield
        registry.pop("Loud", None)

    @staticmethod
    def spaced(**params: Any) -> str:
        """Return an identifier with line breaks between its tokens, where JSON allows them."""
        return json.dumps({"channel": "Loud", **params}, separators=(",\n", ":"))

    async def handled(self, client: Client) -> None:
        await connection_of(client).commands.finished(10)
        await run_event_loop()

    async def test_broken_frames(self, hostile: str, caplog: pytest.LogCaptureFixture) -> None:
        async with Client() as client:
            await client.send_text(json.dumps(hostile))
            await client.send_text(hostile.encode(errors="replace").decode())
            await client.send(hostile, self.spaced())
            await client.send("subscribe", hostile)
            await client.send("subscribe", json.dumps({"channel": hostile}))
            await client.send("join", self.spaced(), presence={"id": [hostile]})
            await client.subscribe(self.spaced())
            await client.perform(self.spaced(), hostile)
            await client.send("whisper", self.spaced(), data=hostile)
            await self.handled(client)
        check_records(caplog, "is not JSON", "is unknown", "There is no channel", "has no action")

    async def test_handlers_that_raise_what_a_client_sent(self, hostile: str, caplog: pytest.LogCaptureFixture) -> None:
        async with Client() as client:
            await client.send("subscribe", self.spaced(raises=hostile))
            await client.subscribe(self.spaced())
            await client.perform(self.spaced(), "fail", text=hostile)
            await client.send(
                "join", self.spaced(), presence={"id": "ann", "info": hostile[:1000].replace("\ud800", "")}
            )
            await self.handled(client)
        check_records(caplog, "Loud: subscribed failed", "Loud: fail failed", "handle_error failed", "join was refused")

    async def test_streams_and_members_that_cannot_be_read(
        self, hostile: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hostile = hostile.replace("\ud800", "")
        room, public = self.spaced(x=hostile), identifier("$pubsub", stream_name=hostile[:200])

        async def fail(*args: Any, **options: Any) -> Any:
            raise LookupError(hostile)

        async with Client() as client:
            await client.subscribe(room)
            await client.send("subscribe", public)  # which is rejected if no stream can have this name
            await self.handled(client)
            for name in ("aread", "aoffset_since"):
                monkeypatch.setattr(get_engine().streams, name, fail)
            monkeypatch.setattr(Rosters, "snapshot", fail)
            for each in (room, public):
                await client.send("presence", each)
            await client.send("history", room, history={"since": 1, "streams": {hostile: {}}})
            await until(lambda: "The history of" in caplog.text)
        check_records(caplog, "The presence of", "The history of")

    async def test_subscriptions_that_cannot_be_made(
        self, hostile: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hostile = hostile.replace("\ud800", "")
        errors: list[Exception] = [StoreError(hostile), LookupError(hostile)]

        async def fail(*args: Any, **options: Any) -> Any:
            raise errors.pop(0)

        async with Client() as client:
            monkeypatch.setattr(connection_of(client).hub, "subscribe", fail)
            await client.send("subscribe", self.spaced(x=hostile))
            assert (await client.receive())["type"] == "reject_subscription"
        check_records(caplog, "could not be made; trying again", "could not be made.")

    async def test_subscriptions_that_cannot_be_restored(self, hostile: str, caplog: pytest.LogCaptureFixture) -> None:
        sid = await leave_session(Client(), self.spaced(text=hostile.replace("\ud800", "")))
        async with Client(sid):
            pass
        check_records(caplog)
        assert sid not in caplog.text
        assert any(record.exc_info for record in caplog.records)

    def test_origins_that_are_refused(
        self, hostile: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(origins, "_logged_at", -1e9)
        header = hostile.encode(errors="replace")
        origins.log_refusal({"headers": [(b"origin", header), (b"origin", b"null"), (b"host", header)]})
        check_records(caplog, "A WebSocket was refused")


class TestServers:
    @pytest.fixture
    def emitted(self) -> Iterator[list[str]]:
        """The formatted records of all servers, during the test."""
        emitted: list[str] = []
        handler = logging.Handler()
        handler.emit = lambda record: emitted.append(handler.format(record))  # type: ignore[method-assign]
        loggers = [logging.getLogger(name) for name in logs.SERVER_LOGGERS]
        for logger in loggers:
            logger.addHandler(handler)
        yield emitted
        for logger in loggers:
            logger.removeHandler(handler)

    @pytest.mark.parametrize(
        ("secret", "hidden"),
        [
            ("GET /cable?pi=3&sid=SECRET&jid=SECRET HTTP/1.1", "GET /cable?pi=3&sid=***&jid=*** HTTP/1.1"),
            ("/cable?access_token=SECRET", "/cable?access_token=***"),
            ("/events?signed_stream=SECRET&stream=a", "/events?signed_stream=***&stream=a"),
            ("/events?turbo_signed_stream_name=SECRET", "/events?turbo_signed_stream_name=***"),
            (
                "/events?identifier=%7B%22signed_stream_name%22%3A%22e30%3D--" + "0a" * 32 + "%22%7D",
                "/events?identifier=%7B%22signed_stream_name%22%3A%22e30%3D--***%22%7D",
            ),
            ("query_string: b'sid=SECRET'}", "query_string: b'sid=***'}"),
            (
                "(b'x-anycable-restore-sid', b'SECRET'), (b'a', b'b')",
                "(b'x-anycable-restore-sid', b'***'), (b'a', b'b')",
            ),
            ("['actioncable-v1-json', 'anycable-token.SECRET']", "['actioncable-v1-json', 'anycable-token.***']"),
            ("protocol: anycable-token.a~b+c!d|SECRET, x", "protocol: anycable-token.***, x"),
            ('< TEXT \'{"type":"welcome","sid":"SECRET"}\'', '< TEXT \'{"type":"welcome","sid":"***"}\''),
            ("GET /rooms?page=2&q=sid HTTP/1.1", "GET /rooms?page=2&q=sid HTTP/1.1"),
        ],
    )
    @pytest.mark.parametrize("name", logs.SERVER_LOGGERS)
    def test_secrets_are_hidden_in_messages_and_arguments(
        self, name: str, secret: str, hidden: str, emitted: list[str]
    ) -> None:
        logger = logging.getLogger(name)
        logger.error("%s %d", secret, 1)
        if name != "uvicorn.access":
            logger.error(secret)
            logger.error("%(path)s 1", {"path": secret})
            logger.error("%s 1", SimpleNamespace(text=secret))
        assert emitted[0] == f"{hidden} 1"
        assert "SECRET" not in "".join(emitted)

    def test_headers_are_hidden_to_their_ends(self, emitted: list[str]) -> None:
        logging.getLogger("uvicorn.error").error("< %s: %s", "cookie", 'sessionid=SECRET; csrftoken="SECRET"')
        assert emitted == ["< cookie: ***"]

    def test_the_arguments_of_uvicorns_access_log_stay_apart(self) -> None:
        args = ("127.0.0.1:1", "GET", "/cable?sid=SECRET", "1.1", 404)
        record = logging.LogRecord("uvicorn.access", logging.INFO, "", 1, '%s - "%s %s HTTP/%s" %d', args, None)
        logging.getLogger("uvicorn.access").filter(record)
        assert record.args == ("127.0.0.1:1", "GET", "/cable?sid=***", "1.1", 404)

    def test_secrets_are_hidden_in_tracebacks(self, emitted: list[str]) -> None:
        try:
            raise LookupError("/cable?sid=SECRET\nERROR FORGED")
        except LookupError:
            logging.getLogger("uvicorn.error").exception("Exception in ASGI application\n")
        assert "/cable?sid=***\\nERROR FORGED" in emitted[0]

    def test_arguments_that_do_not_fit_are_left_to_the_handlers(self) -> None:
        record = logging.LogRecord("uvicorn.error", logging.INFO, "", 1, "%d", ("x",), None)
        assert logging.getLogger("uvicorn.error").filter(record)
        assert record.args == ("x",)

    def test_configuring_the_logging_again_leaves_the_filters(self) -> None:
        import logging.config

        loggers = [logging.getLogger(name) for name in (*logs.SERVER_LOGGERS, "reliable_cable")]
        before = [list(logger.filters) for logger in loggers]
        names = {logger.name: {"level": "INFO"} for logger in loggers}
        logging.config.dictConfig({"version": 1, "disable_existing_loggers": False, "loggers": names})
        try:
            assert [list(logger.filters) for logger in loggers] == before
            assert all(before)
        finally:
            for logger in loggers:
                logger.setLevel(logging.NOTSET)

    def test_daphnes_own_access_log_hides_secrets(self, monkeypatch: pytest.MonkeyPatch) -> None:
        written: list[str] = []

        class AccessLogGenerator:
            def write_entry(self, host: str, date: object, request: str, status: int | None = None) -> None:
                written.append(f"{host} {request} {status}")

        monkeypatch.setitem(sys.modules, "daphne.access", SimpleNamespace(AccessLogGenerator=AccessLogGenerator))
        logs.install()
        logs.install()
        AccessLogGenerator().write_entry(host="::1", date=None, request="GET /cable?sid=SECRET", status=404)
        assert written == ["::1 GET /cable?sid=*** 404"]
