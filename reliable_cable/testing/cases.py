"""A base class and a mixin for test cases of Django and unittest."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, ClassVar

from django.test import TestCase

from .broadcasts import CapturedBroadcast, assert_broadcasts, assert_no_broadcasts, capture_broadcasts
from .isolation import isolated_cable


class CableTestMixin:
    """Runs each test in `isolated_cable()`, and adds assertions about broadcasts.

    List the mixin before the test case class in the bases of your class.
    """

    #: The settings for the tests of this class, which override keys of `RELIABLE_CABLE`.
    cable_settings: ClassVar[Mapping[str, Any]] = {}

    def run(self, result: Any = None) -> Any:
        """Run a test in `isolated_cable()`. unittest calls this for each test."""
        case: Any = self
        # The isolation ends in a cleanup of the test. So an error there fails only this test, and the run continues.
        case.enterContext(isolated_cable(**self.cable_settings))
        try:
            return super().run(result)  # type: ignore[misc]  # the test case class has this method
        finally:
            case.doCleanups()  # unittest does not call `doCleanups` for a skipped test

    def captureBroadcasts(self) -> AbstractContextManager[list[CapturedBroadcast]]:  # noqa: N802 - as in unittest
        """Record the broadcasts that are sent in this context. See `capture_broadcasts`."""
        return capture_broadcasts()

    def assertBroadcasts(  # noqa: N802
        self, stream: str, count: int | None = None, *, matching: Any = None
    ) -> AbstractContextManager[list[CapturedBroadcast]]:
        """Assert that the code in this context broadcasts to a stream. See `assert_broadcasts`."""
        return assert_broadcasts(stream, count, matching=matching)

    def assertNoBroadcasts(  # noqa: N802
        self, stream: str | None = None, *, matching: Any = None
    ) -> AbstractContextManager[None]:
        """Assert that the code in this context does not broadcast. See `assert_no_broadcasts`."""
        return assert_no_broadcasts(stream, matching=matching)


class CableTestCase(CableTestMixin, TestCase):
    """Django's `TestCase` with `CableTestMixin`."""
