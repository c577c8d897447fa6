"""Announces events to other processes: what is logged when it fails."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from unittest import mock

import pytest

from reliable_cable.conf import get_settings
from reliable_cable.stores.streams.base import Transient
from reliable_cable.stores.streams.model_announcer import Announcer


def test_each_outage_is_logged_once_on_a_database_without_notifications(
    settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    settings.RELIABLE_CABLE = {"POLL_INTERVAL": 0.001}
    outcomes: list[type[Exception] | None] = [TimeoutError, TimeoutError, None, TimeoutError]
    logged: list[int] = []

    def store(whispers: Sequence[Transient]) -> list[int]:
        error = outcomes[len(logged)]
        if error is not None:
            raise error
        return [1]

    announcer = Announcer(get_settings(), lambda: "here", store)
    assert not announcer.notifies
    with mock.patch.object(announcer, "_start"):
        for _ in outcomes:
            announcer.whisper(Transient("a", "1", whisper=True))
            announcer._work(announcer._pending)
            logged.append(caplog.text.count("Whispers could not be passed"))
    assert logged == [1, 1, 1, 2]
