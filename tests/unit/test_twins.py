"""Each async function takes the same typed parameters as its sync version, and does the same with them."""

from __future__ import annotations

import inspect
from dataclasses import asdict
from typing import Any, ClassVar

import pytest
from django.utils.module_loading import import_string

import reliable_cable
from reliable_cable import AsyncContextError, Channel, broadcasting
from reliable_cable.presence import StreamPresence
from reliable_cable.stores.engine import ENGINE_CLASSES
from reliable_cable.stores.presence.base import PresenceStore
from reliable_cable.stores.sessions.base import SessionStore
from reliable_cable.stores.streams.base import StreamStore
from reliable_cable.validation import BatchOptions

STORES = {
    PresenceStore,
    SessionStore,
    StreamStore,
    import_string("reliable_cable.stores.streams.durable.DurableStreamStore"),
    *(import_string(path) for paths in ENGINE_CLASSES.values() for path in paths.values()),
}
OWNERS = [reliable_cable, Channel, StreamPresence, *sorted(STORES, key=lambda store: store.__qualname__)]


def twins(owner: Any) -> list[tuple[Any, Any]]:
    """Return the pairs of a sync and an async function in a module or a class."""
    names = [name for name in dir(owner) if not name.startswith("_")]
    return [
        (getattr(owner, name[1:]), getattr(owner, name))
        for name in names
        if name[0] == "a" and name[1:] in names and inspect.iscoroutinefunction(getattr(owner, name))
    ]


PAIRS = [pair for owner in OWNERS for pair in twins(owner)]


@pytest.mark.parametrize(("sync", "twin"), PAIRS, ids=[twin.__qualname__ for _, twin in PAIRS])
def test_twins_have_the_same_signature(sync: Any, twin: Any) -> None:
    assert inspect.signature(sync) == inspect.signature(twin)
    options = [p for p in inspect.signature(twin).parameters.values() if p.kind is p.VAR_KEYWORD]
    assert [option.name for option in options] in ([], ["identifiers"])


def test_the_pairs_include_the_public_functions() -> None:
    sync = {function.__qualname__ for function, _ in PAIRS}
    assert {"broadcast", "broadcast_batch", "position", "history", "forget", "disconnect"} <= sync
    assert {"Channel.broadcast_to", "StreamPresence.info", "StreamPresence.total", "StreamStore.append"} <= sync


def test_every_public_async_function_has_a_sync_twin() -> None:
    public = [getattr(reliable_cable, name) for name in dir(reliable_cable)]
    asynchronous = [function for function in public if inspect.iscoroutinefunction(function)]
    assert asynchronous == [twin for _, twin in twins(reliable_cable)]


PUBLIC_PAIRS = [pair for owner in (reliable_cable, Channel, StreamPresence) for pair in twins(owner)]


@pytest.mark.parametrize(("sync", "twin"), PUBLIC_PAIRS, ids=[twin.__qualname__ for _, twin in PUBLIC_PAIRS])
async def test_on_an_event_loop_every_sync_function_names_its_twin(sync: Any, twin: Any) -> None:
    with pytest.raises(AsyncContextError, match=rf"would block the event loop .* use `await {twin.__name__}\(\)`"):
        sync()


def test_broadcast_to_takes_the_options_of_broadcast() -> None:
    own = dict(inspect.signature(broadcasting.broadcast, eval_str=True).parameters)
    of_channel = dict(inspect.signature(Channel.broadcast_to, eval_str=True).parameters)
    del own["stream"], of_channel["target"]
    assert own == of_channel


class TestOptions:
    """Every option reaches the function that checks broadcasts, under its own name."""

    @pytest.fixture
    def calls(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, BatchOptions]]:
        calls: list[tuple[Any, BatchOptions]] = []

        def record(items: Any, options: BatchOptions) -> list[Any]:
            calls.append((items, options))
            raise InterruptedError

        async def arecord(items: Any, options: BatchOptions) -> list[Any]:
            return record(items, options)

        monkeypatch.setattr(broadcasting, "prepare_batch", record)
        monkeypatch.setattr(broadcasting, "aprepare_batch", arecord)
        return calls

    #: Each option has its name as its value.
    shared: ClassVar[dict[str, Any]] = {
        name: name for name in ("transient", "immediate", "to_others", "exclude_socket", "using")
    }

    async def test_abroadcast_passes_on_its_options(self, calls: list[tuple[Any, BatchOptions]]) -> None:
        with pytest.raises(InterruptedError):
            await broadcasting.abroadcast("Channel:a", 1, idempotency_key="k", **self.shared)
        with pytest.raises(InterruptedError):
            await Channel.abroadcast_to("a", 1, idempotency_key="k", **self.shared)
        self.check(calls, [("Channel:a", 1, {"idempotency_key": "k"})])

    def test_broadcast_passes_on_its_options(self, calls: list[tuple[Any, BatchOptions]]) -> None:
        with pytest.raises(InterruptedError):
            broadcasting.broadcast("Channel:a", 1, idempotency_key="k", **self.shared)
        with pytest.raises(InterruptedError):
            Channel.broadcast_to("a", 1, idempotency_key="k", **self.shared)
        self.check(calls, [("Channel:a", 1, {"idempotency_key": "k"})])

    async def test_abroadcast_batch_passes_on_its_options(self, calls: list[tuple[Any, BatchOptions]]) -> None:
        with pytest.raises(InterruptedError):
            await broadcasting.abroadcast_batch([("a", 1)], atomic="atomic", **self.shared)  # type: ignore[arg-type]
        self.check(calls, [("a", 1)], atomic="atomic")

    def test_broadcast_batch_passes_on_its_options(self, calls: list[tuple[Any, BatchOptions]]) -> None:
        with pytest.raises(InterruptedError):
            broadcasting.broadcast_batch([("a", 1)], atomic="atomic", **self.shared)  # type: ignore[arg-type]
        self.check(calls, [("a", 1)], atomic="atomic")

    def check(self, calls: list[tuple[Any, BatchOptions]], items: list[Any], *, atomic: Any = True) -> None:
        assert calls
        for call, options in calls:
            assert call == items
            assert asdict(options) == {**self.shared, "atomic": atomic}
