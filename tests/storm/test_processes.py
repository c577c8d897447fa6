"""A storm reports processes that end although no fault has ended them."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import pytest

from tests.stores.conftest import until
from tests.storm.broadcasters import Broadcaster, ViewCaller
from tests.storm.faults import Faults
from tests.storm.plan import Plan
from tests.storm.stage import Stage
from tests.support.outage import child_pids

pytestmark = [pytest.mark.slow, pytest.mark.redis]


async def test_processes_that_end_by_themselves_are_reported(tmp_path: Path) -> None:
    plan = Plan(engine="database", every=0.1, only=("server SIGTERM",))
    async with Stage(plan, tmp_path) as stage:
        assert stage.dead_processes() == []
        for server in stage.servers:
            server.signal(signal.SIGKILL)
            await server.stopped()
        os.kill(child_pids(stage.worker.pid)[-1], signal.SIGKILL)
        await until(lambda: stage.worker.dead_children)
        dead = stage.dead_processes()
        assert dead[:2] == ["daphne has ended by itself", "uvicorn has ended by itself"]
        assert "signal 9 (SIGKILL)" in dead[2]
        assert len(dead) == 3

        rng = random.Random(1)
        caller = ViewCaller(stage.servers, rng)
        faults = Faults(stage, rng, Broadcaster(caller, rng, plan))
        await faults.run(plan.every / 2)
        await caller.close()
        assert [complaint.partition(" ")[2] for complaint in faults.complaints] == [
            "has ended by itself with the exit code -9"
        ]
