"""The settings of the demo, with shorter times until members and the leases of runs expire."""

from __future__ import annotations

from demo_project.settings import *  # noqa: F403
from demo_project.settings import RELIABLE_CABLE

RELIABLE_CABLE = {**RELIABLE_CABLE, "PRESENCE_TTL": 6, "PRESENCE_GRACE": 2, "RUN_LEASE": 3}
