"""The settings of the demo, with a shorter expiry of members and of the writers of runs."""

from __future__ import annotations

from demo_project.settings import *  # noqa: F403
from demo_project.settings import RELIABLE_CABLE

RELIABLE_CABLE = {**RELIABLE_CABLE, "PRESENCE_TTL": 6, "PRESENCE_GRACE": 2, "RUN_LEASE": 3}
