"""The settings of the demo, whose clients need tokens."""

from __future__ import annotations

from tests.browser.project.settings import *  # noqa: F403
from tests.browser.project.settings import RELIABLE_CABLE

RELIABLE_CABLE = {**RELIABLE_CABLE, "JWT_REQUIRED": True, "JWT_LEEWAY": 0}
ROOT_URLCONF = "tests.browser.project.token_page"
