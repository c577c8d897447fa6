"""Runs state machines of the library Hypothesis as random walks."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from tests.support.examples import examples


def run_random_walks(machine: type[RuleBasedStateMachine], *, walks: int, steps: int) -> None:
    """Run random walks of a state machine, which checks its own rules and invariants.

    Args:
        machine: the state machine.
        walks: the number of walks, see `examples`.
        steps: the maximum number of steps of a walk.
    """
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples(walks), stateful_step_count=steps, deadline=None, suppress_health_check=slow
        ),
    )
