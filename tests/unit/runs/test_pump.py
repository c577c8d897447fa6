"""The background thread that broadcasts runs and finds out that they were stopped."""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Collection
from itertools import pairwise
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from reliable_cable.runs.pump import Pump

pytestmark = pytest.mark.django_db

#: The maximum time, in seconds, until a writer learns that its run was stopped.
STOP_TIME = 0.25


class VirtualCondition:
    """Takes the place of `threading.Condition`. Its clock advances only while `wait_for` waits."""

    def __init__(self) -> None:
        self.now = 100.0

    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None: ...

    def notify(self) -> None: ...

    def wait_for(self, woken: Callable[[], bool], timeout: float) -> bool:
        if not woken():
            self.now += timeout
        return woken()


def test_a_writer_learns_of_a_stop_in_time_even_while_the_model_is_silent() -> None:
    condition = VirtualCondition()
    pump = Pump(lambda: condition.now)
    pump._changed = condition  # type: ignore[assignment]
    silent: Any = SimpleNamespace(due=lambda: math.inf, run=SimpleNamespace(pk=uuid.uuid4()), stopped=False)
    asked: list[float] = []

    def find(runs: Collection[uuid.UUID]) -> list[uuid.UUID]:
        asked.append(condition.now)
        return list(runs) if len(asked) == 10 else []

    ended = mock.Mock(side_effect=lambda: pump.remove(silent))
    with (
        mock.patch.object(pump._stop_requests, "find", find),
        mock.patch("reliable_cable.runs.pump.submit_alone") as started,
    ):
        pump.add(silent, ended)
        pump._run()
    assert started.call_args.args == ("runs", pump._run)
    assert silent.stopped
    ended.assert_called_once_with()
    assert max(after - before for before, after in pairwise(asked)) <= STOP_TIME
