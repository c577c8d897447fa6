"""The fixtures of the unit tests."""

from __future__ import annotations

from tests.unit.sites import make_site

__all__ = ["make_site"]
