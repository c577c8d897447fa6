"""The server limits how many lines it logs because of one client."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import OperationalError

from reliable_cable import Channel, action
from reliable_cable.client_log import INTERVAL, MAX_LINES, MAX_TRACEBACKS, ClientLog
from reliable_cable.connection.account import FAULTS_TIME

from .wire import Client, connection_of, identifier, registered, run_event_loop


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def _level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "reliable_cable")


class TestClientLog:
    def test_further_lines_within_a_minute_are_counted(self, caplog: pytest.LogCaptureFixture) -> None:
        clock = Clock()
        log = ClientLog(clock=clock)
        for number in range(500):
            log.warning("line %d", number)
        assert caplog.messages == [f"line {number}" for number in range(MAX_LINES)]
        clock.now += INTERVAL
        log.report()
        assert caplog.messages[MAX_LINES:] == ["480 more log lines about the same client were omitted."]

    def test_in_the_next_minute_lines_are_logged_again(self, caplog: pytest.LogCaptureFixture) -> None:
        clock = Clock()
        log = ClientLog(clock=clock)
        for number in range(MAX_LINES + 1):
            log.warning("line %d", number)
        clock.now += INTERVAL
        log.warning("later")
        assert caplog.messages[MAX_LINES:] == ["1 more log lines about the same client were omitted.", "later"]

    def test_few_lines_are_not_followed_by_a_number(self, caplog: pytest.LogCaptureFixture) -> None:
        clock = Clock()
        log = ClientLog(clock=clock)
        log.warning("one")
        clock.now += INTERVAL
        log.report()
        log.report(ended=True)
        assert caplog.messages == ["one"]

    def test_lines_of_a_level_that_is_not_logged_do_not_count(self, caplog: pytest.LogCaptureFixture) -> None:
        log = ClientLog(clock=Clock())
        for _ in range(MAX_LINES):
            log.debug("hidden")
        log.warning("shown")
        assert caplog.messages == ["shown"]

    def test_the_first_tracebacks_are_logged(self, caplog: pytest.LogCaptureFixture) -> None:
        log = ClientLog(clock=Clock())
        for _ in range(MAX_TRACEBACKS + 2):
            try:
                raise LookupError
            except LookupError:
                log.exception("It failed.")
        assert [bool(record.exc_info) for record in caplog.records] == [*[True] * MAX_TRACEBACKS, False, False]

    def test_a_record_names_the_place_of_the_call(self, caplog: pytest.LogCaptureFixture) -> None:
        ClientLog(clock=Clock()).warning("here")
        assert caplog.records[-1].filename == "test_client_log.py"


class Room(Channel, abstract=True):
    @action
    async def fail(self) -> None:
        raise LookupError("as the test asked")

    @action
    async def query(self) -> None:
        raise OperationalError("the database cannot be reached")

    @action
    async def speak(self) -> None:
        self.transmit("spoken")


ROOM = identifier("Room")


class TestConnections:
    @pytest.fixture(autouse=True)
    def _room(self, settings: Any) -> Iterator[None]:
        settings.RELIABLE_CABLE = {"ENGINE": "memory", "PING_INTERVAL": 60}
        with registered(Room=Room):
            yield

    async def test_each_connection_has_a_limit_of_its_own(self, caplog: pytest.LogCaptureFixture) -> None:
        async with Client() as noisy, Client() as other:
            await other.subscribe(ROOM)
            for number in range(50):
                await noisy.send("subscribe", identifier("None", number=number))
            await noisy.receive_many(50)
            await other.perform(ROOM, "fail")
            await run_event_loop()
            unknown = [message for message in caplog.messages if message.startswith("There is no channel 'None'")]
            assert len(unknown) == MAX_LINES
            assert caplog.messages[-1] == "Room: fail failed."
        assert "30 more log lines about the same client were omitted." in caplog.messages

    async def test_a_client_whose_handlers_fail_very_often_is_disconnected_for_a_while(self) -> None:
        async with Client() as client:
            await client.subscribe(ROOM)
            for _ in range(201):
                await client.perform(ROOM, "fail")
            assert await client.receive() == {"type": "disconnect", "reason": "invalid_request", "reconnect": True}

    async def test_an_outage_does_not_disconnect_a_client(self) -> None:
        async with Client() as client:
            await client.subscribe(ROOM)
            for _ in range(201):
                await client.perform(ROOM, "query")
            await client.perform(ROOM, "speak")
            assert await client.receive() == {"identifier": ROOM, "message": "spoken"}

    async def test_why_a_client_was_disconnected_is_logged_beyond_the_limit(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with Client() as client:
            for _ in range(MAX_LINES + 1):
                await client.send_text("{")
            assert (await client.receive())["reason"] == "invalid_request"
        assert caplog.messages[MAX_LINES].startswith("A client is disconnected: it sent too many broken frames")
        assert caplog.messages[MAX_LINES + 1] == "1 more log lines about the same client were omitted."

    async def test_unknown_channels_and_actions_do_not_disconnect_a_client(self) -> None:
        async with Client() as client:
            await client.subscribe(ROOM)
            for number in range(300):
                await client.perform(ROOM, f"of an older page {number}")
                await client.send("subscribe", identifier("Old", number=number))
            assert {frame["type"] for frame in await client.receive_many(300)} == {"reject_subscription"}
            assert not connection_of(client).ending

    async def test_broken_frames_are_forgotten_after_a_minute(self) -> None:
        async with Client() as client:
            for _ in range(3):
                for _ in range(20):
                    await client.send_text("{")
                assert await client.quiet()
                connection_of(client).account._faults_since -= FAULTS_TIME + 1
