"""Each handler runs, with its check, in a copy of the connection's context: what it sets does not reach other calls."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar
from typing import Any, ClassVar

import pytest
from django.test import override_settings
from django.utils import translation

from reliable_cable import CableConsumer, Channel, action
from reliable_cable.channel import registry
from reliable_cable.concurrency.daemon_executor import DaemonExecutor

from .wire import Client, connection_of, identifier

tenant: ContextVar[str] = ContextVar("tenant", default="nobody")


@pytest.fixture(autouse=True)
def _channels(settings: Any) -> Iterator[None]:
    settings.RELIABLE_CABLE = {"ENGINE": "memory", "PING_INTERVAL": 60, "HANDLER_THREADS": 2}
    registry.update({"Sync": [Sync], "Async": [Async], "Mixed": [Mixed]})
    Events.seen = []
    yield
    for name in ("Sync", "Async", "Mixed"):
        del registry[name]


class Events:
    """The recorded events, in order, each with its tenant and its thread."""

    seen: ClassVar[list[tuple[str, str, int]]] = []

    @classmethod
    def add(cls, name: str) -> None:
        """Record an event and the tenant of its context. Then set another tenant, as a handler may."""
        cls.seen.append((name, tenant.get(), threading.get_ident()))
        tenant.set(f"set by {name}")

    @classmethod
    def names(cls) -> list[str]:
        return [name for name, _, _ in cls.seen]

    @classmethod
    def tenants(cls) -> dict[str, str]:
        return {name: value for name, value, _ in cls.seen}

    @classmethod
    def threads(cls, *names: str) -> set[int]:
        return {thread for name, _, thread in cls.seen if name in names}


class Sync(Channel, abstract=True):
    """Has every kind of handler, all of them sync."""

    def before_subscribe(self) -> None:
        Events.add("before_subscribe")

    def subscribed(self) -> None:
        Events.add("subscribed")
        self.stream_from("room", presence=True)

    def authorize_presence(self, id: str, info: Any) -> bool:  # noqa: A002 - the protocol's name
        Events.add("authorize_presence")
        return True

    def before_action(self, action: str, data: Any) -> Any:
        Events.add("before_action")
        return data.get("allowed")

    def resubscribed(self) -> None:
        Events.add("resubscribed")

    def unsubscribed(self) -> None:
        Events.add("unsubscribed")

    def handle_error(self, error: Exception, handler: str) -> None:
        Events.add("handle_error")
        self.transmit({"failed": handler})

    @action
    def speak(self) -> bool:
        Events.add("speak")
        self.transmit({"language": translation.get_language()})
        return False

    @action
    def fail(self) -> None:
        Events.add("fail")
        raise ValueError("no")


class Async(Channel, abstract=True):
    """Has every kind of handler, all of them async."""

    async def before_subscribe(self) -> None:
        Sync.before_subscribe(self)  # type: ignore[arg-type]

    async def subscribed(self) -> None:
        Sync.subscribed(self)  # type: ignore[arg-type]

    async def authorize_presence(self, id: str, info: Any) -> bool:  # noqa: A002 - the protocol's name
        return Sync.authorize_presence(self, id, info)  # type: ignore[arg-type]

    async def before_action(self, action: str, data: Any) -> Any:
        return Sync.before_action(self, action, data)  # type: ignore[arg-type]

    async def resubscribed(self) -> None:
        Sync.resubscribed(self)  # type: ignore[arg-type]

    async def unsubscribed(self) -> None:
        Sync.unsubscribed(self)  # type: ignore[arg-type]

    async def handle_error(self, error: Exception, handler: str) -> None:
        Sync.handle_error(self, error, handler)  # type: ignore[arg-type]

    @action
    async def speak(self) -> bool:
        await asyncio.sleep(0)
        return Sync.speak(self)  # type: ignore[arg-type]

    @action
    async def fail(self) -> None:
        Sync.fail(self)  # type: ignore[arg-type]


class Mixed(Sync, abstract=True):
    """Has an async check before sync actions."""

    async def before_action(self, action: str, data: Any) -> Any:
        return super().before_action(action, data)


class SyncConsumer(CableConsumer):
    def connect(self) -> None:
        tenant.set("set by connect")

    def disconnect(self, code: int) -> None:
        Events.add("disconnect")


class AsyncConsumer(CableConsumer):
    async def connect(self) -> None:
        tenant.set("set by connect")

    async def disconnect(self, code: int) -> None:
        Events.add("disconnect")


KINDS = pytest.mark.parametrize(("channel", "consumer"), [("Sync", SyncConsumer), ("Async", AsyncConsumer)])


class TestContext:
    """Each handler runs, together with its check, in a copy of the context in which `connect` ran.

    It does not see context variables that other calls have set.
    """

    @KINDS
    async def test_every_handler_has_a_copy_of_the_connections_context(
        self, channel: str, consumer: type[CableConsumer]
    ) -> None:
        async with Client(consumer=consumer) as client:
            await client.subscribe(identifier(channel), presence={"id": "1", "info": {}})
            await client.perform(identifier(channel), "speak")
            await client.perform(identifier(channel), "fail")
            while (await client.receive()).get("message") != {"failed": "fail"}:
                pass
        async with Client(client.sid, consumer=consumer) as client:
            assert client.welcome["restored_ids"] == [identifier(channel)]
        first = [
            "before_subscribe",
            "authorize_presence",
            "before_action",
            "handle_error",
            "unsubscribed",
            "disconnect",
        ]
        expected = dict.fromkeys(first, "set by connect")
        # A check and its handler run in one context.
        expected |= dict.fromkeys(["subscribed", "resubscribed"], "set by before_subscribe")
        expected |= dict.fromkeys(["speak", "fail"], "set by before_action")
        assert Events.tenants() == expected

    @pytest.mark.parametrize("second", ["Sync", "Async"])
    @pytest.mark.parametrize("first", ["Sync", "Async", "Mixed"])
    async def test_a_language_does_not_reach_a_command_that_was_queued_at_the_same_time(
        self, monkeypatch: pytest.MonkeyPatch, first: str, second: str
    ) -> None:
        failing, speaking = identifier(first, n=1), identifier(second, n=2)
        async with Client() as client:
            await client.subscribe(failing)
            await client.subscribe(speaking)
            monkeypatch.setattr(Events, "add", lambda name: translation.activate("fr") if name == "fail" else None)
            # Both commands are sent before the event loop handles the first of them.
            await client.perform(failing, "fail")
            await client.perform(speaking, "speak")
            assert (await client.receive())["message"] == {"failed": "fail"}
            assert (await client.receive())["message"] == {"language": "en-us"}

    async def test_a_channel_layer_handler_has_a_copy_of_the_connections_context(self) -> None:
        class Layered(AsyncConsumer):
            channel_layer_alias = "default"

            async def note(self, message: dict[str, Any]) -> None:
                Events.add("note")
                received.set()

        received = asyncio.Event()
        with override_settings(CHANNEL_LAYERS={"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}):
            async with Client(consumer=Layered) as client:
                consumer = connection_of(client).consumer
                for _ in range(2):
                    await consumer.channel_layer.send(consumer.channel_name, {"type": "note"})
                    await asyncio.wait_for(received.wait(), 10)
                    received.clear()
        assert [value for name, value, _ in Events.seen if name == "note"] == ["set by connect"] * 2


class TestThreads:
    """A sync check and its sync handler run in one thread hop."""

    @pytest.fixture
    def hops(self, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
        """The thread hops that were made."""
        made: list[Any] = []
        submit = DaemonExecutor.submit

        def counted(executor: DaemonExecutor, call: Any, /, *args: Any, **options: Any) -> Any:
            made.append(call)
            return submit(executor, call, *args, **options)

        monkeypatch.setattr(DaemonExecutor, "submit", counted)
        return made

    @pytest.mark.parametrize(("channel", "count"), [("Sync", 1), ("Mixed", 1), ("Async", 0)])
    async def test_an_action_and_its_check_cost_one_hop_or_none(
        self, hops: list[Any], channel: str, count: int
    ) -> None:
        async with Client() as client:
            await client.subscribe(identifier(channel))
            hops.clear()
            await client.perform(identifier(channel), "speak")
            await client.receive()
            assert len(hops) == count

    async def test_an_async_check_runs_in_the_event_loop_before_a_sync_handler(self) -> None:
        async with Client() as client:
            await client.subscribe(identifier("Mixed"))
            await client.perform(identifier("Mixed"), "speak")
            await client.receive()
        assert Events.threads("before_action") == {threading.get_ident()}
        assert threading.get_ident() not in Events.threads("speak")

    @pytest.mark.parametrize("channel", ["Sync", "Async", "Mixed"])
    async def test_only_a_check_that_returns_false_refuses_a_call(self, channel: str) -> None:
        async with Client() as client:
            await client.subscribe(identifier(channel))
            await client.perform(identifier(channel), "fail", allowed=False)
            await client.perform(identifier(channel), "speak", allowed=None)
            # The action `speak` returns False, which does not refuse the call.
            assert "language" in (await client.receive())["message"]


class Around(CableConsumer):
    """Records when `around_command` begins and ends, and sets a language in between."""

    #: The errors that `around_command` suppresses.
    suppressed: tuple[type[Exception], ...] = ()

    @contextlib.contextmanager
    def around_command(self) -> Iterator[None]:
        Events.seen.append(("enter", "", threading.get_ident()))
        try:
            with translation.override("fr"), contextlib.suppress(*Around.suppressed):
                yield
        except ValueError:
            Events.seen.append(("raised", "", threading.get_ident()))
            raise
        finally:
            Events.seen.append(("exit", "", threading.get_ident()))


class AsyncAround(CableConsumer):
    """Like `Around`, with an async context manager."""

    @contextlib.asynccontextmanager
    async def around_command(self) -> AsyncIterator[None]:
        with Around.around_command(self):
            await asyncio.sleep(0)
            yield


BOTH = pytest.mark.parametrize("consumer", [Around, AsyncAround])


class TestAroundCommand:
    """`around_command` of the consumer wraps each handler and the check that precedes it, such as `before_action`."""

    @BOTH
    @pytest.mark.parametrize("channel", ["Sync", "Async"])
    async def test_it_surrounds_every_call(self, consumer: type[CableConsumer], channel: str) -> None:
        async with Client(consumer=consumer) as client:
            await client.subscribe(identifier(channel), presence={"id": "1", "info": {}})
            await client.perform(identifier(channel), "speak")
            while (await client.receive()).get("message") != {"language": "fr"}:
                pass
        calls = [("before_subscribe", "subscribed"), ("authorize_presence",), ("before_action", "speak")]
        calls.append(("unsubscribed",))
        assert Events.names() == [name for call in calls for name in ("enter", *call, "exit")]

    async def test_it_surrounds_disconnect(self) -> None:
        class Leaving(Around):
            def disconnect(self, code: int) -> None:
                Events.add("disconnect")

        async with Client(consumer=Leaving):
            pass
        assert Events.names() == ["enter", "disconnect", "exit"]

    @BOTH
    @pytest.mark.parametrize("channel", ["Sync", "Async"])
    async def test_it_sees_the_error_of_a_handler_and_surrounds_handle_error(
        self, consumer: type[CableConsumer], channel: str
    ) -> None:
        async with Client(consumer=consumer) as client:
            await client.subscribe(identifier(channel))
            Events.seen.clear()
            await client.perform(identifier(channel), "fail")
            assert (await client.receive())["message"] == {"failed": "fail"}
            assert Events.names() == [
                *("enter", "before_action", "fail", "raised", "exit"),
                *("enter", "handle_error", "exit"),
            ]

    async def test_a_sync_manager_runs_in_the_thread_of_a_sync_handler(self) -> None:
        async with Client(consumer=Around) as client:
            await client.subscribe(identifier("Sync"))
            Events.seen.clear()
            await client.perform(identifier("Sync"), "speak")
            await client.receive()
            (thread,) = Events.threads("enter", "before_action", "speak", "exit")
            assert thread != threading.get_ident()

    @pytest.mark.parametrize(
        ("consumer", "channel"), [(Around, "Async"), (AsyncAround, "Async"), (AsyncAround, "Sync")]
    )
    async def test_otherwise_it_runs_in_the_event_loop(self, consumer: type[CableConsumer], channel: str) -> None:
        async with Client(consumer=consumer) as client:
            await client.subscribe(identifier(channel))
        assert Events.threads("enter", "exit") == {threading.get_ident()}

    async def test_a_check_of_the_other_kind_is_surrounded_by_itself(self) -> None:
        async with Client(consumer=Around) as client:
            await client.subscribe(identifier("Mixed"))
            Events.seen.clear()
            await client.perform(identifier("Mixed"), "speak")
            await client.receive()
            assert Events.names() == ["enter", "before_action", "exit", "enter", "speak", "exit"]
            loop, *_, pool = [thread for name, _, thread in Events.seen if name == "enter"]
            assert loop == threading.get_ident()
            assert {pool} == Events.threads("speak")

    async def test_an_error_of_the_manager_is_an_error_of_the_handler(self, caplog: pytest.LogCaptureFixture) -> None:
        class Broken(CableConsumer):
            @contextlib.contextmanager
            def around_command(self) -> Iterator[None]:
                raise LookupError("no tenant")
                yield

        async with Client(consumer=Broken) as client:
            await client.send("subscribe", identifier("Sync"))
            assert (await client.receive())["type"] == "reject_subscription"
        assert Events.names() == []
        assert "no tenant" in caplog.text

    @BOTH
    @pytest.mark.parametrize("channel", ["Sync", "Async", "Mixed"])
    async def test_a_manager_that_suppresses_the_error_of_a_check_does_not_allow_the_call(
        self, consumer: type[CableConsumer], channel: str, monkeypatch: pytest.MonkeyPatch, caplog: Any
    ) -> None:
        def before_action(self: Channel, action: str, data: Any) -> Any:
            raise PermissionError

        monkeypatch.setattr(Sync, "before_action", before_action)
        monkeypatch.setattr(Around, "suppressed", (PermissionError,))
        async with Client(consumer=consumer) as client:
            await client.subscribe(identifier(channel))
            await client.perform(identifier(channel), "speak")
            assert (await client.receive())["message"] == {"failed": "speak"}
        assert "speak" not in Events.names()
        assert "around_command suppressed an error" in caplog.text

    def test_a_generator_that_is_no_context_manager_is_refused(self) -> None:
        with pytest.raises(TypeError, match=r"Plain\.around_command is a generator; decorate it with @contextmanager"):

            class Plain(CableConsumer):
                def around_command(self) -> Iterator[None]:  # type: ignore[override]
                    yield
