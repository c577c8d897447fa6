"""Base classes of tests for Django's test runner."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, ClassVar

from django.test import TestCase

from .broadcasts import CapturedBroadcast, assert_broadcasts, assert_no_broadcasts, capture_broadcasts
from .isolation import isolated_cable


class CableTestMixin:
    """Runs each test in `isolated_cable()`, and has assertions about broadcasts. Put it before the test case class."""

    #: Settings for the tests of this class, which have precedence over `RELIABLE_CABLE`.
    cable_settings: ClassVar[Mapping[str, Any]] = {}

    def run(self, result: Any = None) -> Any:
        """Run a test with its fixtures."""
        case: Any = self
        # This registers the end of the isolation as a cleanup, so an error there fails the test, not the test run.
        case.enterContext(isolated_cable(**self.cable_settings))
        try:
            return super().run(result)  # type: ignore[misc]  # the test case class has this method
        finally:
            case.doCleanups()  # a test that is skipped has not done this

    def captureBroadcasts(self) -> AbstractContextManager[list[CapturedBroadcast]]:  # noqa: N802 - as in unittest
        """Capture the broadcasts of the code in this context, see `capture_broadcasts`."""
        return capture_broadcasts()

    def assertBroadcasts(  # noqa: N802
        self, stream: str, count: int | None = None, *, matching: Any = None
    ) -> AbstractContextManager[list[CapturedBroadcast]]:
        """Assert that the code in this context broadcasts to a stream, see `assert_broadcasts`."""
        return assert_broadcasts(stream, count, matching=matching)

    def assertNoBroadcasts(  # noqa: N802
        self, stream: str | None = None, *, matching: Any = None
    ) -> AbstractContextManager[None]:
        """Assert that the code in this context does not broadcast, see `assert_no_broadcasts`."""
        return assert_no_broadcasts(stream, matching=matching)


class CableTestCase(CableTestMixin, TestCase):
    """Django's `TestCase` with `CableTestMixin`."""
