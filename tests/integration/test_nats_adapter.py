"""The NATS adapter: credentials, permissions, TLS, several servers, large messages, servers that are lost or hang."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import nats
import pytest
from django.test import override_settings

from reliable_cable import BroadcastError, BroadcastUncertain, PayloadTooLarge, abroadcast, abroadcast_batch, broadcast
from reliable_cable.stores.adapters import nats as adapter
from reliable_cable.stores.engine import get_engine
from tests.support.certificates import make_certificate
from tests.support.nats import NatsServer, SilentServer

pytestmark = pytest.mark.nats

PASSWORD = "secret"
USERS = (
    'authorization { users = [{user: "django", password: "secret"},'
    ' {user: "limited", password: "secret", permissions: {publish: "other"}}] }'
)


@asynccontextmanager
async def project(url: str, **options: Any) -> AsyncIterator[None]:
    """Give this process the settings of a project that broadcasts to NATS servers."""
    settings = {"BROADCAST_ADAPTER": "nats", "NATS_URL": url, "NATS_OPTIONS": options}
    with override_settings(RELIABLE_CABLE=settings):
        try:
            yield
        finally:
            get_engine().streams.close()


@asynccontextmanager
async def subscribed(url: str) -> AsyncIterator[Any]:
    """Subscribe as anycable-go does. Yield a function that returns the next message, decoded."""
    client = await nats.connect(url)
    try:
        subscription = await client.subscribe("__anycable__")
        await client.flush()

        async def following() -> Any:
            return json.loads((await subscription.next_msg(timeout=30)).data)

        yield following
    finally:
        await client.close()


def with_user(server: NatsServer, name: str, password: str = PASSWORD) -> str:
    return server.url.replace("nats://", f"nats://{name}:{password}@")


@contextmanager
def broadcasting_threads(count: int) -> Iterator[tuple[list[Future[object]], Callable[[], None]]]:
    """Broadcast in several threads. Yield the results, and a function that waits until each call waits for a server."""
    submitted = threading.Semaphore(0)
    submit = adapter._Connection.submit

    def noted(self: adapter._Connection, work: Any) -> Future[None]:
        future = submit(self, work)
        submitted.release()
        return future

    def all_submitted() -> None:
        for _ in range(count):
            assert submitted.acquire(timeout=30)

    with mock.patch.object(adapter._Connection, "submit", noted), ThreadPoolExecutor(count) as threads:
        yield [threads.submit(broadcast, "chat", "x") for _ in range(count)], all_submitted


async def test_credentials_may_be_in_the_url_or_in_the_options(tmp_path: Path) -> None:
    with NatsServer(tmp_path, [USERS]) as server:
        async with subscribed(with_user(server, "django")) as following:
            async with project(with_user(server, "django")):
                await abroadcast("chat", 1)
            async with project(server.url, user="django", password="secret"):
                await abroadcast("chat", 2)
            assert [(await following())["data"] for _ in range(2)] == ["1", "2"]


async def test_wrong_credentials_are_an_error_without_the_password(tmp_path: Path) -> None:
    with NatsServer(tmp_path, [USERS]) as server:
        async with project(with_user(server, "django", "wrong")):
            with pytest.raises(BroadcastError, match=f"127.0.0.1:{server.port}.*(?i:authorization)") as caught:
                await abroadcast("chat", 1)
    assert "wrong" not in str(caught.value)


async def test_a_missing_permission_is_an_error(tmp_path: Path) -> None:
    with NatsServer(tmp_path, [USERS]) as server:
        async with project(with_user(server, "limited")):
            for _ in range(2):
                with pytest.raises(BroadcastError, match="does not allow this user to publish"):
                    await abroadcast("chat", 1)


async def test_tls_verifies_the_certificate_of_the_server(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    with NatsServer(tmp_path, [f'tls {{ cert_file: "{certificate}", key_file: "{key}" }}']) as server:
        url = server.url.replace("nats://", "tls://")
        async with project(url, tls=ssl.create_default_context(cafile=str(certificate))):
            await abroadcast("chat", 1)
        async with project(url):
            with pytest.raises(BroadcastError, match=r"(?i)certificate"):
                await abroadcast("chat", 1)


async def test_the_next_server_is_used_if_one_is_lost(tmp_path: Path) -> None:
    with NatsServer(tmp_path / "a") as first, NatsServer(tmp_path / "b") as second:
        async with project(f"{first.url}, {second.url}"), subscribed(second.url) as following:
            first.kill()
            await abroadcast("chat", 1)
            assert (await following())["data"] == "1"


async def test_large_batches_are_split_and_larger_messages_refused(tmp_path: Path) -> None:
    with NatsServer(tmp_path, ["max_payload: 1000"]) as server:
        async with project(server.url), subscribed(server.url) as following:
            await abroadcast_batch([("chat", str(number) * 320) for number in range(1, 6)])
            parts = [await following() for _ in range(3)]
            assert [len(part) for part in parts[:2]] == [2, 2]
            with pytest.raises(PayloadTooLarge, match="the server allows 1000"):
                await abroadcast_batch([("chat", 1), ("chat", "x" * 1000)])
            await abroadcast("chat", "next")
            assert (await following())["data"] == '"next"', "nothing was sent of the refused batch"


async def test_a_server_that_hangs_is_uncertain_and_the_next_broadcast_connects_again(tmp_path: Path) -> None:
    with NatsServer(tmp_path) as server:
        async with project(server.url):
            await abroadcast("chat", 1)
            os.kill(server.pid, signal.SIGSTOP)
            await asyncio.to_thread(os.waitpid, server.pid, os.WUNTRACED)  # wait until all its threads have stopped
            try:
                with mock.patch.object(adapter, "FLUSH_TIMEOUT", 0.2):
                    with pytest.raises(BroadcastUncertain, match="did not confirm it"):
                        await abroadcast("chat", 2)
            finally:
                os.kill(server.pid, signal.SIGCONT)
            async with subscribed(server.url) as following:
                await abroadcast("chat", 3)
                while (message := await following())["data"] != "3":
                    assert message["data"] == "2", "the message may have been sent"


async def test_a_restarted_server_is_found_again(tmp_path: Path) -> None:
    with NatsServer(tmp_path) as server:
        async with project(server.url):
            await abroadcast("chat", 1)
            server.kill()
            with pytest.raises(BroadcastError):
                await abroadcast("chat", 2)
            server.start()
            async with subscribed(server.url) as following:
                await abroadcast("chat", 3)
                assert (await following())["data"] == "3"


async def test_a_cancelled_broadcast_does_not_disturb_others(tmp_path: Path) -> None:
    with NatsServer(tmp_path) as server:
        async with project(server.url), subscribed(server.url) as following:
            await abroadcast("chat", "connect")
            tasks = [asyncio.create_task(abroadcast("chat", number)) for number in range(1, 21)]
            await asyncio.sleep(0)
            for task in tasks[::2]:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await abroadcast("chat", "last")
            received = [(await following())["data"]]
            while received[-1] != '"last"':
                received.append((await following())["data"])
            assert {str(number) for number in range(2, 21, 2)} <= set(received)


async def test_changed_settings_leave_no_thread(tmp_path: Path) -> None:
    def threads() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name == "cable-nats"]

    with NatsServer(tmp_path) as server:
        settings = {"BROADCAST_ADAPTER": "nats", "NATS_URL": server.url}
        with override_settings(RELIABLE_CABLE=settings):
            await asyncio.to_thread(broadcast, "chat", 1)
            (thread,) = threads()
        get_engine()
        gc.collect()
        await asyncio.to_thread(thread.join, 30)
        assert threads() == []


async def test_threads_that_wait_for_a_server_that_never_answers_share_one_attempt() -> None:
    with SilentServer() as server:
        async with project(server.url, connect_timeout=60):
            with broadcasting_threads(8) as (results, all_submitted):
                all_submitted()
                server.hang_up()  # as if the time were over
                errors = [result.exception(timeout=30) for result in results]
            assert {type(error) for error in errors} == {BroadcastError}, "nothing was sent"
            assert server.accepted == 1
            with pytest.raises(BroadcastError):
                await abroadcast("chat", "later")
            assert server.accepted == 2, "a later call makes a new attempt"


async def test_a_server_that_never_answers_is_an_error_each_time() -> None:
    with SilentServer() as server:
        async with project(server.url, connect_timeout=0.1):
            for attempts in (1, 2, 3):
                with pytest.raises(BroadcastError, match="Nothing was broadcast: NATS at"):
                    await abroadcast("chat", 1)
                server.wait_until_accepted(attempts)
                assert server.accepted == attempts


async def test_calls_that_wait_for_a_server_end_although_the_adapter_is_closed() -> None:
    with SilentServer() as server:
        async with project(server.url, connect_timeout=60):
            with broadcasting_threads(2) as (results, all_submitted):
                all_submitted()
                with mock.patch.object(adapter, "CLOSE_TIMEOUT", 0.1):
                    get_engine().streams.close()
                server.hang_up()
                assert {type(result.exception(timeout=30)) for result in results} == {BroadcastError}
