"""The errors of runs."""

from reliable_cable.exceptions import CableError


class RunError(CableError):
    """Base class of the errors of runs."""


class RunStopped(RunError):
    """The run was stopped. `writing` ends it, so a task lets this error pass."""


class RunLost(RunError):
    """The run no longer belongs to this writer, for example because its lease ran out while the database was away."""


class RunNotQueued(RunError):
    """The run cannot be written, because another task writes it, or because it has ended."""


class RunFailed(RunError):
    """A task raises this to fail its run with a message that its user may read."""
