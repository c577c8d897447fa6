"""The capacity model: its table in the documentation, and relations that must hold for every workload."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.benchmarks.capacity import MAX_CONNECTIONS, TARGET, Costs, Workload, needs, table
from tests.support.server import ROOT

COSTS = Costs.load()

workloads = st.builds(
    Workload,
    connections=st.integers(1, 20_000_000),
    group=st.integers(1, 10_000),
    shared_rate=st.floats(0, 10),
    own_rate=st.floats(0, 10),
    duration=st.floats(10, 86_400),
    together=st.booleans(),
)


def test_the_documentation_has_the_computed_table() -> None:
    assert table(Workload(0), COSTS) in (ROOT / "docs" / "scaling.md").read_text()


@given(work=workloads)
def test_processes_suffice(work: Workload) -> None:
    need = needs(work, COSTS)
    used = work.connections * COSTS.idle + need.deliveries * COSTS.delivery + need.receives * COSTS.message
    used += work.connections / work.duration * COSTS.connect
    assert used / need.processes / 1e6 <= TARGET * 1.001
    assert work.connections / need.processes <= MAX_CONNECTIONS


@given(work=workloads)
def test_twice_the_connections_need_at_least_as_much(work: Workload) -> None:
    one, two = needs(work, COSTS), needs(replace(work, connections=2 * work.connections), COSTS)
    assert two.processes >= one.processes
    assert two.redis >= one.redis
    assert two.receives >= one.receives


@given(work=workloads)
def test_subscribers_at_one_process_cause_fewer_messages_from_redis(work: Workload) -> None:
    spread, together = (needs(replace(work, together=value), COSTS) for value in (False, True))
    assert together.receives <= spread.receives * 1.001
    assert together.processes <= spread.processes


def test_a_stream_is_received_by_each_process_that_has_a_subscriber() -> None:
    """With two processes, nearly every group of 50 has subscribers at both; with one subscriber, at one."""
    work = Workload(2 * MAX_CONNECTIONS, own_rate=0, shared_rate=0.1)
    assert needs(work, COSTS).receives == pytest.approx(2 * work.connections / 50 * 0.1)
    alone = replace(work, group=1)
    assert needs(alone, COSTS).receives == pytest.approx(alone.connections * 0.1)
