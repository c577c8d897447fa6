"""The exceptions of the app `reliable_cable.runs`."""

from reliable_cable.exceptions import CableError


class RunError(CableError):
    """The base class of the exceptions in this module."""


class RunStopped(RunError):
    """Raised in the task when its run was stopped. Do not catch it: `writing` catches it, and ends the run."""


class RunLost(RunError):
    """Raised in the task when the run no longer belongs to it.

    For example, the lease of the task expired while the database could not be reached.
    """


class RunNotQueued(RunError):
    """Raised if a task cannot write a run, because another task is writing it, or because it is completed or failed."""


class RunFailed(RunError):
    """An error that a task raises to fail its run. The message is shown to the user."""
